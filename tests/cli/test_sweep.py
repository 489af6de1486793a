"""`whet train -m sweep=NAME`: real trials on a small task, in real processes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from omegaconf import OmegaConf
from tests import forked

from whet.cli.main import main
from whet.engine import warm
from whet.engine.run import read_record
from whet.evaluation.predictions import Predictions
from whet.tracking.jsonl import read_metrics

LR = "optimizer.lr=tag(log,interval(1e-5,1e-1))"


@pytest.fixture(autouse=True)
def _forget():
    yield
    warm.forget()


def sweep(quick, *more):
    return main(["train", "-m", "sweep=optuna", *quick, "tracking=local", *more])


def folder(workplace: Path) -> Path:
    (found,) = (workplace / "outputs" / "sweeps").iterdir()
    return found


def study(place: Path):
    return optuna.load_study(study_name=place.name, storage=f"sqlite:///{place}/study.db")


def test_a_sweep_from_start_to_end(workplace, quick, capsys):
    assert sweep(quick, LR, "hydra.sweeper.n_trials=3") == 0
    place = folder(workplace)
    assert place.name == "optuna-mine-tiny-none"
    trials = study(place).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    assert trials[0].params == {
        "optimizer.lr": read_record(place / "0000")["trial"]["params"]["optimizer.lr"]
    }
    assert trials[0].params["optimizer.lr"] == pytest.approx(5e-5), "the experiment's own"
    for trial in trials:
        run = place / f"{trial.number:04d}"
        record = read_record(run)
        assert record["status"] == "finished"
        assert record["trial"] == {
            "study": place.name,
            "number": trial.number,
            "repeat": 0,
            "params": trial.params,
        }
        assert trial.value == record["metrics"]["validation/accuracy"] == record["best"]["value"]
        config = OmegaConf.load(run / "config.yaml")
        assert config.optimizer.lr == trial.params["optimizer.lr"]
        assert trial.user_attrs["steps"] == trial.user_attrs["planned"] == record["steps"]
    best = study(place).best_trial
    tested = [run.name for run in sorted(place.glob("0*")) if "test/accuracy" in read_record(run)["metrics"]]
    assert tested == [f"{best.number:04d}"], "trials don't look at the test split, the winner does in the end"
    facts = json.loads((place / "sweep.json").read_text())
    assert facts["status"] == "finished"
    assert facts["objectives"] == ["validation/accuracy"]
    assert facts["directions"] == ["maximize"]
    assert shlex.split(facts["command"])[:4] == ["whet", "train", "-m", "sweep=optuna"]
    assert LR in shlex.split(facts["command"]), "as a shell takes it"
    out = capsys.readouterr().out
    assert "3 trials: 3 complete" in out
    assert f"best: trial {best.number}, validation/accuracy {best.value:.4f}" in out


def test_again_more_and_refused(workplace, quick, capsys):
    assert sweep(quick, LR, "hydra.sweeper.n_trials=2", "sweep.test=false") == 0
    place = folder(workplace)
    written = {path: path.stat().st_mtime_ns for path in place.glob("0*/**/*") if path.is_file()}
    assert sweep(quick, LR, "hydra.sweeper.n_trials=2", "sweep.test=false") == 0
    assert {path: path.stat().st_mtime_ns for path in place.glob("0*/**/*") if path.is_file()} == written
    assert sweep(quick, LR, "hydra.sweeper.n_trials=2", "sweep.more=1", "sweep.test=false") == 0
    assert len(study(place).trials) == 3
    capsys.readouterr()
    assert sweep(quick, LR, "hydra.sweeper.n_trials=2", "optimizer.weight_decay=0.3") == 2
    assert "optimizer.weight_decay=0.3: the study" in capsys.readouterr().err
    assert sweep(quick, "optimizer.lr=interval(0.1,0.2)") == 2
    assert "range of optimizer.lr" in capsys.readouterr().err


def test_pruned_trials_say_so(workplace, quick, capsys):
    """The pruner looks at the values; a learning rate of 1e-9 learns nothing."""
    code = sweep(
        quick, "optimizer.lr=choice(1e-2,2e-2,1e-9,2e-9)", "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=median",
        "hydra.sweeper.pruner.n_startup_trials=2", "engine.duration=6ep", "engine.patience=null", "sweep.test=false",
        "sweep.start=false", "sweep.objective=[validation/loss]",
    )  # fmt: skip
    assert code == 0
    place = folder(workplace)
    trials = study(place).trials
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert {trial.params["optimizer.lr"] for trial in pruned} <= {1e-9, 2e-9}
    assert pruned
    for trial in pruned:
        run = place / trial.user_attrs["run"]
        record = read_record(run)
        assert record["status"] == "pruned"
        assert record["reason"].endswith(trial.user_attrs["reason"])
        assert not (run / "model").exists()
        assert not list((run / "checkpoints").iterdir())
        assert trial.user_attrs["steps"] == record["steps"] < trial.user_attrs["planned"] == 12
        lines = read_metrics(run / "metrics.jsonl")
        logged = [line["validation/loss"] for line in lines if "validation/loss" in line]
        assert list(trial.intermediate_values.values()) == logged
    saved = sum(trial.user_attrs["planned"] - trial.user_attrs["steps"] for trial in pruned)
    assert f"pruning saved {saved} of {12 * 4} updates" in capsys.readouterr().out


def test_a_trial_is_its_command_to_the_bit(workplace, quick):
    """In a peer that keeps weights and tokens from the trial before, and in a fresh process."""
    assert (
        sweep([*quick, "peft=lora"], LR, "hydra.sweeper.n_trials=2", "sweep.test=false", "model.dropout=0.1")
        == 0
    )
    place = folder(workplace)
    command = read_record(place / "0001")["command"].split()
    assert command[:2] == ["whet", "train"]
    done = forked.run("-m", *command, "name=alone", env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    alone = workplace / "outputs" / "runs" / "alone"
    one, other = (
        Predictions.load(run / "predictions" / "validation.npz").logits for run in (place / "0001", alone)
    )
    assert np.array_equal(one, other)
    assert (
        read_record(place / "0001")["hashes"]["final"]["model.safetensors"]
        == read_record(alone)["hashes"]["final"]["model.safetensors"]
    )


def test_what_is_kept_between_trials_is_a_copy():
    from dataclasses import dataclass
    from typing import Any

    import torch
    from torch import nn

    @dataclass
    class Corpus:
        splits: dict

    @dataclass
    class Data:
        corpus: Corpus
        tokens: dict

    @dataclass
    class Loaded:
        model: Any

    loads = []

    def load():
        loads.append(1)
        torch.manual_seed(3)
        return Loaded(nn.Linear(2, 2)), Data(Corpus({"train": 1}), {"train": 2})

    fresh, _ = load()
    expected = torch.rand(3)
    warm.keeping_on()
    for _ in range(2):
        loaded, data = warm.load_base("a", load)
        assert torch.equal(loaded.model.weight, fresh.model.weight)
        assert torch.equal(torch.rand(3), expected), "what is drawn next is what a fresh process draws"
        nn.init.zeros_(loaded.model.weight)
        data.corpus.splits.clear()
        data.tokens.clear()
        assert len(loads) == 2
    for key in "bca":
        warm.load_base(key, load)
    assert len(loads) == 5, "two are kept"
    warm.forget()
    warm.load_base("a", load)
    warm.load_base("a", load)
    assert len(loads) == 7, "a run of its own keeps nothing"


def test_killed_in_the_middle_of_a_trial(workplace, quick):
    """The same command: the trial goes on from its checkpoint, nothing runs twice, nothing is left over."""
    more = ["sweep=optuna", *quick, LR, "hydra.sweeper.n_trials=3", "tracking=local", "engine.duration=60ep",
            "engine.patience=null", "engine.evaluate_every=30ep", "engine.checkpoint_every=20st", "sweep.test=false"]  # fmt: skip
    command = ["-m", "whet", "train", "-m", *more]
    process = forked.start(*command)
    sweeps = workplace / "outputs" / "sweeps"
    deadline = time.monotonic() + 120
    while not list(sweeps.glob("*/0001/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    place = folder(workplace)
    first = (place / "0000" / "run.json").stat().st_mtime_ns
    assert [trial.state.name for trial in study(place).trials] == ["COMPLETE", "RUNNING", "WAITING"]
    assert forked.run(*command).returncode == 0
    assert [trial.state.name for trial in study(place).trials] == ["COMPLETE"] * 3
    assert (place / "0000" / "run.json").stat().st_mtime_ns == first
    assert len(read_record(place / "0001")["resumed"]) == 1
    assert "resuming after step" in (place / "0001" / "train.log").read_text()
    assert sorted(path.name for path in place.iterdir() if path.is_dir()) == ["0000", "0001", "0002"]


def test_a_signal_leaves_the_trial_for_the_next_command(workplace, quick):
    more = ["sweep=optuna", *quick, LR, "hydra.sweeper.n_trials=2", "tracking=local", "engine.duration=1000ep",
            "engine.patience=null", "engine.evaluate_every=500ep", "sweep.test=false"]  # fmt: skip
    process = forked.start("-m", "whet", "train", "-m", *more)
    deadline = time.monotonic() + 120
    while (
        not list((workplace / "outputs").glob("sweeps/*/0000/metrics.jsonl")) and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143, process.err
    assert [trial.state.name for trial in study(folder(workplace)).trials] == ["WAITING", "WAITING"]
    assert read_record(folder(workplace) / "0000")["status"] == "interrupted"
    assert "2 trials are left" in process.err


def test_a_signal_that_comes_while_a_trial_is_pruned_ends_the_sweep(workplace, quick, monkeypatch):
    """The trial has come to its end and is told as pruned; no other begins."""

    def pruned(trial):
        signal.raise_signal(signal.SIGTERM)
        return True

    monkeypatch.setattr(optuna.trial.Trial, "should_prune", pruned)
    command = [LR, "hydra.sweeper.n_trials=3", "engine.evaluate_every=1st", "sweep.test=false"]
    assert sweep(quick, *command) == 143
    place = folder(workplace)
    assert [trial.state.name for trial in study(place).trials] == ["PRUNED", "WAITING", "WAITING"]
    monkeypatch.undo()
    assert sweep(quick, *command) == 0
    assert [trial.state.name for trial in study(place).trials] == ["PRUNED", "COMPLETE", "COMPLETE"]


def test_conditional_ranges(workplace, quick):
    """A method's ranges are proposed only where it is chosen."""
    more = ["hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=5", "sweep.test=false",
            "hydra.sweeper.params.peft='choice(lora,bitfit)'",
            "sweep.enqueue=[{peft: bitfit, optimizer.lr: 3e-3}, {peft: lora, peft.r: 8}]"]  # fmt: skip
    assert main(["train", "-m", "sweep=peft_method", *quick, "tracking=local", *more]) == 0
    seen = set()
    trials = study(folder(workplace)).trials
    assert trials[0].params == {"peft": "bitfit", "bitfit:optimizer.lr": 3e-3}
    assert trials[1].params["lora:peft.r"] == 8
    for trial in trials:
        method = trial.params["peft"]
        seen.add(method)
        expected = {
            "lora": {"lora:peft.r", "lora:peft.dropout", "lora:optimizer.lr"},
            "bitfit": {"bitfit:optimizer.lr"},
        }
        assert set(trial.params) == {"peft", *expected[method]}
        config = OmegaConf.load(folder(workplace) / trial.user_attrs["run"] / "config.yaml")
        assert config.optimizer.lr == trial.params[f"{method}:optimizer.lr"]
        assert config.peft._target_.endswith(method)
        assert "_space_" not in config.peft
        if method == "lora":
            assert config.peft.r == trial.params["lora:peft.r"]
    assert seen == {"lora", "bitfit"}


