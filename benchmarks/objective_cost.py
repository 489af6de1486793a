"""Time and memory of a training step of each objective beside the plain one.

Every choice of conf/objective trains on the same rows in whet's own loop. Compared are seconds a step and the
peak of memory from the first step on (what is resident on a CPU, weights and libraries included; allocated
on a GPU). A step of `free` makes several steps of the optimizer. Distillation learns from a teacher trained
for two steps beforehand; asking it for its logits isn't timed.

    make bench ARGS="objective_cost"
    python benchmarks/objective_cost.py --only fgm,freelb --pairs 7
    python benchmarks/objective_cost.py --data imdb engine.batching.size=16  # overrides go to every objective
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import common
import training

PLAIN, DISTILL = "plain", "distill"


def races(given: argparse.Namespace) -> list[common.Race]:
    from whet.config import conf_dir

    keys, rows = training.data(given, rows={"sentences": 1024, "imdb": 256})
    names = sorted(path.stem for path in (conf_dir() / "objective").glob("*.yaml"))
    further = (
        {DISTILL: [f"objective.teacher={teacher(given, keys)}"]} if DISTILL in (given.only or names) else {}
    )
    contestants = {
        name: {"keys": [f"objective={name}", *further.get(name, []), *keys, *given.overrides]}
        for name in [PLAIN, *sorted({*names} - {PLAIN})]
        if name != DISTILL or name in further
    }
    return [
        common.Race(
            title=f"one step of {given.model} on {given.data}, {rows} examples",
            contestants=contestants,
            figure="seconds_per_step",
            unit="s",
            reference=PLAIN,
            columns={"peak_mib": ".0f", "busy_cores": ".2f"},
            also=("peak_mib",),
        )
    ]


def teacher(given: argparse.Namespace, keys: list[str]) -> str:
    """The folder of a run of two steps."""
    settings = {"keys": [*keys, *given.overrides, "engine.duration=2st"]}
    return str(common.prepared(given.threads, **settings)["run"])


def child(settings: common.Figures) -> common.Figures:
    if settings.get("contestant") == "prepare":
        return {"run": trained(settings)}
    return training.fit(training.set_up(settings["keys"], settings["threads"]), warm=3).figures()


def trained(settings: common.Figures) -> str:
    """Train as `whet train` does; the run's folder."""
    from whet.cli.main import main

    os.chdir(settings["folder"])
    code = main(["train", *training.QUIET, *settings["keys"], "name=teacher"])
    if code:
        raise SystemExit(f"the teacher's training ended with {code}")
    return str(Path(settings["folder"]) / "outputs" / "runs" / "teacher")


if __name__ == "__main__":
    made = training.parser("objective_cost", __doc__ or "")
    raise SystemExit(common.main(made, races, child))
