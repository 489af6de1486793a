"""The live table of a sweep, on a real terminal."""

from __future__ import annotations

import os
import pty
import re
import sys
import threading
import time

import optuna
import pytest
from optuna.trial import TrialState

from whet.sweep.results import Progress
from whet.sweep.storage import default_url
from whet.sweep.study import Address, Beat, Budgeted


@pytest.fixture
def screen(monkeypatch):
    """What a terminal of 120 columns gets, as it comes."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    seen = []

    def read():
        while True:
            try:
                seen.append(os.read(ours, 4096))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as file:
        yield file, lambda: re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(seen).decode(errors="replace"))
    reader.join()
    os.close(ours)


def until(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_table_follows_the_trials(screen, tmp_path, monkeypatch):
    file, screen = screen
    monkeypatch.setattr(sys, "stderr", file)
    study = Budgeted.open(Address("s", default_url(tmp_path), tmp_path, ("maximize",)))
    study.fill(3, 0, [])
    progress = Progress(study, ["validation/accuracy"], every=0.02)
    with progress.watched():
        trial = study.take(Beat())
        trial.suggest_float("optimizer.lr", 1e-5, 1e-3, log=True)
        trial.report(0.25, 1)
        assert until(lambda: "running" in screen() and "0.2500" in screen()), screen()
        trial.study.tell(trial, 0.75)
        assert until(lambda: "best 0.7500 (trial 0), 1/3 trials" in screen()), screen()
        trial = study.take(Beat())
        trial.suggest_float("optimizer.lr", 1e-5, 1e-3, log=True)
        trial.study.tell(trial, state=TrialState.PRUNED)
        progress.tell()
        assert until(lambda: "pruned" in screen())
    told = screen()
    assert "optimizer.lr" in told and "validation/accuracy" in told and "ETA" in told
    assert "complete" in told
    assert "trial 1  2/3" not in told, "no lines beside a table"


def test_lines_where_there_is_no_terminal(capsys, tmp_path):
    study = Budgeted.open(Address("s", default_url(tmp_path), tmp_path, ("minimize",)))
    study.fill(1, 0, [])
    progress = Progress(study, ["loss"], every=0.02)
    with progress.watched():
        trial = study.take(Beat())
        trial.suggest_int("k", 3, 3)
        trial.study.tell(trial, 0.5)
        progress.tell()
    assert (
        capsys.readouterr().err == "trial 0  1/1  complete  0.5000  k=3  best 0.5000 (trial 0)  ETA 0:00:00\n"
    )
    assert optuna.load_study(study_name="s", storage=default_url(tmp_path)).best_value == 0.5
