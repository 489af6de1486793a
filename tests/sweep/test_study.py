"""The budget is exact, whoever comes, goes or is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tests.sweep.test_peers import at_once, ended, start

from whet.errors import ConfigError
from whet.sweep.storage import absolute_url, default_url
from whet.sweep.study import PEER, Address, Beat, Budgeted, Watch

KINDS = ("sqlite", "journal")


def address(folder, kind="sqlite", directions=("maximize",), name="s"):
    url = default_url(folder) if kind == "sqlite" else f"journal:///{folder}/study.journal"
    return Address(name, url, folder, directions)


def opened(folder, kind="sqlite", total=0, points=()):
    study = Budgeted.open(address(folder, kind))
    study.fill(total, 0, points)
    return study


def states(study):
    return [trial.state.name for trial in study.trials()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_is_filled_and_used_up(kind, tmp_path):
    study = opened(tmp_path, kind, 3)
    assert states(study) == ["WAITING"] * 3
    for number in range(3):
        trial = study.take(Beat())
        assert trial.number == number
        trial.suggest_float("x", 0, 1)
        trial.study.tell(trial, 1.0)
    assert study.take(Beat()) is None
    assert not study.is_open()
    assert states(study) == ["COMPLETE"] * 3


def test_the_same_budget_again_adds_nothing_and_more_does(tmp_path):
    study = opened(tmp_path, total=3)
    assert study.fill(3, 0, []) == 3
    assert study.fill(2, 0, []) == 3, "never fewer"
    assert study.fill(5, 0, []) == 5
    assert study.fill(5, 4, []) == 9
    assert len(study.trials()) == 9


def test_points_come_first_and_once(tmp_path):
    points = [{"x": 0.25}, {"x": 0.5}]
    study = opened(tmp_path, total=3, points=points)
    study.fill(3, 1, points)
    assert len(study.trials()) == 4
    found = []
    while (trial := study.take(Beat())) is not None:
        found.append(trial.suggest_float("x", 0, 1))
        trial.study.tell(trial, 0.0)
    assert found[:2] == [0.25, 0.5]
    assert not {0.25, 0.5} & set(found[2:])


def test_other_directions_are_refused(tmp_path):
    opened(tmp_path)
    with pytest.raises(ConfigError, match="direction"):
        Budgeted.open(address(tmp_path, directions=("minimize",)))


def test_a_changed_meaning_is_refused_by_name(tmp_path):
    study = opened(tmp_path)
    study.keep_to({"optimizer.lr": 1e-4, "seed": 1})
    study.keep_to({"optimizer.lr": 1e-4, "seed": 1})
    with pytest.raises(ConfigError, match=r"^seed=2: the study s has 1") as caught:
        study.keep_to({"optimizer.lr": 1e-4, "seed": 2})
    assert "study_name" in str(caught.value)


@pytest.mark.parametrize("url", ["sqlight:///x.db", "redis://host/0"])
def test_unknown_storages(url, tmp_path):
    with pytest.raises(ConfigError, match="no storage of this kind"):
        Budgeted.open(Address("s", url, tmp_path, ("maximize",)))


def test_a_server_that_is_not_there_hides_the_password(tmp_path, monkeypatch):
    monkeypatch.setattr("whet.sweep.storage.TRIES", 1)
    pytest.importorskip("psycopg")
    with pytest.raises(ConfigError) as caught:
        Budgeted.open(Address("s", "postgresql+psycopg://me:geheim@127.0.0.1:1/x", tmp_path, ("maximize",)))
    assert "geheim" not in str(caught.value)
    assert "hydra.sweeper.storage" in str(caught.value)


def test_paths_do_not_depend_on_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_url("sqlite:///a/b.db") == f"sqlite:///{tmp_path}/a/b.db"
    assert absolute_url("journal:///b.log") == f"journal:///{tmp_path}/b.log"
    assert absolute_url("postgresql://u@h/x") == "postgresql://u@h/x"


# ---------------------------------------------------------------- peers


def working(folder, kind, peers, seconds=0.0, total=24):
    """Peers without Hydra."""
    url = address(folder, kind).url
    found = [start(url, folder, total, seconds, number) for number in range(peers)]
    at_once(folder, found)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_peers_that_start_at_once_share_one_budget(kind, tmp_path):
    peers = working(tmp_path, kind, 6)
    assert ended(peers) == [(0, "")] * 6
    study = Budgeted.open(address(tmp_path, kind))
    assert states(study) == ["COMPLETE"] * 24
    assert len({trial.user_attrs[PEER]["pid"] for trial in study.trials()}) > 1


def test_trials_of_killed_peers_are_taken_over(tmp_path):
    """One peer died before the living one came, one dies while that works; both were in the middle of a trial."""
    first, second = victims = working(tmp_path, "sqlite", 2, 600.0, total=6)
    study = opened(tmp_path, total=6)
    while {trial.user_attrs.get(PEER, {}).get("pid") for trial in study.trials()} != {
        None,
        first.pid,
        second.pid,
    }:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(timeout=60)
    living = start(study.address.url, tmp_path, 6, 0.0, 2)
    while states(study).count("COMPLETE") < 5:
        time.sleep(0.01)
    assert states(study).count("RUNNING") == 1
    os.kill(second.pid, signal.SIGKILL)
    assert [code for code, _ in ended([*victims, living])] == [-9, -9, 0]
    trials = study.trials()
    assert states(study) == ["COMPLETE"] * 6
    assert [trial.user_attrs[PEER]["attempt"] for trial in trials] == [2, 2, 1, 1, 1, 1]
    assert {trial.user_attrs[PEER]["pid"] for trial in trials} == {living.pid}
    assert all(trial.params for trial in trials)


def test_only_the_dead_are_revived(tmp_path):
    """This process lives; one of another machine is dead after `grace` seconds without a sign."""
    study = opened(tmp_path, total=3)
    mine = study.take(Beat())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    study.take(Beat(pid=gone.pid, born=1.0))
    far = study.take(Beat(host="elsewhere"))
    watch = Watch(grace=0.2)
    assert study.revive(watch) == [1]
    assert states(study) == ["RUNNING", "WAITING", "RUNNING"]
    time.sleep(0.3)
    far.set_user_attr(PEER, Beat(host="elsewhere", count=7).next())
    assert study.revive(watch) == [], "a sign of life"
    time.sleep(0.3)
    assert study.revive(watch) == [2]
    assert mine.number == 0
    again = study.take(Beat())
    assert again.number == 1


def test_what_was_suggested_before_a_death_is_suggested_again(tmp_path):
    study = opened(tmp_path, total=1)
    first = study.take(Beat()).suggest_float("x", 0, 1)
    study.give_back(0)
    beat = Beat()
    again = study.take(beat)
    assert again.suggest_float("x", 0, 1) == first
    assert beat.attempt == 2
