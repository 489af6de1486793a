"""`whet dashboard`: real pages, asked over HTTP, and every way in which they end."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request

import optuna
import psutil
import pytest

from whet.cli.completion import query
from whet.cli.dashboard import chosen
from whet.cli.main import main
from whet.sweep.storage import default_url, open_storage
from whet.tracking.base import RunInfo
from whet.tracking.tensorboard import TensorBoard


def study_at(folder, started="2026-01-01", storage=None):
    """A sweep with one finished trial."""
    folder.mkdir(parents=True)
    facts = {"study": folder.name, "storage": storage or default_url(folder), "started": started}
    (folder / "sweep.json").write_text(json.dumps(facts))
    study = optuna.create_study(study_name=folder.name, storage=open_storage(default_url(folder), folder))
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 1.0)
    return study


def run_at(folder):
    sink = TensorBoard()
    sink.start(RunInfo(folder, folder.name, {"seed": 1}))
    sink.log({"train/loss": 1.0}, 1)
    sink.finish("finished", {})


@pytest.fixture
def begun(tmp_path):
    """Starts the command in a folder; whatever it leaves is killed."""
    started = []

    def begin(*arguments):
        command = [sys.executable, "-m", "whet", "dashboard", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("Ctrl-C"):
                break
        children = psutil.Process(process.pid).children(recursive=True)
        started.extend(children)
        return process, lines, children

    yield begin
    for process in started:
        if psutil.pid_exists(process.pid):
            process.kill()


def address_of(lines, name):
    (line,) = [line for line in lines if line.startswith(name)]
    return line.split()[-1]


def ask(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def gone(processes, seconds=20):
    """Whether they all end; a child that outlives its parent is none's but init's."""
    end = time.monotonic() + seconds
    while alive := [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
        if time.monotonic() > end:
            return alive
        time.sleep(0.05)
    return True


def test_both_pages_until_ctrl_c(tmp_path, begun):
    sweeps = tmp_path / "outputs" / "sweeps"
    study_at(sweeps / "older", "2026-01-01")
    study = study_at(sweeps / "newer", "2026-01-02")
    run_at(sweeps / "newer" / "0000")
    process, lines, children = begun()
    page, board = address_of(lines, "Optuna dashboard"), address_of(lines, "TensorBoard")
    assert page.endswith("/dashboard/studies/1")
    assert "study newer, the newest unless study= names one of: older" in lines
    home = page.removesuffix("dashboard/studies/1")
    (shown,) = ask(f"{home}api/studies")["study_summaries"]
    assert shown["study_name"] == "newer"
    assert ask(f"{board}data/runs") == ["sweeps/newer/0000/tensorboard"]
    heard = [c for child in children for c in child.net_connections() if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in heard} <= {"127.0.0.1", "::1"} and len(heard) >= 2
    for number in range(2, 7):  # a peer goes on while the page is asked
        study.tell(study.ask(), 0.5)
        assert ask(f"{home}api/studies/1")["trials"] and len(study.trials) == number
        with sqlite3.connect(sweeps / "newer" / "study.db", timeout=0) as file:
            file.execute("BEGIN EXCLUSIVE")  # at once: nobody holds any lock between two requests
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert gone(children) is True


def test_when_one_page_dies_the_other_stops(tmp_path, begun):
    study_at(tmp_path / "one" / "search")
    run_at(tmp_path / "one" / "run")
    process, lines, children = begun("one", "storage=sqlite:///one/search/study.db")
    assert len(lines) == 3
    (shown,) = ask(f"{address_of(lines, 'Optuna dashboard')}api/studies")["study_summaries"]
    assert shown["study_name"] == "search"
    board = int(address_of(lines, "TensorBoard").rstrip("/").rpartition(":")[2])
    (victim,) = [c for c in children if any(x.laddr.port == board for x in c.net_connections())]
    victim.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("whet: TensorBoard has ended (SIGKILL)") and err.count("\n") == 1
    assert gone(children) is True


def test_no_page_outlives_a_killed_command(tmp_path, begun):
    run_at(tmp_path / "run")
    process, lines, children = begun(".", "host=localhost")
    assert "no sweep below ." in lines and any(line.startswith("listening on localhost:") for line in lines)
    assert children
    process.kill()
    process.wait()
    assert gone(children) is True


def test_which_study(tmp_path):
    for name, started in (("older", "2026-01-01"), ("newer", "2026-01-02")):
        study_at(tmp_path / "sweeps" / name, started)
    (tmp_path / "sweeps").rename(place := tmp_path / "moved")
    newer = (default_url(place / "newer"), "newer")
    assert chosen(place, None, None) == (newer, ["older"])
    assert chosen(place, "older", None) == ((default_url(place / "older"), "older"), ["newer"])
    assert chosen(place / "newer", None, None) == (newer, [])
    assert chosen(place, "any", "postgresql://h/db") == (("postgresql://h/db", "any"), [])


def test_a_port_that_is_taken(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study_at(tmp_path / "away")
    (tmp_path / "outputs").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["dashboard", "storage=sqlite:///away/study.db", f"port={port}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"whet: Optuna dashboard can't start at 127.0.0.1:{port}: ") and "in use" in err
    assert err.endswith("; leave its port out to take a free one\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "outputs: neither a sweep nor TensorBoard's events: nothing to show"),
        (["nowhere"], "nowhere: no such folder"),
        (["outputs", "other"], "other: one place at a time"),
        (["outputs", "study=serach"], "study=serach: no such sweep below outputs"),
        (["sweeps", "study=serach"], "did you mean search?"),
        (["secret"], "storage: search is at postgresql://u:***@h/db, whose password isn't kept"),
        (["port=70000"], "port=70000"),
        (["storage=sqlite:///nowhere.db"], "storage=sqlite:///nowhere.db: no such file"),
    ],
)
def test_one_clear_error(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    study_at(tmp_path / "sweeps" / "search")
    study_at(tmp_path / "secret" / "search", storage="postgresql://u:***@h/db")
    assert main(["dashboard", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "nowhere.db").exists()


def test_help(capsys):
    assert main(["dashboard", "--help"]) == 0
    assert "host=127.0.0.1" in capsys.readouterr().out
    assert query("whet dashboard t") == ["tensorboard_port="]
