"""Heads of our own against what one writes down with transformers' plain models; whole runs with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.model.architectures import HEAD, NAMES, batch_of, tiny
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from whet.cli.main import main
from whet.data.prompt import Prompt
from whet.data.tokens import encode
from whet.errors import ConfigError, ModelError
from whet.evaluation.predictions import Predictions
from whet.model.encoder import Encoder
from whet.model.weights import LocalWeights
from whet.paths import Paths
from whet.task.base import Head

MEANS = ["bert", "distilbert", "roberta", "deberta-v2", "modernbert", "gpt2", "xlnet", "electra", "funnel"]
GUESSERS = ["bert", "distilbert", "roberta", "deberta-v2", "modernbert", "electra", "mpnet", "albert"]
PROMPT = Prompt(pattern="{text} so {mask}.", words={"bad": "b", "fair": ["f", "x"], "good": "g"})
ASKED = Head(3, "single_label_classification", NAMES, PROMPT)


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


@pytest.mark.parametrize("architecture", MEANS)
def test_the_mean_of_the_states_goes_through_one_layer(architecture, paths):
    torch.manual_seed(0)
    loaded = tiny(architecture, head="mean").load(HEAD, paths)
    assert loaded.new == {"classifier.weight", "classifier.bias"}
    model, batch = loaded.model.eval(), batch_of(loaded.tokenizer)
    trunk = AutoModel.from_pretrained(loaded.located.folder).eval()
    with torch.no_grad():
        states = trunk(**batch.inputs).last_hidden_state
        found = model(**batch.inputs).logits
    for row, mask in enumerate(batch.inputs["attention_mask"].bool()):
        mean = states[row][mask].mean(0)
        expected = model.classifier.weight @ mean + model.classifier.bias
        assert found[row].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_its_dropout_is_the_heads(paths):
    assert tiny("bert", head="mean").load(HEAD, paths).model.dropout.p == 0.1
    assert tiny("bert", head="mean", head_dropout=0.4).load(HEAD, paths).model.dropout.p == 0.4
    quiet = tiny("bert", head="mean", dropout=0.3).load(HEAD, paths).model
    assert (quiet.dropout.p, quiet.bert.embeddings.dropout.p) == (0.1, 0.3)


@pytest.mark.parametrize(
    ("architecture", "head", "told"),
    [
        ("bart", "mean", "bart is an encoder-decoder"),
        ("gpt2", "prompt", "transformers has no masked language model for gpt2"),
        ("bert", "prompt", "they bring no head that guesses words"),
    ],
)
def test_what_an_architecture_or_its_weights_lack(architecture, head, told, paths):
    with pytest.raises(ModelError, match=told):
        tiny(architecture, head=head).load(ASKED, paths)


def guessing(architecture: str, folder: Path, paths: Paths) -> Encoder:
    """An encoder on a masked language model of random weights."""
    source = tiny(architecture).locate(paths).folder
    torch.manual_seed(3)
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(source)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return Encoder(name="guessing", weights=LocalWeights(path=str(folder)), head="prompt")


@pytest.mark.parametrize("architecture", GUESSERS)
def test_words_in_the_gap(architecture, paths, tmp_path):
    encoder = guessing(architecture, tmp_path, paths)
    loaded = encoder.load(ASKED, paths)
    assert not loaded.new and loaded.prompt is PROMPT
    tokenizer, model = loaded.tokenizer, loaded.model.eval()
    given = tokenizer(["a long film so [MASK].", "dull so [MASK]."], padding=True, return_tensors="pt")
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        scores, found = plain(**given).logits, model(**given).logits
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in "bfxg"}
    for row, tokens in enumerate(given["input_ids"].tolist()):
        at = scores[row, tokens.index(tokenizer.mask_token_id)]
        expected = [at[ids["b"]], (at[ids["f"]] + at[ids["x"]]) / 2, at[ids["g"]]]
        assert found[row].tolist() == pytest.approx([float(score) for score in expected], abs=1e-5)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_texts_come_as_the_pattern_says(paths, tmp_path):
    loaded = guessing("bert", tmp_path, paths).load(ASKED, paths)
    tokens = encode([("good",), ("x" * 90,)], loaded.tokenizer, 24, prompt=loaded.prompt)
    rows = [
        loaded.tokenizer.decode(tokens.ids[a:b])
        for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]
    assert rows == ["[CLS]good so [MASK].[SEP]", f"[CLS]{'x' * 16} so [MASK].[SEP]"]
    assert tokens.truncated.tolist() == [False, True]


# ---------------------------------------------------------------- whole runs


def finished(workplace, name):
    folder = workplace / "outputs" / "runs" / name
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    return folder, Predictions.load(folder / "predictions" / "test.npz").logits


def told(workplace, name):
    """Probabilities of `whet predict` for the test rows, as the run's own predictions have them."""
    folder = workplace / "outputs" / "runs" / name
    assert main(["predict", f"run={folder}", "input=in.txt", "output=out.jsonl"]) == 0
    return [json.loads(line)["probabilities"] for line in Path("out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["none", "lora", "linear_probe", "prompt"])
def test_runs_with_a_mean(workplace, quick, method):
    mine = [*quick, f"peft={method}", "model.head=mean"]
    assert main(["train", *mine, "name=mean"]) == 0
    assert main(["train", *mine, "name=own", "model.head=own"]) == 0
    assert not np.allclose(finished(workplace, "mean")[1], finished(workplace, "own")[1])


def test_a_pretrained_model_answers_a_pattern(workplace, quick):
    """From `whet pretrain` over a run in a few labels' words to `whet predict`."""
    pretraining = [item for item in quick if not item.startswith("tracking")]
    assert main(["pretrain", *pretraining, "engine.duration=20st", "optimizer.lr=3e-3", "name=p"]) == 0
    mine = [
        *[item for item in quick if not item.startswith("model=")],
        "model=local", "model.weights.path=outputs/pretraining/p/model", "model.head=prompt",
        "+task.prompt.pattern='{text} it is {mask}'",
        "+task.prompt.words.1=b",
        "+task.prompt.words.5=[g,w]",
        "engine.duration=4ep", "optimizer.lr=3e-3",
    ]  # fmt: skip
    for method in ("none", "lora"):
        assert main(["train", *mine, f"peft={method}", f"name={method}"]) == 0
        finished(workplace, method)
    Path("in.txt").write_text("a good fine film\na bad dull film with [MASK]\n")
    for row in told(workplace, "none"):
        assert set(row) == {"1", "5"} and sum(row.values()) == pytest.approx(1, abs=1e-5)
    assert main(["evaluate", "run=outputs/runs/lora"]) == 0


def test_a_task_without_a_pattern(workplace, quick, capsys):
    assert main(["train", *quick, "model.head=prompt"]) == 2
    assert "model.head=prompt: needs task.prompt" in capsys.readouterr().err


def test_a_word_of_several_tokens(paths, tmp_path):
    encoder = guessing("bert", tmp_path, paths)
    long = Head(
        3,
        "single_label_classification",
        NAMES,
        Prompt(pattern="{text} {mask}", words=dict.fromkeys(NAMES, "terrible")),
    )
    with pytest.raises(ConfigError, match=r"task\.prompt\.words=terrible: must be one token .* is t e r r"):
        encoder.load(long, paths)
