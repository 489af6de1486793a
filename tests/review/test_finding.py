"""Folders on disk: sound, damaged, moved; names and their beginnings."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import optuna
import pytest
from tests.review.written import config_of, write_run, write_sweep

from whet.errors import RunError
from whet.review.facts import choice, of_run
from whet.review.finding import find_one, places_of, read_runs, read_sweeps, with_trials
from whet.review.records import RunRecord, SweepRecord


def test_facts_of_a_run(tmp_path):
    write_run(tmp_path / "one", 0.75, test=0.5, config=config_of("lora", 3e-4, 7), memory={"peak_mb": 9})
    ((_, facts),) = read_runs([tmp_path])
    expected = {
        "kind": "run", "name": "one", "status": "finished", "task": "mine", "model": "tiny", "peft": "lora", "seed": 7,
        "optimizer": "adamw", "optimizer.lr": 3e-4, "validation": 0.75, "validation/accuracy": 0.75, "test": 0.5,
        "metric": "accuracy", "time": 100.0, "memory.peak_mb": 9, "best.step": 2, "reason": None, "study": None,
        "tags": ["first", "second"], "engine.threads": None, "folder": str(tmp_path / "one"),
    }  # fmt: skip
    assert {key: facts[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ({"name": "minilm", "_target_": "whet.model.encoder.Encoder"}, "minilm"),
        ({"_target_": "whet.peft.lora.lora", "name": None}, "lora"),
        ({"_target_": "whet.engine.engine.Engine"}, "engine"),
        ({}, None),
    ],
)
def test_what_a_choice_is_called(node, name):
    assert choice(node) == name


def test_each_kind_of_damage_is_named_in_one_warning(tmp_path, told):
    write_run(tmp_path / "good", 0.5)
    (write_run(tmp_path / "torn") / "run.json").write_text('{"status": "fin')
    (write_run(tmp_path / "list") / "run.json").write_text("[1]")
    (write_run(tmp_path / "empty") / "run.json").write_text("")
    (write_run(tmp_path / "bytes") / "run.json").write_bytes(b"\xff\xfe{}")
    (write_run(tmp_path / "yaml") / "config.yaml").write_text("a: [1")
    (write_run(tmp_path / "text") / "config.yaml").write_text("words")
    write_run(tmp_path / "shape", trial="x")
    (write_sweep(tmp_path / "sweep") / "sweep.json").write_text("{}")
    assert [run.folder.name for run, _ in read_runs([tmp_path])] == ["good"]
    assert len(told) == 1
    assert "bytes (" in told[0] and "and 2 more" in told[0]
    assert read_sweeps([tmp_path]) == []
    assert len(told) == 2 and str(tmp_path / "sweep") in told[1]
    with pytest.raises(RunError, match=r"sweep: damaged"):
        find_one(str(tmp_path / "sweep"), [])
    with pytest.raises(RunError, match=r"torn: damaged \("):
        find_one(str(tmp_path / "torn"), [])


def test_a_run_that_ended_before_it_had_a_config(tmp_path):
    (write_run(tmp_path / "early", status="failed", reason="no rows") / "config.yaml").unlink()
    ((_, facts),) = read_runs([tmp_path])
    assert (facts["status"], facts["reason"], facts.get("task")) == ("failed", "no rows", None)


def test_killed_is_a_running_run_whose_process_is_gone(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = {"host": platform.node()}
    status = {
        name: of_run(RunRecord(write_run(tmp_path / name, status="running", **facts)))["status"]
        for name, facts in {
            "gone": {"pid": gone.pid, "hardware": here},
            "alive": {"pid": os.getppid(), "hardware": here, "started": "2999-01-01T00:00:00+00:00"},
            "elsewhere": {"pid": gone.pid, "hardware": {"host": "another"}},
        }.items()
    }
    assert status == {"gone": "killed", "alive": "running", "elsewhere": "running"}


def test_names_of_jobs_and_repeats(tmp_path):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "multirun" / "20261126" / "0001")
    (tmp_path / "multirun" / "20261126" / "multirun.json").write_text("{}")
    sweep = write_sweep(tmp_path / "sweeps" / "folder", study="s")
    write_run(
        sweep / "0002" / "seed-5", trial={"study": "s", "number": 2, "repeat": 0, "params": {"lr": 0.5}}
    )
    found = {facts["name"]: facts for _, facts in read_runs([tmp_path, tmp_path / "runs"])}
    assert set(found) == {"a", "20261126/0001", "s/0002/seed-5"}, "each once"
    assert found["20261126/0001"]["multirun"] == "20261126"
    assert (found["s/0002/seed-5"]["study"], found["s/0002/seed-5"]["multirun"]) == ("s", None)
    assert found["s/0002/seed-5"]["trial.params.lr"] == 0.5


def test_one_is_found_by_folder_name_or_beginning(tmp_path):
    for name in ("alpha", "alpha-2", "beta"):
        write_run(tmp_path / name)
    sweep = write_sweep(tmp_path / "study")
    write_run(sweep / "0000", trial={"study": "study", "number": 0})
    places = [tmp_path]

    def name(given):
        return find_one(given, places).name

    assert name(f"{tmp_path}/beta/") == "beta"
    assert name("alpha") == "alpha", "a whole name wins over a longer one"
    assert name("b") == "beta"
    assert isinstance(find_one("stu", places), SweepRecord), "not the runs in it"
    assert name("study/0000") == name("0000") == "study/0000"
    with pytest.raises(RunError, match=r"al: 2 runs begin so: alpha, alpha-2; write more"):
        name("al")
    with pytest.raises(RunError, match=r"gamma: no run or sweep of this name .*whet runs lists"):
        name("gamma")
    with pytest.raises(RunError, match=r"did you mean beta\?"):
        name("betta")


def test_missing_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WHET_OUTPUT", raising=False)
    with pytest.raises(RunError, match="outputs: no such folder; whet train makes it"):
        places_of([])
    with pytest.raises(RunError, match="nowhere: no such folder"):
        places_of(["nowhere"])
    monkeypatch.setenv("WHET_OUTPUT", str(tmp_path))
    assert places_of([]) == [tmp_path.resolve()]


# ---------------------------------------------------------------- sweeps


def make_study(folder, values, direction="maximize"):
    study = optuna.create_study(
        study_name=folder.name, storage=f"sqlite:///{folder}/study.db", direction=direction
    )
    for value in values:
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(0, 1)})
        if value is None:
            trial.report(0.5, 1)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, value)
    study.enqueue_trial({"lr": 0.5})
    return study


@pytest.mark.parametrize(("direction", "best"), [("maximize", 0.75), ("minimize", 0.25)])
def test_facts_of_a_sweep_that_was_moved(tmp_path, direction, best):
    study = make_study(write_sweep(tmp_path / "s", directions=[direction]), [0.25, None, 0.75], direction)
    (tmp_path / "s").rename(tmp_path / "moved")
    ((sweep, facts),) = read_sweeps([tmp_path])
    assert facts["trials"] is None, "the study isn't read unless it is asked for"
    found = with_trials(sweep, facts)
    expected = {
        "kind": "sweep",
        "name": "s",
        "trials": 4,
        "complete": 2,
        "pruned": 1,
        "failed": 0,
        "waiting": 1,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["best"] == best
    assert found["best.params.lr"] == study.trials[found["best.trial"]].params["lr"]
    assert found["objectives"] == "validation/accuracy"


def test_studies_that_cannot_be_read_are_warnings(tmp_path, told):
    write_sweep(tmp_path / "gone")
    write_sweep(tmp_path / "hidden", storage="postgresql://me:***@host/db")
    write_sweep(tmp_path / "broken")
    (tmp_path / "broken" / "study.db").write_text("not a database " * 100)
    make_study(write_sweep(tmp_path / "other", study="another"), [])
    for sweep, facts in read_sweeps([tmp_path]):
        assert with_trials(sweep, facts) == facts
    assert len(told) == 4
    assert "the study can't be read" in told[0]
    assert "is gone" in told[1] and not (tmp_path / "gone" / "study.db").exists()
    assert "password isn't kept" in told[2]
    assert "has no study another" in told[3]


def test_run_folders_are_not_searched_for_others(tmp_path):
    """A trial's copy of a run inside of another's folder isn't a run of its own."""
    write_run(tmp_path / "a")
    write_run(tmp_path / "a" / "wandb" / "b")
    assert [run.folder.name for run, _ in read_runs([tmp_path])] == ["a"]
    assert json.loads((tmp_path / "a" / "run.json").read_text())["name"] == "a"
