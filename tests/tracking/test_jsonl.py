"""metrics.jsonl: every number can be read back, whatever happened to the run."""

from __future__ import annotations

import json
import math
import resource

import numpy as np
import pytest

from whet.evaluation.predictions import Predictions
from whet.tracking.base import RunInfo, Tracking
from whet.tracking.jsonl import Jsonl, read_metrics


def started(folder):
    sink = Jsonl()
    sink.start(RunInfo(folder, "run", {}))
    return sink


def test_lines_carry_step_time_and_metrics_and_are_there_at_once(tmp_path):
    sink = started(tmp_path)
    sink.log({"train/loss": 0.5}, 10)
    sink.log({"validation/accuracy": np.float32(0.25)}, 20)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["time"] > 1e9) for line in lines] == [(10, True), (20, True)]
    assert lines[0]["train/loss"] == 0.5 and lines[1]["validation/accuracy"] == 0.25


def test_values_that_json_lacks_are_strings_and_come_back_as_numbers(tmp_path):
    sink = started(tmp_path)
    sink.log({"a": math.nan, "b": math.inf, "c": -math.inf}, 1)
    sink.finish("finished", {})
    raw = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (raw["a"], raw["b"], raw["c"]) == ("nan", "inf", "-inf")
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(line["a"]) and line["b"] == math.inf and line["c"] == -math.inf


def test_a_torn_last_line_is_left_out_and_a_resumed_run_appends_after_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    started(tmp_path).log({"train/loss": 1.0}, 1)
    with path.open("a") as file:
        file.write('{"step": 2, "train/lo')
    assert [line["step"] for line in read_metrics(path)] == [1]
    started(tmp_path).log({"train/loss": 0.5}, 2)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path):
    """And what was logged of the checkpoint's own update, before it or after, isn't told again."""
    for resumed, steps, value in ((None, (1, 2, 3, 4), 0.0), (2, (2, 3, 4, 5), 1.0)):
        sink = Jsonl()
        sink.start(RunInfo(tmp_path, "run", {}, resumed_after=resumed))
        for step in steps:
            sink.log({"train/loss": value}, step)
            if step == 2:
                sink.log({"validation/accuracy": value}, step)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    shown = [(line["step"], line.get("train/loss"), line.get("validation/accuracy")) for line in lines]
    assert shown == [(1, 0, None), (2, 0, None), (2, None, 0), (3, 1, None), (4, 1, None), (5, 1, None)]


def test_lines_wait_while_the_disk_is_full(tmp_path, caplog):
    sink = started(tmp_path)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for step in range(30):
            if step == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (300, usual[1]))
            if step == 20:
                resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            sink.log({"train/loss": step / 7}, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    sink.finish("finished", {})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["train/loss"]) for line in lines] == [(n, n / 7) for n in range(30)]
    assert len([record for record in caplog.records if "can't be written" in record.message]) == 1


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match="delimiter"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_report_adds_what_the_run_has_not_logged(tmp_path):
    sink = started(tmp_path)
    sink.log({"validation/accuracy": 0.5}, 7)
    nothing = Predictions(np.array(["0"]), np.zeros((1, 2), np.float32), np.array([0]), "test")
    sink.report(nothing, None, {"accuracy": 0.75})
    sink.report(nothing, None, {"validation/accuracy": 0.5})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert len(lines) == 2 and lines[1]["test/accuracy"] == 0.75 and lines[1]["step"] == 7


def test_logging_before_start_is_an_error():
    with pytest.raises(RuntimeError, match="start"):
        Jsonl().log({"a": 1.0}, 1)


def test_tracking_without_sinks_does_nothing(tmp_path):
    tracking = Tracking()
    tracking.start(RunInfo(tmp_path, "run", {}))
    tracking.log({"train/loss": 1.0}, 1)
    tracking.finish("finished", {})
    assert list(tmp_path.iterdir()) == []


def test_tracking_passes_everything_on_to_each_sink(tmp_path):
    folders = {name: tmp_path / name for name in ("a", "b")}
    sinks = {name: Jsonl() for name in folders}
    for name, sink in sinks.items():
        sink.start(RunInfo(folders[name], name, {}))
    Tracking(sinks=dict(sinks)).log({"train/loss": 1.0}, 3)
    assert [read_metrics(folder / "metrics.jsonl")[0]["step"] for folder in folders.values()] == [3, 3]
