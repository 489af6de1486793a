"""`whet train` from the outside: real Hydra, real files, real processes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests import forked
from tests.conftest import QUICK, at_work

from whet.cli.main import main
from whet.evaluation.predictions import Predictions
from whet.tracking.jsonl import read_metrics


@pytest.fixture(scope="module")
def base(tmp_path_factory, cache):
    """One run of about a second; its folder."""
    keys = [*QUICK, "tracking=local", "tracking.log_every=1", "engine.pictures=true", "name=base"]
    with at_work(tmp_path_factory.mktemp("base"), cache) as place:
        assert main(["train", *keys]) == 0
    return place / "outputs" / "runs" / "base"


@pytest.fixture
def finished(base, cache, monkeypatch):
    """The same, in the folder where it was trained."""
    monkeypatch.chdir(base.parents[2])
    monkeypatch.setenv("WHET_CACHE", str(cache))
    return base


def test_a_run_leaves_everything_it_promises(finished):
    for name in (
        "config.yaml", "overrides.txt", "run.json", "metrics.jsonl", "train.log", "model/whet.json",
        "model/model.safetensors", "model/config.json", "model/tokenizer.json", "predictions/validation.npz",
        "predictions/test.npz", "report/test.json", "report/test.md", "report/validation.json",
    ):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    for name in ("test_confusion", "test_pr", "learning_curves"):
        with Image.open(finished / "report" / f"{name}.png") as image:
            assert len(image.convert("L").getcolors(maxcolors=100000)) > 2
    assert list((finished / "tensorboard").iterdir())
    assert not [path for path in finished.rglob(".*") if path.is_file() or path.is_dir()]


def test_pictures_are_left_out_on_request(finished, workplace, quick):
    assert main(["train", *quick, "tracking=local", "name=plain"]) == 0
    report = workplace / "outputs" / "runs" / "plain" / "report"
    names = {path.name for path in (finished / "report").iterdir()}
    assert {path.name for path in report.iterdir()} == {name for name in names if not name.endswith(".png")}


def test_run_json_tells_all(finished):
    record = json.loads((finished / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["hashes"]) == {"config", "data", "weights", "final"}
    assert set(record["hashes"]["final"]) == {
        "model.safetensors",
        "training.safetensors",
        "state.json",
        "validation.npz",
    }
    assert set(record["hashes"]["data"]) == {"train", "validation", "test"}
    assert record["trainable"]["trained_parameters"] == record["trainable"]["parameters"] > 0
    assert record["timings"]["total_s"] >= record["timings"]["train_s"] > 0
    assert record["memory"]["peak_mb"] > 100
    assert record["data"]["rows"] == {"train": 48, "validation": 6, "test": 6}
    assert record["data"]["label_names"] == ["1", "5"]
    assert record["best"]["metric"] == "validation/accuracy"
    assert "tracking=local" in record["command"]


def test_metrics_agree_everywhere(finished):
    """metrics.jsonl, predictions and report tell the same numbers, recomputed here."""
    predictions = Predictions.load(finished / "predictions" / "test.npz")
    accuracy = float((predictions.logits.argmax(1) == predictions.labels).mean())
    assert json.loads((finished / "report" / "test.json").read_text())["metrics"][
        "accuracy"
    ] == pytest.approx(accuracy)
    record = json.loads((finished / "run.json").read_text())
    assert record["metrics"]["test/accuracy"] == pytest.approx(accuracy)
    logged = read_metrics(finished / "metrics.jsonl")
    best = max(line["validation/accuracy"] for line in logged if "validation/accuracy" in line)
    assert best == pytest.approx(record["best"]["value"])
    assert [line["step"] for line in logged if "train/loss" in line] == [1, 2]


def test_same_seed_same_result_another_seed_another(workplace, quick):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert main(["train", *quick, f"name={name}", f"seed={seed}"]) == 0
    logits = {
        name: Predictions.load(workplace / "outputs" / "runs" / name / "predictions" / "test.npz").logits
        for name in ("a", "b", "c")
    }
    assert np.array_equal(logits["a"], logits["b"])
    assert not np.array_equal(logits["a"], logits["c"])


def test_evaluate_gives_the_training_runs_numbers(finished, capsys):
    assert main(["evaluate", f"run={finished}", "split=validation"]) == 0
    shown = capsys.readouterr().out
    again = next((finished / "evaluations").glob("*/validation.npz"))
    before = Predictions.load(finished / "predictions" / "validation.npz")
    assert np.array_equal(Predictions.load(again).logits, before.logits)
    assert "accuracy" in shown


def test_evaluate_weighs_classes_as_training_did(workplace, quick, capsys):
    """Balanced weights come from the training rows, not from the few rows that are evaluated."""
    lines = (workplace / "own.csv").read_text().splitlines()
    kept = [line for number, line in enumerate(lines) if number == 0 or number > 30 or line.endswith("5")]
    (workplace / "own.csv").write_text("\n".join(kept) + "\n")
    assert main(["train", *quick, "task.class_weights=balanced", "name=b"]) == 0
    folder = workplace / "outputs" / "runs" / "b"
    assert main(["evaluate", f"run={folder}"]) == 0
    again = json.loads(next((folder / "evaluations").glob("*/test.json")).read_text())["metrics"]
    assert again == json.loads((folder / "report" / "test.json").read_text())["metrics"]
    counts = json.loads((folder / "run.json").read_text())["data"]["label_counts"]
    assert counts[0] < counts[1]


def test_evaluate_on_a_labelled_file(finished, capsys):
    Path("new.csv").write_text("review,stars\ngood great fine,5\nbad awful dull,1\nlovely superb,5\n")
    assert main(["evaluate", f"run={finished}", "input=new.csv"]) == 0
    assert "3 rows" in capsys.readouterr().out
    Path("odd.csv").write_text("review,stars\ngood,4\n")
    assert main(["evaluate", f"run={finished}", "input=odd.csv"]) == 2
    assert "'4'" in capsys.readouterr().err


def test_evaluate_refuses_another_label_order(finished, tmp_path, capsys):
    """A task whose labels changed since the training must not be scored silently."""
    changed = shutil.copytree(finished, tmp_path / "changed")
    card = json.loads((changed / "model" / "whet.json").read_text())
    card["label_names"] = ["5", "1"]
    (changed / "model" / "whet.json").write_text(json.dumps(card))
    assert main(["evaluate", f"run={changed}"]) == 2
    assert "trained with" in capsys.readouterr().err


def test_predict_agrees_with_the_saved_predictions(finished, capsys):
    """The texts of the test split, predicted from a CSV: the same probabilities."""
    import csv

    predictions = Predictions.load(finished / "predictions" / "test.npz")
    with Path("own.csv").open() as file:
        rows = {f"all-{number}": row for number, row in enumerate(csv.DictReader(file))}
    with Path("in.csv").open("w") as file:
        writer = csv.DictWriter(file, ["review", "stars"])
        writer.writeheader()
        writer.writerows(rows[name] for name in predictions.ids)
    assert main(["predict", f"run={finished}", "input=in.csv", "output=out.jsonl"]) == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    expected = np.exp(predictions.logits) / np.exp(predictions.logits).sum(1, keepdims=True)
    found = np.array([[line["probabilities"]["1"], line["probabilities"]["5"]] for line in lines])
    assert np.allclose(found, expected, atol=2e-3)  # bf16 autocast, other batches
    assert [line["label"] for line in lines] == [["1", "5"][row.argmax()] for row in found]
    assert [line["row"] for line in lines] == list(range(6))


def test_predict_reads_standard_input(finished):
    command = [sys.executable, "-m", "whet", "predict", f"run={finished}"]
    done = subprocess.run(command, input="good film\nbad film\n", capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in lines] == ["good film", "bad film"]
    assert all(abs(sum(line["probabilities"].values()) - 1) < 1e-4 for line in lines)


def test_predict_names_what_is_wrong(finished, capsys):
    Path("in.csv").write_text("body\nx\n")
    assert main(["predict", f"run={finished}", "input=in.csv"]) == 2
    assert "text=review: the input has no such column" in capsys.readouterr().err
    assert main(["predict", f"run={finished}", "input=in.csv", "text=body", "output=nowhere/out.jsonl"]) == 2
    assert main(["predict", "run=outputs/runs/nope", "input=in.csv"]) == 2
    assert "base" in capsys.readouterr().err
    assert main(["predict", f"run={finished}", "input=in.csv", "text=body", "output=out.jsonl"]) == 0


@pytest.mark.parametrize("method", ["lora", "bitfit", "top_layers"])
def test_methods_train_save_and_predict(workplace, quick, method, capsys):
    assert main(["train", *quick, f"peft={method}", "name=m"]) == 0
    folder = workplace / "outputs" / "runs" / "m"
    assert (folder / "model" / "trained.safetensors").is_file()
    assert not (folder / "model" / "model.safetensors").exists()
    assert main(["evaluate", f"run={folder}"]) == 0
    record = json.loads((folder / "run.json").read_text())
    assert 0 < record["trainable"]["trained_parameters"] < record["trainable"]["parameters"]


def test_overfit_reaches_zero_loss(workplace, quick):
    assert (
        main(["train", *quick, "debug=overfit", "optimizer.lr=3e-3", "name=o", "engine.patience=null"]) == 0
    )
    record = json.loads((workplace / "outputs" / "runs" / "o" / "run.json").read_text())
    assert record["metrics"]["test/accuracy"] == 1.0
    assert record["metrics"]["test/loss"] < 0.05


def test_fast_is_a_few_steps(workplace, quick):
    assert main(["train", *quick, "+debug=fast", "engine.duration=50ep", "name=f", "tracking=local"]) == 0
    record = json.loads((workplace / "outputs" / "runs" / "f" / "run.json").read_text())
    assert record["steps"] == 4


def test_profile_writes_a_trace(workplace, quick):
    assert main(["train", *quick, "debug=profile", "engine.duration=4st", "name=p"]) == 0
    trace = json.loads((workplace / "outputs" / "runs" / "p" / "profile.json").read_text())
    assert len(trace["traceEvents"]) > 100


def test_settings_of_the_engine_change_the_outcome(workplace, quick):
    """Early stopping, evaluation rhythm and updates counted from metrics.jsonl."""
    keys = ["tracking=local", "optimizer.lr=1e-12", "engine.duration=12ep"]
    assert main(["train", *quick, *keys, "engine.patience=2", "name=stops"]) == 0
    assert (
        main(["train", *quick, *keys, "engine.patience=null", "engine.evaluate_every=0.25", "name=goes"]) == 0
    )
    stops, goes = (
        json.loads((workplace / "outputs/runs" / n / "run.json").read_text()) for n in ("stops", "goes")
    )
    assert (stops["steps"], goes["steps"]) == (6, 24)
    assert stops["best"]["stopped"].startswith("validation/accuracy has not improved")
    evaluated = [
        m["step"]
        for m in read_metrics(workplace / "outputs/runs/goes/metrics.jsonl")
        if "validation/loss" in m
    ]
    assert evaluated == [6, 12, 18, 24]


# ------------------------------------------------------------------ multirun


def test_multirun_goes_on_after_a_failing_job(workplace, quick, capsys):
    code = main(["train", "-m", *quick, "peft=none,lora,top_layers,bitfit", "peft.layers=2", "+debug=fast"])
    assert code != 0  # peft.layers is unknown to all but top_layers: refused before any job
    code = main(["train", "-m", *quick, "optimizer.lr=1e-3,fast,1e-4", "+debug=fast"])
    shown = capsys.readouterr()
    assert code == 2
    assert "1 of 3 jobs did not finish" in shown.err
    folder = next((workplace / "outputs" / "multirun").iterdir())
    states = {path.parent.name: json.loads(path.read_text())["status"] for path in folder.glob("*/run.json")}
    assert states == {"0000": "finished", "0001": "failed", "0002": "finished"}
    assert "optimizer.lr=fast" in shown.out


def test_multirun_prints_a_table_of_trained_parameters(workplace, quick, capsys):
    assert main(["train", "-m", *quick, "peft=none,lora,top_layers,bitfit", "+debug=fast"]) == 0
    shown = capsys.readouterr().out
    folder = next((workplace / "outputs" / "multirun").iterdir())
    counts = [
        json.loads((folder / f"{job:04d}" / "run.json").read_text())["trainable"]["trained_parameters"]
        for job in range(4)
    ]
    assert len(set(counts)) == 4
    for method, count in zip(("none", "lora", "top_layers", "bitfit"), counts, strict=True):
        line = next(line for line in shown.splitlines() if f"peft={method}" in line)
        assert f"{count:,}" in line


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers(workplace, quick, launcher):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher" if launcher == "joblib" else "submitit")
    keys = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else ["hydra.launcher.timeout_min=5"]
    command = ["train", "-m", *quick, "seed=1,2", "+debug=fast", f"hydra/launcher={launcher}", *keys]
    done = forked.run("-m", "whet", *command)
    assert done.returncode == 0, done.stderr
    folder = next((workplace / "outputs" / "multirun").iterdir())
    records = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
    assert sorted(record["seed"] for record in records) == [1, 2]
    assert {record["status"] for record in records} == {"finished"}


# ------------------------------------------------------------------ many at once, errors


def test_eight_at_once_have_eight_folders(workplace, quick):
    done = [forked.start("-m", "whet", "train", *quick, "+debug=fast") for _ in range(8)]
    assert [process.wait(120) for process in done] == [0] * 8, done[0].err
    folders = list((workplace / "outputs" / "runs").iterdir())
    assert len(folders) == 8
    assert all(json.loads((folder / "run.json").read_text())["status"] == "finished" for folder in folders)


HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": "/nonexistent"}
NINE = {
    "optimizer.lrr=1": "optimizer.lrr=1: unknown key; did you mean lr?",
    "+optimizer.lrr=1": "optimizer.lrr=1: unknown key; did you mean lr?",
    "++optimizer.lrr=1": "optimizer.lrr=1: unknown key; did you mean lr?",
    "optimizer.lr=fast": "optimizer.lr=fast: must be a valid number",
    "model=bert_bse": "model=bert_bse: no such choice; did you mean bert_base?",
    "scheduler.warmup=-1": "scheduler.warmup=-1: write steps as 500st",
    "task.labels=[one,five]": "'1' 30×",
    "task.data.path=owm.csv": "task.data.path=owm.csv: no such file",
    "model=bert_base": "model.weights.path=/dir",
}


@pytest.mark.parametrize("override", NINE)
def test_nine_bad_inputs(workplace, quick, override, capsys, monkeypatch):
    for name, value in HUB.items():
        monkeypatch.setenv(name, value)
    keys = [item for item in quick if item.split("=")[0] != override.split("=")[0]]
    assert main(["train", *keys, override]) == 2
    shown = capsys.readouterr()
    told = [line for line in shown.err.splitlines() if line.startswith("whet: ")]
    assert len(told) == 1
    assert NINE[override] in told[0]
    assert "Traceback" not in shown.err
    assert "Error executing" not in shown.err
    assert not (workplace / "outputs").exists()


@pytest.mark.parametrize("trace", ["debug=trace", "+debug=trace", "debug.trace=true"])
@pytest.mark.parametrize(
    "command",
    [
        ["train", "optimizer.lr=fast"],
        ["evaluate", "run=nope"],
        ["predict", "run=nope"],
        ["data", "task.text=nope"],
    ],
)
def test_trace_shows_the_traceback(workplace, quick, command, trace):
    from whet.errors import WhetError

    with pytest.raises(WhetError):
        main([*command, *(quick if command[0] == "train" else []), trace])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "did you mean train?"),
        (["train", "tsk=mine"], "did you mean task?"),
        (["train", "optimizer"], "write key=value"),
        (["train", "optimizer/x=3"], "optimizer/x"),
        (["train", "engine.batching.siz=3"], "did you mean size?"),
        (["train", "+optimizer.lr=3"], "leave out the +"),
        (["evaluate"], "run: must be given"),
        (["evaluate", "run=nope"], "not a run folder"),
        (["completion", "fish"], "choices: bash"),
    ],
)
def test_other_mistakes(workplace, arguments, told, capsys):
    assert main(arguments) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(err) == 1
    assert told in err[0]


def test_interrupt_is_recorded(workplace, quick):
    more = ["engine.duration=5000ep", "name=long", "engine.patience=null"]
    process = forked.start("-m", "whet", "train", *quick, *more)
    record = workplace / "outputs" / "runs" / "long" / "run.json"
    for _ in range(1200):
        if (workplace / "outputs" / "runs" / "long" / "checkpoints").is_dir():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, process.err
    assert json.loads(record.read_text())["status"] == "interrupted"


def test_secrets_reach_no_file(workplace, quick, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "s3cr3t-0123456789")
    assert main(["train", *quick, "tracking=local", "name=s", "tags=[s3cr3t-0123456789]"]) == 0
    for path in (workplace / "outputs").rglob("*"):
        if path.is_file():
            assert b"s3cr3t-0123456789" not in path.read_bytes(), path
