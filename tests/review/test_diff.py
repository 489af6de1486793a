"""What sets two runs apart, against what was written into them."""

from __future__ import annotations

import json

import pytest
from tests.review.written import config_of, write_run

from whet.errors import RunError
from whet.review.diff import diff
from whet.review.layout import as_json
from whet.review.records import RunRecord


@pytest.fixture
def runs(tmp_path):
    same = {"versions": {"torch": "2.13", "whet": "0.1"}, "processes": 1}
    one = write_run(tmp_path / "one", 0.5, test=0.25, config=config_of("none", 5e-5), **same)
    two = write_run(
        tmp_path / "two",
        0.75,
        config=config_of("lora", 5e-5),
        **{**same, "versions": {"torch": "2.14", "whet": "0.1"}},
    )
    three = write_run(tmp_path / "three", status="failed", config=config_of("lora", 1e-3), **same)
    return [RunRecord(folder) for folder in (one, two, three)]


def test_only_what_differs_of_settings_and_surroundings(runs):
    found = diff(runs[:2])
    assert found.runs == ["one", "two"]
    assert found.config == {"peft._target_": ["whet.peft.none.none", "whet.peft.lora.lora"]}
    assert found.around == {"versions.torch": ["2.13", "2.14"]}, "the config's own hash says nothing new"
    three = diff(runs)
    assert three.config["optimizer.lr"] == [5e-5, 5e-5, 1e-3]


def test_results_are_held_against_the_first(runs):
    found = diff(runs)
    assert found.results["validation/accuracy"] == [0.5, 0.75, None]
    assert found.changes()["validation/accuracy"] == [0.25, None]
    assert found.changes()["test/accuracy"] == [None, None]
    assert diff(runs[1::-1]).changes()["validation/accuracy"] == [-0.25]
    assert json.loads(as_json(found.to_dict()))["changes"]["timings.train_s"] == [0.0, None]


def test_as_text(runs):
    lines = diff(runs[:2]).text().splitlines()
    assert lines[:2] == ["A  one", "B  two"]
    (line,) = [line for line in lines if "validation/accuracy" in line]
    assert line.split() == ["validation/accuracy", "0.5000", "0.7500", "+0.2500"]
    (line,) = [line for line in diff(runs[1::-1]).text().splitlines() if "validation/accuracy" in line]
    assert line.split()[-1] == "−0.2500"
    assert "the same settings" in diff([runs[0], runs[0]]).text()
    assert max(map(len, diff(runs).text(60).splitlines())) <= 60


def test_one_run_is_not_enough(runs):
    with pytest.raises(RunError, match="two runs or more"):
        diff(runs[:1])
