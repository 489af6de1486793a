"""`whet.runs`, `whet runs show` and the notebook on real runs and a real sweep."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from tests.conftest import QUICK, TASK, WORDS

import whet.runs
from whet.cli.main import main
from whet.engine import warm
from whet.errors import ConfigError, RunError
from whet.review.records import RunRecord

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "review.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, cache):
    """Runs none-1, none-2, lora-1, lora-2 and a sweep of two trials, as `whet train` leaves them."""
    place = tmp_path_factory.mktemp("reviewed")
    lines = [
        f"a {WORDS[kind][n % 5]} film {n},{stars}"
        for n in range(20)
        for kind, stars in (("positive", 5), ("negative", 1))
    ]
    (place / "own.csv").write_text("\n".join(["review,stars", *lines]) + "\n")
    (place / "conf" / "task").mkdir(parents=True)
    (place / "conf" / "task" / "mine.yaml").write_text(TASK.format(path=place / "own.csv"))
    quick = [
        *(item for item in QUICK if item != "tracking=none"),
        "tracking=local",
        "~tracking.sinks.tensorboard",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("WHET_CACHE", str(cache))
        for peft in ("none", "lora"):
            for seed in (1, 2):
                assert (
                    main(
                        [
                            "train",
                            *quick,
                            f"peft={peft}",
                            f"seed={seed}",
                            f"name={peft}-{seed}",
                            "optimizer.lr=1e-2",
                        ]
                    )
                    == 0
                )
        assert (
            main(
                [
                    "train",
                    "-m",
                    "sweep=optuna",
                    *quick,
                    "optimizer.lr=choice(1e-2,1e-2)",
                    "hydra.sweeper.n_trials=2",
                ]
            )
            == 0
        )
    warm.forget()
    return place / "outputs"


@pytest.fixture
def runs(outputs):
    return whet.runs.load(outputs)


def record(outputs, name):
    return json.loads((outputs / "runs" / name / "run.json").read_text())


def test_the_table_holds_what_the_records_say(runs, outputs):
    assert len(runs) == len(list(runs)) == 5, "four runs and the trial that ran; its equal took its values"
    assert all(isinstance(run, RunRecord) for run in runs)
    found = runs.table(
        ["name", "peft", "optimizer.lr", "test/accuracy", "timings.train_s"],
        where=["study=null"],
        sort="name",
    )
    assert list(found["name"]) == ["lora-1", "lora-2", "none-1", "none-2"]
    for row in found.itertuples(index=False):
        told = record(outputs, row.name)
        assert (row.peft, row[2]) == (row.name.split("-")[0], 1e-2)
        assert row[3] == told["metrics"]["test/accuracy"]
        assert row[4] == told["timings"]["train_s"]
    assert list(runs.table(where="peft=lora", sort=["-seed"])["name"]) == ["lora-2", "lora-1"]
    assert {"optimizer.betas", "git.commit"} & set(runs.table(["*"]))
    with pytest.raises(ConfigError, match=r"columns=optimizer.lrr: .*did you mean optimizer.lr"):
        runs.table(["optimizer.lrr"])


def test_metrics_are_the_log_in_long_form(runs, outputs):
    lines = [
        json.loads(line) for line in (outputs / "runs" / "lora-2" / "metrics.jsonl").read_text().splitlines()
    ]
    expected = {
        (line["step"], name): value
        for line in lines
        for name, value in line.items()
        if name not in ("step", "time")
    }
    found = runs.metrics()
    own = found[found["run"] == "lora-2"]
    assert {
        (row.step, row.name): row.value for row in own[["step", "name", "value"]].itertuples(index=False)
    } == expected
    assert set(runs.metrics("validation/loss")["name"]) == {"validation/loss"}
    with pytest.raises(ConfigError, match="did you mean validation/loss"):
        runs.metrics("validation/los")


def test_predictions_and_errors(runs):
    found = runs.predictions("none-1", "test")
    assert found.logits.shape == (len(found), 2)
    with pytest.raises(RunError, match="no predictions of train; it keeps test, validation"):
        runs.predictions("none-1", "train")
    errors = runs.errors("none-1", "test")
    chances = np.exp(found.logits.astype(float))
    chances /= chances.sum(axis=1, keepdims=True)
    decided = chances.argmax(axis=1)
    wrong = {
        str(found.ids[row]): chances[row, decided[row]] for row in np.flatnonzero(decided != found.labels)
    }
    assert dict(zip(errors["id"], errors["probability"], strict=True)) == pytest.approx(wrong)
    assert list(errors["probability"]) == sorted(errors["probability"], reverse=True)
    assert all(text.startswith("a ") for text in errors["text"]), "from the run's own report"


def test_sweeps_are_frames_of_trials(runs, outputs):
    (folder,) = (outputs / "sweeps").iterdir()
    trials = optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder}/study.db").trials
    found = runs.sweeps()
    assert list(found.columns[:5]) == [
        "study",
        "number",
        "state",
        "params.optimizer.lr",
        "values.validation/accuracy",
    ]
    assert list(found["number"]) == [0, 1]
    assert list(found["state"]) == ["complete", "complete"]
    assert list(found["params.optimizer.lr"]) == [trial.params["optimizer.lr"] for trial in trials]
    assert list(found["values.validation/accuracy"]) == [trial.value for trial in trials]
    assert pd.isna(found["reused_from"][0]) and found["reused_from"][1] == 0
    assert len(whet.runs.load(outputs / "runs").sweeps()) == 0


def test_paired_differences_and_diff(runs, outputs):
    found = runs.paired("peft", "none", "test/loss", where=["study=null"])
    loss = {
        name: record(outputs, name)["metrics"]["test/loss"]
        for name in ("none-1", "none-2", "lora-1", "lora-2")
    }
    steps = [loss["lora-1"] - loss["none-1"], loss["lora-2"] - loss["none-2"]]
    assert (found["group"][0], found["n"][0]) == ("lora", 2)
    assert found["mean"][0] == pytest.approx(np.mean(steps))
    assert found["high"][0] - found["low"][0] == pytest.approx(2 * 12.706205 * np.std(steps, ddof=1) / 2**0.5)
    differ = runs.diff("none-1", "lora-1")
    assert set(differ.config) >= {"peft._target_", "peft.r", "name"} and "seed" not in differ.config
    assert differ.changes()["test/loss"] == pytest.approx([steps[0]])


def test_show_and_its_command(runs, outputs, capsys, monkeypatch):
    monkeypatch.chdir(outputs.parent)
    assert main(["runs", "show", "lora-1", "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    differ = found["differences"]
    assert differ["peft"] == {"value": "lora", "default": "none"}
    assert differ["optimizer.lr"] == {"value": 1e-2, "default": 5e-5}
    quick = {"engine.threads", "engine.duration", "engine.pictures"}
    assert set(differ) == {"task", "model", "peft", "optimizer.lr", *quick}
    assert found["metrics"]["test"]["accuracy"] == record(outputs, "lora-1")["metrics"]["test/accuracy"]
    assert main(["runs", "show", "optuna-mine", "format=json"]) == 0
    sweep = json.loads(capsys.readouterr().out)
    assert (sweep["trials"][1]["reused_from"], len(sweep["trials"])) == (0, 2)
    assert sweep["best_command"] and sweep["best_command"][0].endswith("optimizer.lr=0.01")
    assert main(["runs", "show", "optuna-mine"]) == 0
    assert "1 as trial 0" in capsys.readouterr().out


def test_a_damaged_log_is_named(outputs, tmp_path, told):
    shutil.copytree(outputs / "runs" / "none-1", tmp_path / "none-1")
    (tmp_path / "none-1" / "metrics.jsonl").write_text("{\n{}\n")
    assert len(whet.runs.load(tmp_path).metrics()) == 0
    assert any("its log can't be read" in line for line in told)


def test_the_notebook_runs_and_stores_nothing(outputs):
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class Here(AsyncKernelManager):
        """A kernel of this very interpreter, whatever kernels the machine has."""

        @property
        def kernel_spec(self):
            return KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
    source = str(Path(whet.runs.__file__).parents[1])
    environment = {
        **os.environ,
        "WHET_OUTPUT": str(outputs),
        "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]),
    }
    done = NotebookClient(notebook, km=Here(), timeout=120).execute(env=environment)
    told = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in told) == 3
    text = "\n".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in told
    )
    assert "5 runs, 1 sweeps" in text
    for name in ("lora-2", "values.validation/accuracy", "probability", "settings that differ"):
        assert name in text
