"""`whet sync` with W&B's own client process and a server on loopback that keeps what it is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import wandb
from tests.review.wandb_server import Server

from whet.cli.main import main
from whet.engine.run import read_record
from whet.evaluation.predictions import Predictions
from whet.tracking.jsonl import read_metrics
from whet.tracking.wandb import run_id

KEYS = ["tracking=default", "tracking.sinks.console.progress=off", "tracking.log_every=1",
        "tracking.sinks.wandb.patience=120.0", "tracking.sinks.wandb.project=mine"]  # fmt: skip


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Logged in there, and W&B knows of no other server; WANDB_MODE=offline is for runs, not for `whet sync`."""
    wandb.teardown()
    with Server() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
        yield found
        wandb.teardown()


def train(quick, *more):
    assert (
        main(["train", *(item for item in quick if item != "tracking=none"), *KEYS, "name=one", *more]) == 0
    )


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Filled by the first test that wants it: a finished run that was recorded offline."""
    return tmp_path_factory.mktemp("offline") / "one"


@pytest.fixture
def run(offline, workplace, quick, monkeypatch):
    """A copy of it."""
    folder = workplace / "outputs" / "runs" / "one"
    if not offline.is_dir():
        with monkeypatch.context() as patch:
            patch.setenv("WANDB_MODE", "offline")
            wandb.teardown()
            train(quick, "tags=[first]")
        shutil.copytree(folder, offline)
    if not folder.is_dir():
        shutil.copytree(offline, folder)
    return folder


def told(row):
    """What a run itself says in a row."""
    return {name: value for name, value in row.items() if name[0] != "_" and not isinstance(value, dict)}


def logged(folder):
    """The rows of its file, as W&B is to have them."""
    rows = [
        {k: v for k, v in row.items() if k != "time"} for row in read_metrics(folder / "wandb" / "rows.jsonl")
    ]
    return [{k: v for k, v in row.items() if v == v} for row in rows]


def cut(folder, rows):
    """Make it a run that was interrupted after so many rows; returns what brings it back."""
    shutil.copytree(folder, whole := folder.parents[2] / "whole")
    path = folder / "wandb" / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:rows]))
    shutil.rmtree(folder / "predictions")
    record = read_record(folder) | {"status": "interrupted", "reason": "a signal", "metrics": {}}
    (folder / "run.json").write_text(json.dumps(record))

    def back():
        for name in ("run.json", "predictions", "wandb/rows.jsonl"):
            (whole / name).rename(folder / name)

    return back


def test_a_run_is_sent_whole_and_only_once(server, run, capsys):
    assert main(["sync"]) == 0
    out = capsys.readouterr().out
    assert "outputs/runs/one  " in out and "1 sent, 0 there already, 0 failed" in out
    kept, record = server.runs[run_id(run)], read_record(run)
    assert (kept.project, kept.state, kept.told["displayName"], kept.told["tags"]) == (
        "mine",
        "finished",
        "one",
        ["first"],
    )
    rows = [told(row) for row in kept.rows]
    assert rows[: len(logged(run))] == logged(run)
    validated, tested = rows[len(logged(run)) :]
    metrics = record["metrics"]
    assert tested.items() >= {k: v for k, v in metrics.items() if k.startswith("test/")}.items()
    assert {k.split("/")[0] for k in validated} <= {"step", "validation"}
    steps = [row["_step"] for row in kept.rows]
    assert steps == sorted(set(steps))
    times = [line["time"] for line in read_metrics(run / "wandb" / "rows.jsonl")]
    assert [row["_timestamp"] for row in kept.rows][: len(times)] == times
    assert kept.summary["started"] == record["started"] and kept.summary["ended"] == record["ended"]
    assert kept.config["optimizer.lr"]["value"] == 5e-5 and kept.config["seed"]["value"] == 1
    assert kept.summary["status"] == "finished"
    assert kept.summary.items() >= metrics.items()
    tables = {name for name in server.uploads if name.endswith(".table.json")}
    assert {name.split("/")[2] for name in tables} == {"validation", "test"}
    before = (list(kept.lines), kept.written, kept.upserts)
    assert main(["sync", str(run)]) == 0
    assert (kept.lines, kept.written, kept.upserts) == before
    assert "is there already" in capsys.readouterr().out
    assert not list(run.glob("wandb/offline-run-*")), "a `wandb sync` of it would overwrite what is there"


def test_a_run_that_went_on_is_continued(server, run):
    back = cut(run, rows := len(logged(run)) // 2)
    assert main(["sync"]) == 0
    kept = server.runs[run_id(run)]
    assert [told(row) for row in kept.rows] == logged(run)[:rows]
    assert (kept.exit_code, kept.summary["status"], kept.summary["reason"]) == (
        255,
        "interrupted",
        "a signal",
    )
    back()
    assert main(["sync"]) == 0
    assert [told(row) for row in kept.rows][:-2] == logged(run)
    assert kept.written == len(kept.lines) == len(logged(run)) + 2, "no row came twice"
    assert (kept.exit_code, kept.summary["status"]) == (0, "finished")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_an_upload_that_was_cut_short_goes_on(server, run, number, code):
    server.take_lines = 3
    command = [sys.executable, "-m", "whet", "sync"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background inherits none
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not server.hanging.is_set() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    kept = server.runs[run_id(run)]
    assert len(kept.lines) == 3 and kept.exit_code is None
    server.take_lines = None
    assert main(["sync"]) == 0
    assert [told(row) for row in kept.rows][:-2] == logged(run)
    assert len(kept.lines) == len(logged(run)) + 2 and kept.state == "finished"


def test_a_split_without_charts_or_news_has_no_row(server, run):
    """A regression's validation: W&B takes no empty row, so none is waited for; the next one keeps its number."""
    validated, tested = (Predictions.load(run / "predictions" / f"{s}.npz") for s in ("validation", "test"))
    numbers = np.zeros(len(validated), dtype=np.float32)
    Predictions(validated.ids, numbers[:, None], numbers, "validation").save(
        run / "predictions" / "validation.npz"
    )
    (run / "predictions" / "test.npz").unlink()
    assert main(["sync"]) == 0
    kept = server.runs[run_id(run)]
    assert [told(row) for row in kept.rows] == logged(run)
    tested.save(run / "predictions" / "test.npz")
    assert main(["sync"]) == 0
    assert len(kept.rows) == len(logged(run)) + 1
    assert kept.rows[-1]["_step"] == kept.rows[-2]["_step"] + 2


