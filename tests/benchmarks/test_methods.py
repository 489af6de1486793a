"""The comparison of methods on a small task: every method with every seed, once; and what its page says."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path

import pytest
from scipy import stats

from benchmarks import methods
from whet.config import build, compose
from whet.engine.train import Parts

SEEDS = (1, 2, 3)


@pytest.fixture
def small(workplace, quick, monkeypatch):
    """Two methods, three seeds, on a task of sixty rows."""
    still = [item for item in quick if not item.startswith(("task=", "tracking=", "engine.pictures="))]
    monkeypatch.setattr(methods, "TASKS", {"mine": ["task=mine"]})
    monkeypatch.setattr(methods, "REGIMES", {"few": still})
    monkeypatch.setattr(methods, "METHODS", {"plain": [], "bitfit": ["peft=bitfit", "optimizer.lr=1e-2"]})
    monkeypatch.setattr(methods, "TOLD", {"mine few": "sixty rows"})
    monkeypatch.setattr(methods, "PRIMARY", {"mine": "accuracy"})
    monkeypatch.setattr(methods, "RESULTS", Path("results/methods.json"))
    monkeypatch.setattr(methods, "PAGE", Path("docs/methods.md"))
    monkeypatch.setattr(methods, "APART", False)
    return workplace


def test_every_method_with_every_seed_and_nothing_twice(small):
    methods.run(["few"], ["mine"], ["bitfit"], seeds={"mine few": SEEDS})
    found = methods.gathered()["mine few"]
    assert {name: sorted(runs) for name, runs in found.items()} == {"plain": [1, 2, 3], "bitfit": [1, 2, 3]}
    for name, runs in found.items():
        for seed, figures in runs.items():
            folder = methods.OUT / "runs" / methods.name_of("mine", "few", name, seed)
            record = json.loads((folder / "run.json").read_text())
            assert figures["test"] == record["metrics"]["test/accuracy"]
            assert figures["machine"] == methods.machine()
            assert figures["machine"] == f"{record['hardware']['cpu']}, {record['precision']}"
            assert f"seed={seed}" in (folder / "overrides.txt").read_text()
            assert not (folder / "checkpoints").exists(), "weights don't stay"
    small_part = found["bitfit"][1]["trained_parameters"] / found["plain"][1]["trained_parameters"]
    assert small_part < 0.2
    stamps = {path: path.stat().st_mtime_ns for path in methods.OUT.rglob("*.json")}
    methods.run(["few"], ["mine"], ["bitfit"], seeds={"mine few": SEEDS})
    kept = {path: path.stat().st_mtime_ns for path in methods.OUT.rglob("run.json")}
    assert kept and all(stamps[path] == at for path, at in kept.items())


def made(test, seconds, peak_mb, trained):
    """Figures of a run."""
    told = {"test": test, "seconds": seconds, "peak_mb": peak_mb, "trained_parameters": trained}
    return {**told, "whole": True}


def test_the_page_says_what_the_figures_say(small):
    figures = {}
    for seed in SEEDS:
        figures["plain", seed] = made(0.70 + 0.01 * seed, 10.0, 1000, 200)
        figures["bitfit", seed] = made(0.72 + 0.012 * seed, 5.0, 800, 2)
    for (name, seed), each in figures.items():
        path = methods.kept("mine", "few", name, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(each))
    methods.report()
    differences = [100 * (figures["bitfit", s]["test"] - figures["plain", s]["test"]) for s in SEEDS]
    mean = statistics.fmean(differences)
    half = stats.t.ppf(0.975, 2) * statistics.stdev(differences) / math.sqrt(3)
    text = methods.PAGE.read_text()
    assert (
        f"| `bitfit` | 3 | 74.40 % | {mean:+.2f} | {mean - half:+.2f} to {mean + half:+.2f} | 1.00% | 0.50 | 0.80 |"
        in text
    )
    assert "| `plain` | 3 | 72.00 % |  |  | 100.00% | 1.00 | 1.00 |" in text and "Helped: `bitfit`." in text
    assert json.loads(methods.RESULTS.read_text())["mine few"]["bitfit"]["1"] == figures["bitfit", 1]
    for path in (methods.OUT / "figures").iterdir():
        path.unlink()
    assert methods.gathered()["mine few"]["bitfit"][3] == figures["bitfit", 3], "what was published stays"
    assert methods.train("mine", "few", "bitfit", 2) == figures["bitfit", 2], "and isn't run again"


def test_seeds_of_another_machine_do_not_fit(small, capsys):
    path = methods.kept("mine", "few", "plain", 1)
    path.parent.mkdir(parents=True)
    told = made(0.70, 10.0, 1000, 200)
    for seed, machine in ((1, None), (2, "Z80, DEFAULT, fp32"), (3, methods.machine())):
        own = told if machine is None else {**told, "machine": machine}
        methods.kept("mine", "few", "plain", seed).write_text(json.dumps(own))
    assert methods.fits("mine few", None) == [3, 4, 5, 6, 7]
    assert methods.fits("mine few", range(3, 5)) == [3, 4]
    assert methods.main(["run", "regime=few", "task=mine", "method=bitfit", "seeds=2-3"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("seeds=2: mine few: plain ran with it on Z80, DEFAULT, fp32, this is ")
    assert said.endswith("like 4-8") and "\n" not in said
    with pytest.raises(ValueError, match="a machine unknown"):
        methods.fits("mine few", range(1, 2))


def test_fresh_seeds_are_told_by_themselves(small):
    rises = {1: 0.05, 2: 0.06, 3: 0.01, 4: 0.03, 5: -0.01}
    runs = {
        "plain": {seed: made(0.70, 10.0, 1000, 200) for seed in rises},
        "bitfit": {seed: made(0.70 + rise, 5.0, 800, 2) for seed, rise in rises.items()},
    }
    text = "\n".join(methods.table("few", runs, "test", {"bitfit": 3}))
    half = stats.t.ppf(0.975, 2) * 2 / math.sqrt(3)
    assert "| `bitfit` | 5 | 72.80 % | +2.80 |" in text
    assert "`bitfit`, the 3 seeds from 3 on alone" in text
    assert f"ran: +1.00 ({1 - half:+.2f} to {1 + half:+.2f})." in text


def test_runs_of_another_machine_make_no_pairs(small):
    runs = {
        "plain": {
            1: made(0.70, 10.0, 1000, 200),
            2: made(0.71, 11.0, 1000, 200),
            3: made(0.5, 9.0, 1000, 200),
        },
        "bitfit": {1: made(0.72, 5.0, 800, 2), 2: made(0.74, 5.5, 800, 2), 3: made(0.9, 90.0, 800, 2)},
        "lora": {1: made(0.1, 5.0, 800, 2)},
    }
    runs["plain"][3]["machine"] = runs["lora"][1]["machine"] = "one, bf16"
    runs["bitfit"][3]["machine"] = "one, fp32"
    text = "\n".join(methods.table("few", runs, "test"))
    assert "| `plain` | 3 | 63.67 % |" in text
    assert "| `bitfit` | 2 | 73.00 % | +2.50 |" in text and "| 1.00% | 0.50 | 0.80 |" in text
    assert "lora" not in text


def test_the_readme_tells_rows_of_the_page():
    """Its table of trade-offs."""
    root = Path(__file__).parents[2]
    head = "| method | seeds | accuracy |"
    _, table = (root / "README.md").read_text(encoding="utf-8").split(head)
    rows = [line for line in table.partition("\n\n")[0].splitlines() if line.startswith("| `")]
    page = (root / "docs" / "methods.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) >= 4 and set(rows) <= set(page)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seed=3"], "seed: not a setting (regime, task, method, jobs, seeds)"),
        *(
            ([f"seeds={seeds}"], f"seeds={seeds}: neither a number from 1 on nor two of them, like 11-20")
            for seeds in ("0", "", "five", "20-11", "0-3", "-3", "1-2-3")
        ),
        (["jobs=0"], "jobs=0: not a number from 1 on"),
        (["jobs=two"], "jobs=two: not a number from 1 on"),
        (["regime=few,ful"], "regime=ful: not one of few, full, noisy"),
    ],
)
def test_wrong_settings_are_named(words, told, capsys):
    assert methods.main(["run", *words]) == 2
    assert capsys.readouterr().err.strip() == told


def test_settings():
    asked = methods.settings(["seeds=10", "method=fgm,rdrop", "jobs=2", "regime=few"])
    assert asked == {
        "regimes": ["few"], "tasks": ["rotten_tomatoes", "reuters_r8"], "methods": ["fgm", "rdrop"],
        "jobs": 2, "seeds": range(1, 11),
    }  # fmt: skip
    assert methods.settings([])["seeds"] is None
    assert methods.settings(["seeds=11-20"])["seeds"] == range(11, 21)
    assert methods.settings(["seeds=7-7"])["seeds"] == range(7, 8)


def test_the_runs_of_the_comparison_compose():
    """Every method, in one of the tasks and regimes each."""
    places = [(task, regime) for task in methods.TASKS for regime in methods.REGIMES]
    assert {f"{task} {regime}" for task, regime in places} == methods.TOLD.keys()
    for method, (task, regime) in zip(methods.METHODS, itertools.cycle(places), strict=False):
        config = compose("train", methods.overrides(task, regime, method, 3))
        parts = build(config, Parts)()
        assert (parts.task.name, parts.seed, parts.engine.batching.size) == (
            task, 3, 16 if regime == "few" else 32,
        )  # fmt: skip
        assert parts.task.draw == (0 if regime == "full" else 3)
