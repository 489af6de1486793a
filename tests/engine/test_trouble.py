"""NaN, memory that runs out, and what determinism promises."""

from __future__ import annotations

import json
import logging
import math
import resource
import signal

import pytest
import torch

from whet.cli.main import main
from whet.engine.run import LogFile
from whet.engine.step import Stepper, is_out_of_memory
from whet.tracking.jsonl import read_metrics


@pytest.fixture
def keys(quick):
    mine = [item for item in quick if not item.startswith(("engine.duration", "tracking"))]
    return [*mine, "engine.duration=8st", "tracking=local", "tracking.log_every=1", "engine.precision=fp32",
            "engine.batching.size=8", "engine.evaluate_every=4st"]  # fmt: skip


def poison(monkeypatch, steps):
    """The loss of the updates in `steps` becomes NaN."""
    whole = Stepper._backward
    now = {"step": -1}
    update = Stepper.update

    def backward(self, batch, weight):
        loss = whole(self, batch, weight)
        return loss * math.nan if now["step"] in steps else loss

    def counted(self, plan):
        now["step"] = plan.step
        return update(self, plan)

    monkeypatch.setattr(Stepper, "_backward", backward)
    monkeypatch.setattr(Stepper, "update", counted)


def test_a_skipped_update_is_told_and_training_goes_on(workplace, keys, monkeypatch, told):
    poison(monkeypatch, {2, 5})
    assert main(["train", *keys, "engine.on_nan=skip", "name=skip"]) == 0
    folder = workplace / "outputs" / "runs" / "skip"
    told = [line for line in told if "left out" in line]
    assert ["step 3" in told[0], "step 6" in told[1], len(told)] == [True, True, 2]
    losses = {m["step"]: m["train/loss"] for m in read_metrics(folder / "metrics.jsonl") if "train/loss" in m}
    assert [step for step, loss in losses.items() if math.isnan(loss)] == [3, 6]
    facts = json.loads((folder / "nonfinite-3.json").read_text())
    assert (facts["step"], len(facts["ids"])) == (3, 8)


def test_stop_is_the_default(workplace, keys, monkeypatch, capsys):
    poison(monkeypatch, {2})
    assert main(["train", *keys, "name=stop"]) == 1
    assert "loss is nan at step 3" in capsys.readouterr().err
    record = json.loads((workplace / "outputs" / "runs" / "stop" / "run.json").read_text())
    assert record["status"] == "failed"
    assert (workplace / "outputs" / "runs" / "stop" / "nonfinite.json").is_file()


def test_ten_in_a_row_end_training(workplace, keys, monkeypatch, capsys):
    poison(monkeypatch, set(range(100)))
    assert main(["train", *keys, "engine.duration=50st", "engine.on_nan=skip", "name=all"]) == 1
    assert "at step 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(workplace, keys, monkeypatch, told, error):
    """With dropout off the update is the same sum over the same rows: equal logits to rounding."""
    from whet.evaluation.predictions import Predictions

    mine = [*keys, "model.dropout=0.0", "model.head_dropout=0.0"]
    assert main(["train", *mine, "name=whole"]) == 0
    whole = Stepper._backward

    def small(self, batch, weight):
        loss = whole(self, batch, weight)  # memory runs out after some gradients are already there
        if len(batch.rows) > 3:
            raise error
        return loss

    monkeypatch.setattr(Stepper, "_backward", small)
    assert main(["train", *mine, "name=small"]) == 0
    told = [line for line in told if "out of memory" in line]
    assert ["cut into 2" in told[0], "cut into 4" in told[1], len(told)] == [True, True, 2]
    pairs = [
        Predictions.load(workplace / "outputs/runs" / n / "predictions/test.npz").logits
        for n in ("whole", "small")
    ]
    assert abs(pairs[0] - pairs[1]).max() < 1e-5


def test_memory_too_small_for_one_row_is_an_error(workplace, keys, monkeypatch):
    def none(self, batch, weight):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stepper, "_backward", none)
    with pytest.raises(torch.OutOfMemoryError):
        main(["train", *keys])


def test_other_errors_are_not_taken_for_memory():
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert is_out_of_memory(torch.OutOfMemoryError("x"))


def test_a_full_disk_is_told_in_one_line(workplace, keys, capsys):
    """Here no file may be larger than a limit that `run.json` doesn't fit."""
    assert main(["train", *keys, "name=warm"]) == 0
    capsys.readouterr()
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, usual[1]))
    try:
        assert main(["train", *keys, "name=full"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    err = capsys.readouterr().err
    told = [line for line in err.splitlines() if line.startswith("whet: ")]
    assert "Traceback" not in err
    assert len(told) == 1 and "File too large" in told[0] and "resume=auto" in told[0]


@pytest.mark.parametrize("limit", [0, 40, 100])
def test_a_log_file_waits_for_room(tmp_path, capsys, limit):
    """Lines that found no room come later, in order; nothing is said twice."""
    handler, logger = LogFile(tmp_path / "train.log"), logging.getLogger("whet")
    logger.addHandler(handler)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        for number in range(20):
            logger.warning("line %d", number)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        signal.signal(signal.SIGXFSZ, before)
        logger.removeHandler(handler)
    handler.close()
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("line")] == [f"line {number}" for number in range(20)]
    assert sum("can't be written" in line for line in lines) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_deterministic_asks_torch_and_refuses_other_versions(workplace, keys, monkeypatch, capsys):
    assert main(["train", *keys, "name=plain"]) == 0
    assert not torch.are_deterministic_algorithms_enabled()
    whole = Stepper.update

    def die(self, update):
        if update.step == 6:
            raise KeyboardInterrupt
        return whole(self, update)

    monkeypatch.setattr(Stepper, "update", die)
    for name, switch in (("exact", "true"), ("loose", "false")):
        assert main(["train", *keys, f"name={name}", f"engine.deterministic={switch}"]) == 130
        assert torch.are_deterministic_algorithms_enabled() == (switch == "true")
        path = workplace / "outputs" / "runs" / name / "run.json"
        record = json.loads(path.read_text())
        record["versions"]["torch"] = "1.0"
        path.write_text(json.dumps(record))
    monkeypatch.setattr(Stepper, "update", whole)
    capsys.readouterr()
    exact = workplace / "outputs/runs/exact"
    assert main(["train", f"resume={exact}"]) == 2
    assert "another torch" in capsys.readouterr().err
    record = json.loads((exact / "run.json").read_text())
    assert torch.backends.cpu.get_cpu_capability() in record["hardware"]["cpu"]
    record["versions"]["torch"], record["hardware"]["cpu"] = torch.__version__, "Z80, DEFAULT"
    (exact / "run.json").write_text(json.dumps(record))
    assert main(["train", f"resume={exact}"]) == 2
    assert "another cpu" in capsys.readouterr().err
    del record["hardware"]["cpu"]  # as earlier versions wrote it
    (exact / "run.json").write_text(json.dumps(record))
    assert main(["train", f"resume={exact}"]) == 0
    assert main(["train", f"resume={workplace / 'outputs/runs/loose'}"]) == 0
    assert "another torch" in capsys.readouterr().err
    torch.use_deterministic_algorithms(False)
