"""Progress on stderr, as a bar and as lines."""

from __future__ import annotations

import io
import logging
import sys

import numpy as np
import pytest
from rich.console import Console as Terminal

from whet.evaluation.predictions import Predictions
from whet.tracking import progress as module
from whet.tracking.base import RunInfo
from whet.tracking.console import Console, describe
from whet.tracking.progress import Pace, amount, clock, progress

NUMBERS = {"train/loss": 0.51234, "train/lr": 2e-5, "train/tokens_per_second": 8123.4}


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def moved(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(module, "time", fake)
    return fake


def drawing(monkeypatch):
    """stderr as a terminal that keeps its text (no fixture: pytest sets stderr anew for each call)."""
    drawn = io.StringIO()
    drawn.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", drawn)
    monkeypatch.setattr(module, "terminal", lambda: Terminal(file=drawn, force_terminal=True, width=200))
    return drawn


def info(folder, **more):
    return RunInfo(folder, "my-run", {}, total_steps=1000, **more)


def lines_of(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_plain_lines_tell_everything(tmp_path, capsys, moved):
    sink = Console(progress="lines")
    sink.start(info(tmp_path, directions={"accuracy": "maximize"}))
    moved.now += 60
    sink.log(NUMBERS, 100)
    moved.now += 60
    sink.log({**NUMBERS, "validation/accuracy": 0.91, "validation/loss": 0.3}, 200)
    first, second = lines_of(capsys)
    assert first == (
        "my-run: 100/1,000 steps 10% ETA 0:09:00 elapsed 0:01:00 loss 0.5123 lr 2e-05 8,123 tokens/s"
    )
    assert "20% ETA 0:08:00" in second and second.endswith("validation/accuracy 0.91")


@pytest.mark.parametrize(("every", "count"), [(10.0, 3), (25.0, 2), (0.0, 6)])
def test_lines_keep_their_distance(tmp_path, capsys, moved, every, count):
    sink = Console(progress="lines", every_seconds=every)
    sink.start(info(tmp_path))
    for step in range(6):
        sink.log({"train/loss": 1.0}, step)
        moved.now += 5.5
    assert len(lines_of(capsys)) == count


def test_every_evaluation_has_its_line(tmp_path, capsys, moved):
    sink = Console(progress="lines", every_seconds=100)
    sink.start(info(tmp_path))
    for step in range(4):
        sink.log({"validation/loss": 1.0}, step)
        sink.log({"train/loss": 1.0}, step)
    assert len(lines_of(capsys)) == 4


def test_reports_and_the_end_are_told(tmp_path, capsys):
    sink = Console(progress="lines")
    sink.start(info(tmp_path))
    found = Predictions(np.arange(3).astype(str), np.zeros((3, 2), np.float32), np.zeros(3, int), "test")
    sink.report(found, None, {"test/accuracy": 0.91234})
    sink.finish("interrupted", {})
    assert lines_of(capsys) == ["test (3 rows): accuracy 0.9123", "my-run: interrupted"]


def test_off_is_silent(tmp_path, capsys):
    sink = Console(progress="off")
    sink.start(info(tmp_path))
    sink.log({**NUMBERS, "validation/loss": 1.0}, 1)
    sink.finish("finished", {})
    assert lines_of(capsys) == []


def test_auto_writes_lines_where_stderr_is_no_terminal(tmp_path, capsys):
    sink = Console()
    sink.start(info(tmp_path))
    sink.log(NUMBERS, 10)
    (line,) = lines_of(capsys)
    assert "loss 0.5123" in line and "\x1b" not in line


@pytest.mark.parametrize("choice", ["auto", "bar"])
def test_the_bar_shows_every_part(tmp_path, monkeypatch, capsys, moved, choice):
    screen = drawing(monkeypatch)
    sink = Console(progress=choice)
    sink.start(info(tmp_path))
    moved.now += 60
    sink.log({**NUMBERS, "validation/accuracy": 0.91}, 100)
    drawn = screen.getvalue()
    sink.finish("finished", {})
    for part in ("my-run", "100/1,000 steps", "10%", "ETA 0:09:00", "loss 0.5123", "lr 2e-05"):
        assert part in drawn
    assert "8,123 tokens/s" in drawn and "validation/accuracy 0.91" in drawn and "━" in drawn
    assert screen.getvalue().endswith("my-run: finished\n") and capsys.readouterr().out == ""


def test_log_lines_pass_above_the_bar_and_come_back_after_it(tmp_path, monkeypatch):
    screen = drawing(monkeypatch)
    handler, logger = logging.StreamHandler(), logging.getLogger("test.console")
    logger.addHandler(handler)
    try:
        sink = Console(progress="bar")
        sink.start(info(tmp_path))
        assert handler.stream is not screen
        logger.warning("a warning in between")
        sink.finish("finished", {})
        assert handler.stream is screen and sys.stderr is screen
    finally:
        logger.removeHandler(handler)
    assert any(line.endswith("a warning in between") for line in screen.getvalue().splitlines())


def test_a_second_bar_shares_the_display(tmp_path, monkeypatch):
    screen = drawing(monkeypatch)
    sink = Console(progress="bar")
    sink.start(info(tmp_path))
    with progress(10, "evaluating", "rows") as advance:
        advance(4)
        assert "evaluating" in screen.getvalue() and "4/10 rows 40%" in screen.getvalue()
        assert len(module._display._progress.task_ids) == 2
    assert len(module._display._progress.task_ids) == 1
    sink.finish("finished", {})
    assert module._display._progress is None


def test_what_is_known_is_described():
    assert describe({}) == ""
    latest = {"validation/a": 1.0, "validation/b": 2.0, "validation/c": 3.0}
    assert describe(latest) == "validation/a 1 validation/b 2"
    assert describe(latest, ("c", "validation/a")) == "validation/c 3 validation/a 1"


# ---------------------------------------------------------------- progress()


def test_short_work_leaves_no_lines(capsys, moved):
    with progress(10, "tokenizing", "rows") as advance:
        advance(10)
        moved.now += 1.9
    assert lines_of(capsys) == []


def test_long_work_tells_its_figures(capsys, moved):
    with progress(4_000_000, "downloading", "B", every_seconds=10) as advance:
        for _ in range(4):
            moved.now += 6
            advance(1_000_000)
    told = lines_of(capsys)
    assert told[0] == "downloading: 1.0 MB/4.0 MB 25% ETA 0:00:18 elapsed 0:00:06"
    assert told[1] == "downloading: 3.0 MB/4.0 MB 75% ETA 0:00:06 elapsed 0:00:18"
    assert told[2:] == ["downloading: 4.0 MB/4.0 MB in 0:00:24"]


def test_failing_work_closes_its_row(monkeypatch):
    drawing(monkeypatch)
    with pytest.raises(ValueError, match="no"), progress(10, "x", "rows"):
        raise ValueError("no")
    assert module._display._progress is None


def test_unknown_totals_have_no_percent(capsys, moved):
    with progress(0, "counting", "rows") as advance:
        moved.now += 5
        advance(1500)
    assert lines_of(capsys)[0] == "counting: 1,500 rows ETA ? elapsed 0:00:05"


def test_pace_leaves_out_start_up():
    pace = Pace(100, 0.0)
    assert pace.remaining(10, 50.0) == 450.0
    assert pace.remaining(20, 51.0) == 8.0
    assert Pace(0, 0.0).remaining(10, 50.0) is None


def test_figures_are_readable():
    assert (clock(3723.4), clock(None)) == ("1:02:03", "?")
    assert (
        amount(999, 0, "B") == "999 B" and amount(1500, 0, "B") == "1.5 kB" and "TB" in amount(10**13, 0, "B")
    )
