"""Pretraining on a task's texts: exact sums, resume, a directory that fine-tuning starts from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.engine.test_resume import Killed, kill_at  # noqa: F401

from whet.cli.main import main
from whet.data.tokens import encode
from whet.engine.pretrain import hidden_counts
from whet.model.tiny import byte_tokenizer
from whet.tracking.jsonl import read_metrics

QUICKLY = [
    "task=mine", "model=tiny", "tracking.sinks.console.progress=off", "~tracking.sinks.tensorboard",
    "engine.threads=1", "engine.duration=6st", "engine.evaluate_every=3st", "engine.batching.size=24",
    "engine.precision=fp32", "engine.checkpoint_every=2st", "optimizer.lr=3e-3", "tracking.log_every=1",
]  # fmt: skip


def pretrain(*arguments):
    return main(["pretrain", *arguments])


def place(name):
    return Path("outputs/pretraining") / name


def lines(folder):
    return [
        {k: v for k, v in line.items() if k not in ("time", "train/tokens_per_second")}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_how_many_tokens_are_hidden():
    tokenizer = byte_tokenizer()
    tokens = encode([("abcdefghij",), ("a",), ("",), ("abcdefghijklmnopqrst",)], tokenizer, 16)
    assert hidden_counts(tokens, tokenizer.all_special_ids, 0.15).tolist() == [2, 1, 0, 2]
    assert hidden_counts(tokens, tokenizer.all_special_ids, 0.5).tolist() == [5, 1, 0, 7]


def test_it_learns_resumes_and_serves_as_weights(workplace, kill_at, capsys):  # noqa: F811
    assert pretrain(*QUICKLY, "name=whole", "engine.duration=12st") == 0
    told = capsys.readouterr().out
    assert "whet train model=local model.weights.path=outputs/pretraining/whole/model" in told
    losses = [line["validation/loss"] for line in lines(place("whole")) if "validation/loss" in line]
    assert losses[-1] < losses[0] - 0.1
    assert record(place("whole"))["metrics"]["validation/perplexity"] == pytest.approx(np.exp(min(losses)))
    kill_at(7)
    with pytest.raises(Killed):
        pretrain(*QUICKLY, "name=killed", "engine.duration=12st")
    assert pretrain("resume=outputs/pretraining/killed") == 0
    assert lines(place("killed")) == lines(place("whole"))
    one, other = (load_file(place(name) / "model/model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in {*one, *other})
    assert not list((place("killed") / "checkpoints").glob("*/training*"))
    local = ["model=local", "model.weights.path=outputs/pretraining/whole/model"]
    assert (
        main(
            [
                "train",
                "task=mine",
                *local,
                "tracking=none",
                "engine.threads=1",
                "engine.duration=1st",
                "name=tuned",
            ]
        )
        == 0
    )
    assert record(Path("outputs/runs/tuned"))["status"] == "finished"


def test_settings_change_it(workplace):
    (workplace / "more.txt").write_text("another text\n" * 3 + "one more\n")
    found = []
    for number, more in enumerate(([], ["rate=0.4"], ["texts=more.txt"], ["seed=2"])):
        assert pretrain(*QUICKLY, "engine.duration=1st", f"name=n{number}", *more) == 0
        found.append(lines(place(f"n{number}"))[0]["train/loss"])
    assert len(set(found)) == 4


def test_accumulated_it_is_one_batch(workplace):
    """The divisor is the number of hidden tokens of the whole window; dropout off, masks the same."""
    import whet.engine.pretrain as story

    found = []
    for cut in (["engine.batching.size=24"], ["engine.batching.size=1", "engine.accumulate=24"]):
        arguments = [
            *QUICKLY,
            *cut,
            "engine.duration=1st",
            "model.dropout=0",
            "rate=0.99",
            "engine.batching.pool=1",
        ]
        name = f"cut{len(found)}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(story, "hide", lambda ids, counts, tokenizer, generator: (ids, ids > 4))
            patch.setattr(story, "hidden_counts", lambda tokens, special, rate: np.diff(tokens.offsets) - 2)
            assert pretrain(*arguments, f"name={name}") == 0
        found.append(lines(place(name))[0]["train/loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["engine.compile=true"], "engine.compile=True: not for pretraining"),
        (["engine.packing=on"], "engine.packing=on: not for pretraining"),
        (["texts=nowhere.txt"], "texts=nowhere.txt"),
        (["rate=1.5"], "rate=1.5"),
        (["resume=nowhere"], "not a run folder"),
    ],
)
def test_what_is_refused(workplace, arguments, told, capsys):
    assert pretrain(*QUICKLY, *arguments) == 2
    assert told in capsys.readouterr().err
    assert not (workplace / "outputs").exists()
