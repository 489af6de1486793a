"""The README's mixed commands: each composes and binds; `make properties` runs them to their reports."""

import json
import shlex

import pytest

from whet.cli.main import main
from whet.config import build, compose, conf_dir
from whet.engine.train import Parts

README = (conf_dir().parent / "README.md").read_text(encoding="utf-8")
MIXED = [
    shlex.split(line.removeprefix("$ "))[2:]
    for line in README.partition("mixtures (add")[2].partition("```\n")[0].splitlines()
    if line.startswith("$ whet train")
]


def test_there_are_ten():
    assert len(MIXED) == 10 and MIXED[0][:2] == ["peft=bottleneck", "objective=freelb"]


@pytest.mark.parametrize("given", MIXED, ids=" ".join)
def test_a_mixture_binds(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(compose("train", given), Parts)()


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("given", MIXED, ids=" ".join)
def test_a_mixture_runs_to_its_report(given, tmp_path, downloads, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHET_CACHE", str(downloads))
    short = [
        "model=tiny",
        "tracking=none",
        "engine.threads=1",
        "debug.rows=60",
        "engine.duration=2ep",
        "name=m",
    ]
    shots = ["task.shots=16"] if any("shots" in item for item in given) else []
    assert main(["train", *given, *short, *shots]) == 0
    folder = tmp_path / "outputs" / "runs" / "m"
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert "precision" in (folder / "report" / "test.md").read_text()
