"""Eight peers, four kills; many that start at once: on SQLite and on a real PostgreSQL."""

import os
import signal
import time

import pytest
from optuna.trial import TrialState
from tests import forked
from tests.sweep import postgres

from whet.sweep.storage import default_url
from whet.sweep.study import PEER, Address, Budgeted, Watch

WORKER = """
import sys, time
from pathlib import Path
from whet.sweep.study import Address, Beat, Budgeted, Watch
url, folder, total, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
study = Budgeted.open(Address("s", url, folder, ("maximize",)))
study.keep_to({"a": 1})
study.fill(total, 0, [])
(folder / f"ready-{sys.argv[5]}").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
beat, watch = Beat(), Watch(60.0)
while study.is_open():
    study.revive(watch)
    trial = study.take(beat)
    if trial is None:
        time.sleep(0.05)
        continue
    trial.suggest_float("x", 0, 1)
    time.sleep(seconds)
    trial.study.tell(trial, trial.params["x"])
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        yield default_url(tmp_path)
        return
    if postgres.programs() is None:
        pytest.skip("PostgreSQL isn't installed (Debian: apt install postgresql)")
    pytest.importorskip("psycopg", reason="pip install 'psycopg[binary]'")
    with postgres.server() as found:
        yield found


def start(url, folder, total, seconds, number):
    program = folder / "peer.py"
    if not program.exists():  # an earlier peer may be reading it
        program.write_text(WORKER, encoding="utf-8")
    return forked.start(str(program), url, str(folder), str(total), str(seconds), str(number))


def at_once(folder, peers):
    """Let them begin when all are there."""
    while len(list(folder.glob("ready-*"))) < len(peers):
        assert not [peer.err for peer in peers if peer.poll() is not None]
        time.sleep(0.02)
    (folder / "go").touch()


def ended(peers):
    return [(peer.wait(timeout=240), peer.err) for peer in peers]


def opened(url, folder):
    return Budgeted.open(Address("s", url, folder, ("maximize",)))


def test_eight_peers_and_four_kills(url, tmp_path):
    total = 32
    peers = [start(url, tmp_path, total, 0.2, number) for number in range(8)]
    at_once(tmp_path, peers)
    study = opened(url, tmp_path)
    killed = []
    while len(killed) < 4:
        running = [trial for trial in study.trials() if trial.state == TrialState.RUNNING]
        working = {trial.user_attrs.get(PEER, {}).get("pid") for trial in running}
        peer = next((peer for peer in peers if peer.pid in working and peer not in killed), None)
        if peer is not None:
            os.kill(peer.pid, signal.SIGKILL)
            killed.append(peer)
    results = ended(peers)
    assert sum(code == -signal.SIGKILL for code, _ in results) == 4
    assert [(code, err) for (code, err), peer in zip(results, peers, strict=True) if peer not in killed] == [
        (0, "")
    ] * 4
    trials = study.trials()
    assert len(trials) == total
    assert all(trial.state == TrialState.COMPLETE for trial in trials), "no zombie"
    assert study.revive(Watch(0.0)) == []


STARTERS = int(os.environ.get("WHET_STARTERS", "8"))
"""`make peers` lets 32 start."""


def test_many_start_at_once(url, tmp_path):
    peers = [start(url, tmp_path, 32, 0.0, number) for number in range(STARTERS)]
    at_once(tmp_path, peers)
    assert set(ended(peers)) == {(0, "")}
    trials = opened(url, tmp_path).trials()
    assert [trial.number for trial in trials] == list(range(32))
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
