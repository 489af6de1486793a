"""What tells runs apart, on records made by hand."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from whet.review.compare import Difference
from whet.review.contrast import contrast, curves_of, forest, primary_of, shown, tasks_of
from whet.review.records import RunRecord

NONE = {"_target_": "whet.peft.none.none"}
LORA = {"_target_": "whet.peft.lora.lora", "r": 8}
TASK = {"_target_": "whet.task.single_label.SingleLabel", "name": "mine", "text": "a"}


def run(folder, name, peft=NONE, seed=1, lr=1e-3, task=TASK, accuracy=0.5, **more):
    place = folder / name
    place.mkdir(parents=True)
    config = {"task": task, "peft": peft, "optimizer": {"_target_": "whet.optimizer.adamw.adamw", "lr": lr},
              "seed": seed, "name": name, "paths": {"output": name}}  # fmt: skip
    OmegaConf.save(OmegaConf.create(config), place / "config.yaml")
    record = {"name": name, "status": "finished", "seed": seed, "metrics": {"test/accuracy": accuracy},
              "best": {"metric": "validation/accuracy"}, **more}  # fmt: skip
    (place / "run.json").write_text(json.dumps(record))
    return RunRecord(place)


def test_a_groups_choice_stands_for_its_settings(tmp_path):
    runs = [run(tmp_path, "a"), run(tmp_path, "b", LORA), run(tmp_path, "c", LORA | {"r": 4}, seed=2)]
    found = contrast(runs)
    assert found.values == {"peft": ["none", "lora", "lora"], "seed": [1, 1, 2]}
    assert found.groups == ["peft none", "peft lora", "peft lora"]
    both = contrast(runs[1:])
    assert both.values == {"peft.r": [8, 4], "seed": [1, 2]}
    assert both.groups == ["r 8", "r 4"]


def test_what_a_run_is_called_and_where_it_lies_is_no_difference(tmp_path):
    found = contrast([run(tmp_path, "a"), run(tmp_path, "b")])
    assert found.keys == []
    assert found.groups == ["all runs", "all runs"]


def test_by_seed(tmp_path):
    runs = [
        run(tmp_path, "a", seed=1, accuracy=0.5), run(tmp_path, "b", seed=2, accuracy=0.6),
        run(tmp_path, "c", seed=1, lr=0.1, accuracy=0.7), run(tmp_path, "d", seed=1, lr=0.1, accuracy=0.8),
        run(tmp_path, "e", seed=3, lr=0.1, accuracy=None),
    ]  # fmt: skip
    expected = {"lr 0.001": {1: 0.5, 2: 0.6}, "lr 0.1": {1: 0.8}}
    assert contrast(runs).by_seed("test/accuracy") == expected
    assert contrast(runs).by_seed("test/f1") == {}


def test_names_are_told_apart_by_their_folders(tmp_path):
    runs = [run(tmp_path / "x", "0000"), run(tmp_path / "y", "0000"), run(tmp_path / "y", "0001")]
    assert contrast(runs).names == ["x/0000", "y/0000", "0001"]
    for record, value in zip(runs, (0.1, 0.2, 0.3), strict=True):
        (record.folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/loss": value}) + "\n")
    curves = curves_of(contrast(runs), "train/loss")
    assert curves == {"x/0000": [(1.0, 0.1)], "y/0000": [(1.0, 0.2)], "0001": [(1.0, 0.3)]}


def test_tasks_and_metrics_that_do_not_compare(tmp_path):
    other = run(tmp_path, "b", task=TASK | {"name": "theirs", "text": "b"}, best={"metric": "validation/f1"})
    runs = [run(tmp_path, "a"), other]
    assert contrast(runs).values == {"task": ["mine", "theirs"]}
    assert tasks_of(runs) == {"mine", "theirs"}
    assert primary_of(runs) is None
    assert primary_of(runs[:1]) == "accuracy"


def test_forest():
    nan = float("nan")
    figure = forest([Difference("b", 3, 0.1, 0.05, 0.2), Difference("c", 1, -0.2, nan, nan)], "a", "accuracy")
    (dots,) = figure.data
    assert (dots.x, dots.y) == ((0.1, -0.2), ("b", "c"))
    assert dots.error_x.array == pytest.approx((0.1, None))
    assert dots.error_x.arrayminus == pytest.approx((0.05, None))
    assert figure.layout.shapes[0].x0 == 0
    assert "to: a" in figure.layout.title.text


def test_values_for_people():
    assert [shown(v) for v in (None, True, 1e-5, 12, "x")] == ["null", "true", "1e-05", "12", "x"]