def test_what_was_online_needs_nothing(server, workplace, quick, monkeypatch, capsys):
    """The numbers of rows rebuilt from the folder are those that the run itself gave them."""
    monkeypatch.delenv("WANDB_MODE")
    wandb.teardown()
    train(quick)
    folder = workplace / "outputs" / "runs" / "one"
    kept = server.runs[run_id(folder)]
    before = (list(kept.lines), kept.written, kept.upserts)
    assert kept.state == "finished" and len(kept.lines) == len(logged(folder)) + 2
    capsys.readouterr()
    assert main(["sync", "outputs"]) == 0
    assert "outputs/runs/one  is there already" in capsys.readouterr().out
    assert (kept.lines, kept.written, kept.upserts) == before


def test_the_server_has_the_last_word(server, run):
    """Whatever the note in the folder says."""
    assert main(["sync"]) == 0
    sent = list(server.runs.pop(run_id(run)).lines)
    assert main(["sync"]) == 0
    kept = server.runs[run_id(run)]
    assert [told(row) for row in kept.rows] == [told(json.loads(line)) for line in sent]


def test_one_run_that_fails_does_not_keep_the_others(server, run, capsys):
    shutil.copytree(run, other := run.parent / "two")
    (other / "wandb" / "run_id").write_text("other\n")
    server.refused.add(run_id(run))
    assert main(["sync", "project=elsewhere"]) == 1
    told = capsys.readouterr()
    assert "outputs/runs/one  failed: W&B" in told.out and "1 sent, 0 there already, 1 failed" in told.out
    assert "whet: 1 run couldn't be sent" in told.err
    assert (server.runs["other"].project, server.runs["other"].state) == ("elsewhere", "finished")


def test_a_dry_run_asks_nobody(run, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert main(["sync", "dry=true"]) == 0
    assert (
        f"outputs/runs/one  {len(logged(run)) + 2} rows to send (mine, finished)" in capsys.readouterr().out
    )
    (run / "wandb" / "synced.json").write_text(json.dumps({"server": "s", "project": "mine", "entity": "team",
                                                           "last": 10**6, "status": "finished"}))  # fmt: skip
    assert main(["sync", "dry=true"]) == 0
    assert "outputs/runs/one  is there already (team/mine, finished)" in capsys.readouterr().out


def test_what_is_left_out_is_told(run, capsys):
    shutil.copytree(run, local := run.parent / "local")
    (local / "wandb" / "run_id").unlink()
    shutil.copytree(run, alive := run.parent / "alive")
    record = read_record(alive) | {
        "status": "running",
        "pid": os.getppid(),
        "started": "2999-01-01T00:00:00+00:00",
    }
    (alive / "run.json").write_text(json.dumps(record))
    assert main(["sync", "dry=true"]) == 0
    out = capsys.readouterr().out
    assert "left out        1 run: not recorded for W&B (local=true sends it all the same)" in out
    assert f"left out        1 run: still running (process {os.getppid()})" in out
    assert "runs/local  " not in out
    assert main(["sync", "dry=true", "local=true"]) == 0
    assert "runs/local  " in capsys.readouterr().out
    assert not (local / "wandb" / "run_id").exists(), "a dry run writes nothing"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 1, "whet: whet sync needs a W&B login: run `wandb login` or set WANDB_API_KEY"),
        (["nowhere"], 2, "whet: nowhere: no run there (no run.json)"),
        (["projekt=x"], 2, "did you mean project?"),
    ],
)
def test_one_clear_error(run, monkeypatch, tmp_path, capsys, arguments, code, said):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()
    assert main(["sync", *arguments]) == code
    err = capsys.readouterr().err.splitlines()
    assert said in err[-1] and len(err) == 1


def test_help(capsys):
    assert main(["sync", "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: whet sync" in out and "dry=false" in out
