"""What durable checkpoints cost: 50 steps with one in their middle, beside 50 steps without, in turn.

Whet's own loop trains on batches of one shape, with its own Save callback: weights, optimizer, generators and
counters, SHA-256 of every file, synced to disk, the last two kept. A checkpoint is made every 100 steps; each
stretch of 50 steps around one is compared with the 50 steps that follow, in the same process: two processes
differ by more than a checkpoint costs. The first checkpoint, which takes the memory that the others use
again, is made before the clock starts; `first save` tells how long training stood still for it.

Compared is the time of all stretches with a checkpoint and of all without, what the writing thread takes from
training included; `saving` is the share of the former in which training stood still in the callback,
`seconds writing` how long a checkpoint was on its way to the disk, and `mib` its size.

    make bench ARGS="checkpoint_cost"
    TMPDIR=/mnt/slow python benchmarks/checkpoint_cost.py --every 25      # run folders go to TMPDIR
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import common
import training

from whet.engine.callbacks import Callback, State
from whet.engine.checkpoint import Fill
from whet.engine.plan import Plan
from whet.engine.saving import Save
from whet.engine.step import Stepper, StepResult

LENGTH = 32
"""Tokens of every text, padding included."""


def races(given: argparse.Namespace) -> list[common.Race]:
    every, pairs = (4, 1) if given.quick else (given.every, 2)
    if every < 4 or every % 2:
        raise SystemExit(f"--every {every}: an even number from 4 on")
    steps = 2 * every * (1 + pairs) + 3 * every // 2
    keys, _ = training.data(given, rows={"sentences": steps * 32, "imdb": steps * 32})
    shape = [f"task.max_length={LENGTH}", f"engine.batching.pad_to={LENGTH}", "engine.packing=off"]
    saved = f"engine.checkpoint_every={2 * every}st"
    return [
        common.Race(
            title=f"checkpoints of {given.model} on {given.data}, one in {every} steps or none",
            contestants={
                f"every {every} steps": {
                    "keys": [*keys, *shape, f"engine.duration={steps}st", saved, *given.overrides],
                    "every": every,
                    "pairs": pairs,
                }
            },
            figure="with_to_without",
            unit="times the same without",
            targets={f"every {every} steps": ("<=", 1.02)},
            columns={
                "seconds_per_step": ".4f",
                "saves": ".0f",
                "saving": ".2%",
                "seconds_a_save": ".3f",
                "first_save": ".3f",
                "seconds_writing": ".2f",
                "mib": ".0f",
                "peak_mib": ".0f",
                "busy_cores": ".2f",
            },
        )
    ]


def child(settings: common.Figures) -> common.Figures:
    setup = training.set_up(settings["keys"], settings["threads"])
    every, watches, stretches = settings["every"], [], Stretches(settings["every"])

    def watching(plan: Plan, stepper: Stepper, own: Sequence[Callback]) -> list[Callback]:
        save = next(callback for callback in own if isinstance(callback, Save))
        watches.append(Watch(save, 2 * every))
        return [stretches]

    trained = training.fit(setup, 3 * every, more=watching)
    told = stretches.figures(settings["pairs"])
    return trained.figures() | told | watches[0].figures(told["seconds_with"])


class Stretches(Callback):
    """When every half interval began: a checkpoint is made at each even multiple of `every`."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.at: dict[int, float] = {}

    def on_update(self, state: State, result: StepResult) -> None:
        self.at[state.step] = time.perf_counter()

    def figures(self, pairs: int) -> common.Figures:
        """Seconds of the stretches around the checkpoints but the first, and of those between."""
        half, found = self.every // 2, {"with": 0.0, "without": 0.0}
        for number in range(2, 2 + pairs):
            middle = 2 * self.every * number
            edges = [self.at[middle + shift * half] for shift in (-1, 1, 3)]
            found["with"] += edges[1] - edges[0]
            found["without"] += edges[2] - edges[1]
        return {
            "with_to_without": found["with"] / found["without"],
            "seconds_with": found["with"],
            "seconds_per_step": found["without"] / (pairs * self.every),
        }


class Watch:
    """Takes the time of a Save's checkpoints between evaluations."""

    def __init__(self, save: Save, warm: int) -> None:
        self.warm = warm
        self.save, self.update, self.write = save, save.on_update, save._written
        self.first = 0.0
        self.seconds: list[float] = []
        self.writing: list[float] = []
        self.bytes: list[int] = []
        save.on_update = self.on_update  # type: ignore[method-assign]
        save._written = self.written  # type: ignore[method-assign]

    def on_update(self, state: State, result: StepResult) -> None:
        started = time.perf_counter()
        self.update(state, result)
        if state.step in self.save.further:
            seconds = time.perf_counter() - started
            if state.step > self.warm:
                self.seconds.append(seconds)
            self.first = self.first or seconds

    def written(self, step: int, best: int, fill: Fill) -> str | None:
        started = time.perf_counter()
        problem = self.write(step, best, fill)
        self.writing.append(time.perf_counter() - started)
        self.bytes.append(sum(path.stat().st_size for path in self.save.checkpoints.at(step).iterdir()))
        return problem

    def figures(self, seconds: float) -> common.Figures:
        if not self.seconds:
            return {"saves": 0}
        return {
            "saves": len(self.seconds),
            "saving": sum(self.seconds) / seconds,
            "seconds_a_save": sum(self.seconds) / len(self.seconds),
            "first_save": self.first,
            "seconds_writing": max(self.writing),
            "mib": max(self.bytes) / 2**20,
        }


if __name__ == "__main__":
    made = training.parser("checkpoint_cost", __doc__ or "")
    made.add_argument("--every", type=int, default=50, help="steps between checkpoints (default %(default)s)")
    raise SystemExit(common.main(made, races, child))
