"""`whet merge` through the command line: what folds is an ordinary model, what doesn't is told."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from whet.cli.main import main
from whet.engine.load import open_run
from whet.paths import Paths

STRONG = ["optimizer.lr=1e-2", "engine.precision=fp32"]


def trained(workplace: Path, quick: list[str], *more: str) -> Path:
    assert main(["train", *quick, *STRONG, *more, "name=run"]) == 0
    return workplace / "outputs" / "runs" / "run"


def predictions(run: str, capsys: pytest.CaptureFixture[str]) -> list[dict]:
    capsys.readouterr()
    assert main(["predict", f"run={run}", "input=own.csv"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_merged_run_is_a_model_and_a_run(workplace, quick, capsys):
    folder = trained(workplace, quick, "peft=dora", "peft.r=2")
    assert main(["merge", f"run={folder}", "output=merged"]) == 0
    told = capsys.readouterr().out
    assert "dora: 12 layers folded" in told and "accuracy" in told and "differ by up to" in told
    assert (
        not list(workplace.glob(".merged*")) and not (workplace / "merged" / "trained.safetensors").exists()
    )
    own, merged = predictions(str(folder), capsys), predictions("merged", capsys)
    assert [row["label"] for row in own] == [row["label"] for row in merged]
    assert main(["evaluate", "run=merged", "split=test"]) == 0
    (found,) = (workplace / "merged" / "evaluations").rglob("test.npz")
    before, after = (np.load(path)["logits"] for path in (folder / "predictions" / "test.npz", found))
    np.testing.assert_allclose(before, after, atol=1e-4)
    card = json.loads((workplace / "merged" / "whet.json").read_text())
    assert card["whole"] is True and card["merged"]["logits"] <= 1e-4 and card["merged"]["rows"] == 6
    assert json.loads((workplace / "merged" / "run.json").read_text())["status"] == "finished"
    reads(folder, workplace)
    assert "logits differ from the run's" in refused(capsys, f"run={folder}", "output=merge_2", "tolerance=0")
    assert "output=merged: is there already" in refused(capsys, f"run={folder}", "output=merged")
    assert "output: must be given" in refused(capsys, f"run={folder}")


def reads(folder, workplace):
    """transformers alone says of a text what the run says."""
    model, report = AutoModelForSequenceClassification.from_pretrained("merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert set(model.config.id2label.values()) == {"1", "5"}
    tokenizer = AutoTokenizer.from_pretrained("merged")
    text = (workplace / "own.csv").read_text().splitlines()[1].rpartition(",")[0]
    with torch.no_grad():
        logits = model(**tokenizer([text], return_tensors="pt")).logits
    run = open_run(folder, Paths(cache=os.environ["WHET_CACHE"]), "cpu", "fp32")
    torch.testing.assert_close(logits, torch.from_numpy(run.logits([(text,)])), atol=1e-4, rtol=0)


def test_a_method_without_parts_of_its_own_is_written_whole(workplace, quick, capsys):
    folder = trained(workplace, quick, "peft=bitfit")
    assert main(["merge", f"run={folder}", "output=merged", "tolerance=0"]) == 0
    assert "bitfit: 0 layers folded" in capsys.readouterr().out
    assert (workplace / "merged" / "model.safetensors").is_file()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["merge", *arguments]) == 2
    assert not [path for path in Path().glob("*merge*") if path.name != "merged"]
    return capsys.readouterr().err


def test_what_cannot_be_folded(workplace, quick, capsys):
    folder = trained(workplace, quick, "peft=mam", "engine.duration=1st")
    assert "whet: peft=compose: can't be folded into the weights (bert." in refused(
        capsys, f"run={folder}", "output=merged"
    )
