"""Trackers watch; they never change what they watch."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest

from whet.cli.main import main
from whet.evaluation.predictions import Predictions


def logits(workplace, name: str) -> np.ndarray:
    return Predictions.load(workplace / "outputs" / "runs" / name / "predictions" / "test.npz").logits


HUNG = threading.Event()


def hang(*arguments, **settings):
    time.sleep(120)
    HUNG.set()


def fail(*arguments, **settings):
    raise RuntimeError("W&B is down")


@pytest.fixture
def plain(workplace, quick):
    assert main(["train", *quick, "name=plain"]) == 0
    return logits(workplace, "plain")


@pytest.mark.parametrize("fault", [None, hang, fail], ids=["well", "hangs", "raises"])
def test_wandb_leaves_the_result_identical(workplace, quick, plain, monkeypatch, fault, capsys):
    import wandb

    if fault is not None:
        monkeypatch.setattr(wandb, "init", fault)
    keys = [
        "tracking=default",
        "tracking.sinks.wandb.patience=1.0" if fault else "tracking.sinks.wandb.patience=120.0",
    ]
    assert main(["train", *quick, *keys, "name=watched"]) == 0
    assert not HUNG.is_set()
    assert np.array_equal(logits(workplace, "watched"), plain)
    folder = workplace / "outputs" / "runs" / "watched"
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    told = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
    assert len(told) == 1
    assert ("recorded offline" in told[0]) == (fault is None)
    if fault is None:
        assert list((folder / "wandb").glob("offline-run-*/*.wandb"))


def test_local_sinks_leave_the_result_identical(workplace, quick, plain):
    assert main(["train", *quick, "tracking=local", "tracking.log_every=1", "name=watched"]) == 0
    assert np.array_equal(logits(workplace, "watched"), plain)


def test_a_tracker_that_draws_random_numbers_changes_nothing(workplace, quick, plain, monkeypatch):
    import random

    import torch

    from whet.tracking.base import Tracking

    whole = Tracking.log

    def drawing(self, metrics, step):
        random.random(), np.random.rand(3), torch.rand(3)
        whole(self, metrics, step)

    monkeypatch.setattr(Tracking, "log", drawing)
    assert main(["train", *quick, "tracking=local", "tracking.log_every=1", "name=watched"]) == 0
    assert np.array_equal(logits(workplace, "watched"), plain)


def test_log_every_thins_the_log(workplace, quick):
    from whet.tracking.jsonl import read_metrics

    counts = []
    for every in (1, 3):
        keys = [
            "tracking=local",
            f"tracking.log_every={every}",
            "engine.duration=6st",
            "engine.evaluate_every=1.0",
        ]
        assert main(["train", *quick, *keys, f"name=n{every}"]) == 0
        lines = read_metrics(workplace / "outputs" / "runs" / f"n{every}" / "metrics.jsonl")
        counts.append(sum("train/loss" in line for line in lines))
    assert counts == [6, 2]
