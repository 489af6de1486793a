"""The last block without what no one reads of it, against the whole block."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.model.architectures import HEAD, TRUTHS, batch_of, logits_of, tiny
from tests.model.test_heads import PROMPT, guessing
from tests.model.test_packing import gradients, shapes_into, without_dropout
from tests.properties.test_peft import METHODS, method_of

from whet.cli.main import main
from whet.model.kernels import quicken
from whet.model.narrow import WholeError, alike, narrow_model, place_of
from whet.paths import Paths
from whet.peft.base import apply
from whet.task.base import Head

PLACES = {
    "bert": "attention.output",
    "roberta": "attention.output",
    "xlm-roberta": "attention.output",
    "camembert": "attention.output",
    "electra": "attention.output",
    "deberta-v2": "attention.output",
    "distilbert": "sa_layer_norm",  # its residual is added outside any module, before this norm
    "mpnet": "attention.LayerNorm",
    "modernbert": "mlp_norm",
}
"""By transformers' model code: what comes first after attention, the residual included."""
INNER = {
    "distilbert": "ffn.lin1",
    "modernbert": "mlp.Wi",
}
"""The feed-forward layer's first map, where it isn't intermediate.dense."""
WHOLE = sorted({*TRUTHS} - {*PLACES})


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


@pytest.mark.parametrize("kernels", ["torch", "quick"])
@pytest.mark.parametrize("architecture", PLACES)
def test_training_computes_one_token_and_the_same_gradients(architecture, kernels, paths):
    torch.manual_seed(0)
    loaded = tiny(architecture).load(HEAD, paths)
    model = without_dropout(loaded.model)
    if kernels == "quick":
        quicken(model)
    batch, other = batch_of(loaded.tokenizer), batch_of(loaded.tokenizer, rows=5, seed=3)
    judged, wanted = logits_of(model, other), gradients(model.train(), other)
    place = place_of(model, batch.inputs)
    assert model.training, "looking leaves the mode alone"
    block = TRUTHS[architecture].blocks[-1]
    assert place == f"{block}.{PLACES[architecture]}"
    narrow_model(model, place)
    seen = shapes_into(model.get_submodule(f"{block}.{INNER.get(architecture, 'intermediate.dense')}"))
    found = gradients(model, other)
    assert seen[-1][:2] == (5, 1), "one token of each text"
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    assert torch.equal(logits_of(model, other), judged), "evaluation is whole, to the bit"
    assert seen[-1][:2] == tuple(other.inputs["input_ids"].shape)


@pytest.mark.parametrize("architecture", WHOLE)
def test_others_stay_whole(architecture, paths):
    """Shared or pooling blocks, decoders, heads that read the last token."""
    loaded = tiny(architecture).load(HEAD, paths)
    batch = batch_of(loaded.tokenizer)
    before = logits_of(loaded.model, batch)
    with pytest.raises(WholeError):
        place_of(loaded.model, batch.inputs)
    assert torch.equal(logits_of(loaded.model, batch), before)
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_other_heads_read_more(paths, tmp_path):
    mean = tiny("bert", head="mean").load(HEAD, paths)
    with pytest.raises(WholeError, match="reads more of it than the first token"):
        place_of(mean.model, batch_of(mean.tokenizer).inputs)
    asked = Head(3, "single_label_classification", HEAD.names, PROMPT)
    prompted = guessing("bert", tmp_path, paths).load(asked, paths)
    batch = batch_of(prompted.tokenizer, pairs=False)
    ids = batch.inputs["input_ids"]
    last = batch.inputs["attention_mask"].sum(1) - 2
    ids[torch.arange(len(ids)), last] = prompted.tokenizer.mask_token_id
    with pytest.raises(WholeError):
        place_of(prompted.model, batch.inputs)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_every_peft_method_keeps_its_gradients(method, paths):
    """Or the block stays whole: soft prompts stand before the first token."""
    torch.manual_seed(0)
    loaded = tiny("bert").load(HEAD, paths)
    model = without_dropout(apply(method_of(method), loaded))
    batch = batch_of(loaded.tokenizer)
    wanted = gradients(model, batch)
    try:
        narrow_model(model, place_of(model, batch.inputs))
    except WholeError:
        assert method in ("prompt", "p_tuning")
    found = gradients(model, batch)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_alike():
    big, small = torch.tensor([100.0, 1.0]), torch.tensor([1e-5, -1e-5])
    logits = torch.ones(2)
    assert alike([logits, big, small], [logits, big + 0.05, -small]), "noise beside a large gradient"
    assert not alike([logits, big, small], [logits, big + 0.2, small])
    assert not alike([logits, big, small], [logits + 0.01, big, small])
    assert not alike([logits, big, None], [logits, big, small])
    assert not alike([logits], [torch.ones(2, 1)])


# ---------------------------------------------------------------- whole runs


def record(name: str, *overrides: str) -> dict:
    assert main(["train", *overrides, f"name={name}"]) == 0
    return json.loads(Path(f"outputs/runs/{name}/run.json").read_text())


def test_runs_say_so_and_come_out_alike(workplace, quick):
    still = ["model.dropout=0", "model.head_dropout=0", "engine.precision=fp32"]
    one = record("auto", *quick, *still)
    two = record("whole", *quick, *still, "engine.last_block=whole")
    assert one["last_block"]["last_block"] == "first token"
    assert one["last_block"]["from"].endswith("1.attention.output")
    assert two["last_block"] == {"last_block": "whole"}
    for name, value in two["metrics"].items():
        assert one["metrics"][name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.parametrize(
    ("overrides", "because"),
    [
        (["peft=linear_probe"], "nothing below the head trains"),
        (["engine.packing=on"], "rows are packed"),
        (["objective=supcon"], "the objective reads hidden states"),
        (["model.head=mean"], "reads more of it than the first token"),
    ],
)
def test_the_reason_is_on_record(overrides, because, workplace, quick):
    found = record("one", *quick, *overrides)["last_block"]
    assert found["last_block"] == "whole" and because in found["because"]
