"""A run that was killed between two checkpoints: what its trackers show is that of a run left in peace."""

from __future__ import annotations

import json
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests import forked
from tests.tracking.test_wandb import alone, items, of_kind, records

from whet.cli.main import main
from whet.tracking.jsonl import read_metrics

KEYS = [
    "tracking=default", "tracking.log_every=2", "tracking.sinks.console.progress=off", "engine.duration=40st",
    "tracking.sinks.wandb.mode=offline", "tracking.sinks.wandb.patience=120.0", "engine.patience=null",
    "engine.batching.size=4", "engine.evaluate_every=10st", "engine.checkpoint_every=4st",
    "engine.precision=fp32",
]  # fmt: skip


def wait_for(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def in_jsonl(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    left_out = ("time", "step", "train/tokens_per_second")
    return [(line["step"], k, v) for line in lines for k, v in line.items() if k not in left_out]


def in_tensorboard(folder):
    """In the order of `metrics.jsonl`; numbers are of 32 bits."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {(e.step, tag): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}, [
        (e.step, tag) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)
    ]


def in_wandb(folder):
    rows = [items(history.item) for history in of_kind(records(folder)[1], "history")]
    kept = [{k: v for k, v in row.items() if "_table" not in k and k[0] != "_"} for row in rows]
    left_out = ("step", "train/tokens_per_second")
    return [(row["step"], k, v) for row in kept for k, v in sorted(row.items()) if k not in left_out]


@pytest.mark.parametrize("form", ["folder", "auto"])
def test_killed_between_checkpoints_is_tracked_like_an_undisturbed_run(workplace, quick, form):
    mine = [item for item in quick if not item.startswith(("engine.duration", "tracking"))]
    assert main(["train", *mine, *KEYS, "name=whole"]) == 0
    command = ["train", *mine, *KEYS, "name=killed"]
    folder, whole = (workplace / "outputs/runs" / name for name in ("killed", "whole"))
    process = forked.start("-m", "whet", *command, env=alone())
    path = folder / "metrics.jsonl"
    wait_for(lambda: path.is_file() and path.read_text().count("\n") >= 8)
    process.kill()
    process.wait()
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    chosen = (folder / "wandb/run_id").read_text()
    again = ["train", f"resume={folder}"] if form == "folder" else [*command, "resume=auto"]
    assert main(again) == 0
    assert in_jsonl(folder) == in_jsonl(whole)
    values, order = in_tensorboard(folder)
    assert len(order) == len(values)
    timed = {key for key in values if key[1] == "train/tokens_per_second"}
    straight = in_tensorboard(whole)[0]
    assert set(values) == set(straight)
    assert {key: values[key] for key in set(values) - timed} == {
        key: straight[key] for key in set(values) - timed
    }
    assert in_wandb(folder) == in_wandb(whole)
    assert len(in_wandb(folder)) > 60
    assert (folder / "wandb/run_id").read_text() == chosen
    assert of_kind(records(folder)[1], "run")[0].run_id == chosen.strip()