def test_repeats_have_folders_seeds_and_a_mean(workplace, quick):
    assert (
        sweep(
            quick,
            "optimizer.lr=choice(1e-2)",
            "sweep.repeats=2",
            "hydra.sweeper.n_trials=1",
            "sweep.test=false",
            "seed=5",
        )
        == 0
    )
    place = folder(workplace)
    (trial,) = study(place).trials
    runs = [place / "0000" / "seed-5", place / "0000" / "seed-6"]
    values = [read_record(run)["metrics"]["validation/accuracy"] for run in runs]
    assert [OmegaConf.load(run / "config.yaml").seed for run in runs] == [5, 6]
    assert trial.user_attrs["values"] == values
    assert trial.value == pytest.approx(np.mean(values))
    assert trial.user_attrs["std"] == pytest.approx(np.std(values, ddof=1))


def test_several_objectives(workplace, quick):
    assert (
        sweep(
            quick,
            "peft=choice(none,bitfit)",
            "hydra/sweeper/sampler=grid",
            "sweep.objective=[primary,trained_parameters]",
        )
        == 0
    )
    found = {trial.params["peft"]: trial for trial in study(folder(workplace)).trials}
    for trial in found.values():
        record = read_record(folder(workplace) / trial.user_attrs["run"])
        assert trial.values == [
            record["metrics"]["validation/accuracy"],
            record["trainable"]["trained_parameters"],
        ]
    assert [way.name for way in study(folder(workplace)).directions] == ["MAXIMIZE", "MINIMIZE"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["sweep=lr_warmpu"], "sweep=lr_warmpu: no such choice; did you mean lr_warmup?"),
        (["sweep=optuna", "optimizer.lrr=interval(0.1,0.2)"], "optimizer.lrr"),
        (["sweep=optuna", "optimizer.lr=interval(-1.0,0.2)"], "optimizer.lr=-1"),
        (["sweep=optuna", "peft=choice(none,lorra)"], "peft=lorra: no such choice; did you mean lora?"),
        (
            ["sweep=optuna", "optimizer.lr=interval(0.1,0.2)", "sweep.objective=[validation/acuracy]"],
            "did you mean validation/accuracy?",
        ),
        (["sweep=optuna", "peft=choice(none)", "sweep.conditional=[pefd]"], "did you mean peft?"),
        (
            ["sweep=optuna", "optimizer.lr=interval(0.1,0.2)", "sweep.enqueue=[{optimizer.l: 1}]"],
            "did you mean optimizer.lr?",
        ),
        (["sweep=peft_method", "sweep.enqueue=[{peft: lora, peft.rr: 8}]"], "did you mean peft.r?"),
        (["sweep=peft_method", "sweep.enqueue=[{peft: lora, peft.r: 7}]"], "peft.r=7"),
        (["sweep=mine"], "optimizer.lrr"),
    ],
)
def test_one_clear_error_before_any_trial(more, told, workplace, quick, capsys):
    (workplace / "sweeps").mkdir()
    (workplace / "sweeps" / "mine.yaml").write_text(
        "# @package _global_\n# mine\ndefaults:\n  - optuna\nhydra:\n  sweeper:\n    params:\n      optimizer.lrr: interval(0.1, 0.2)\n"
    )
    assert main(["train", "-m", *quick, *more]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len([line for line in err if line.startswith("whet: ")]) == 1
    assert told in err[-1]
    assert not list((workplace / "outputs").glob("sweeps/*/0*"))


def test_folders_without_their_study_are_not_written_again(workplace, quick, capsys):
    assert sweep(quick, LR, "hydra.sweeper.n_trials=1", "sweep.test=false") == 0
    (folder(workplace) / "study.db").unlink()
    assert sweep(quick, LR, "hydra.sweeper.n_trials=1", "sweep.test=false") == 2
    assert "holds trials" in capsys.readouterr().err
