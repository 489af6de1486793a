"""Objectives with unlabelled texts in whole runs: resume, frozen trunks, the command line."""

import json

import numpy as np
import pytest
from tests.engine.test_resume import end_of, folder_of, keys, kill_at, killed_run, train  # noqa: F401

from whet.augmentation.aeda import Aeda
from whet.config import build, compose
from whet.engine.train import Parts
from whet.evaluation.predictions import Predictions


@pytest.fixture
def few(keys):  # noqa: F811
    return [*keys, "task.shots=4", "engine.duration=8st", "engine.patience=null"]


def test_stopped_and_gone_on_ends_the_same(workplace, few, kill_at):  # noqa: F811
    """Draws of unlabelled texts, the teacher, the average."""
    arguments = ["objective=mean_teacher", "averaging=ema"]
    folder = killed_run(workplace, few, "killed", kill_at, 7, *arguments)
    assert train(f"resume={folder}") == 0
    assert train(*few, *arguments, "name=whole") == 0
    assert end_of(folder) == end_of(folder_of(workplace, "whole"))
    assert json.loads((folder / "run.json").read_text())["data"]["rows"]["train"] == 8


def test_beside_a_frozen_trunk(workplace, few):
    """Labelled rows may come from the cache; unlabelled ones are computed. No bit differs."""
    arguments = [
        *few,
        "objective=pseudo_label",
        "objective.threshold=0",
        "objective.start=0",
        "peft=linear_probe",
    ]
    for name in ("auto", "off"):
        assert train(*arguments, f"engine.trunk_cache={name}", f"name={name}") == 0
    records = [json.loads((folder_of(workplace, name) / "run.json").read_text()) for name in ("auto", "off")]
    assert [record["frozen"]["cache"] for record in records] == ["on", "off"]
    said = [
        Predictions.load(folder_of(workplace, n) / "predictions/test.npz").logits for n in ("auto", "off")
    ]
    assert np.array_equal(*said)


def test_without_left_out_rows(workplace, few, capsys):
    assert train(*few, "task.shots=null", "objective=uda") == 2
    assert "objective.pool=rest: no training rows are left out: set task.shots" in capsys.readouterr().err


def test_the_command_line_chooses_an_augmentation():
    told = [
        "objective=uda",
        "+augmentation@objective.augmentation=aeda",
        "objective.augmentation.rate=0.2",
        "task.shots=8",
        "task.draw=${seed}",
        "seed=7",
    ]
    config = compose("train", told)
    parts = build(config, Parts)()
    assert parts.objective.augmentation == Aeda(rate=0.2)
    assert (parts.task.shots, parts.task.draw) == (8, 7)
