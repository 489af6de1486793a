"""torch.compile on and off: what a step costs once everything is compiled, and what compiling costs.

Whet's own loop trains two epochs over the same rows. In the first all shapes of batches turn up and are
compiled; the second is what goes on for the rest of a long run. Compared are seconds a step in the second
epoch, and the whole time, compilation included; and told is after how many steps compiling has paid for
itself. Compiling for the CPU needs a C++ compiler (g++). Every measurement compiles from scratch, in a
cache folder of its own.

    make bench ARGS="compile"
    python benchmarks/compile.py --data imdb --pairs 7
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile

import common
import training

from whet.engine.callbacks import Callback


def races(given: argparse.Namespace) -> list[common.Race]:
    keys, rows = training.data(given, rows={"sentences": 1024, "imdb": 256})
    return [
        common.Race(
            title=f"torch.compile, {given.model} on {given.data}, two epochs of {rows} examples",
            contestants={
                name: {"keys": [*keys, "engine.duration=2ep", f"engine.compile={value}", *given.overrides]}
                for name, value in (("off", "false"), ("on", "true"))
            },
            figure="seconds_per_step",
            unit="s",
            reference="off",
            columns={"whole_seconds": ".1f", "first_step": ".2f", "peak_mib": ".0f", "busy_cores": ".2f"},
            also=("whole_seconds", "peak_mib"),
        )
    ]


def child(settings: common.Figures) -> common.Figures:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        setup = training.set_up(settings["keys"], settings["threads"])
        warm = training.updates(setup) // 2
        watch = Watch()
        trained = training.fit(setup, warm, more=lambda *_: [watch])
    figures = trained.figures()
    return {
        **figures,
        "whole_seconds": watch.times[-1] - watch.times[0],
        "first_step": watch.times[1] - watch.times[0],
        "first_epoch": watch.times[warm] - watch.times[0],
    }


class Watch(Callback):
    """Notes when training starts and when each update ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_start(self, state: object) -> None:
        self.times.append(training.now())

    def on_update(self, state: object, result: object) -> None:
        self.times.append(training.now())


def pays_after(told: list[common.Figures]) -> common.Figures:
    """Steps until compiling has paid for itself: its extra time in the first epoch over its gain a step."""
    rows, found = told[0]["measurements"], told[0]["contestants"]
    if "on" not in found:
        return {}
    first = {
        name: statistics.median(row["first_epoch"] for row in rows if row["contestant"] == name)
        for name in found
    }
    gain = found["off"]["seconds_per_step"] - found["on"]["seconds_per_step"]
    steps = math.ceil((first["on"] - first["off"]) / gain) if gain > 0 else None
    return {"steps until compiling has paid for itself": steps or "never: a compiled step isn't faster"}


if __name__ == "__main__":
    made = training.parser("compile", __doc__ or "")
    raise SystemExit(common.main(made, races, child, pays_after))
