"""What durable checkpoints cost: one every 50 steps beside none.

Whet's own loop trains on the same rows, with its own Save callback: weights, optimizer, generators and
counters, SHA-256 of every file, synced to disk, the last two kept. The timed steps are whole multiples of
50, half of them after the last checkpoint. The first checkpoint, which takes the memory that the others use
again, is made before the clock starts; `first save` tells how long training stood still for it.

Compared are seconds a step, what the writing thread takes from training included; `saving` is the share of
the time that training stood still in the callback, `seconds writing` how long a checkpoint was on its way to
the disk, and `mib` its size.

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

MOST_OFTEN = 4


def races(given: argparse.Namespace) -> list[common.Race]:
    every = 4 if given.quick else given.every
    warm, steps = _window(every, 1 if given.quick else 6)
    keys, _ = training.data(given, rows={"sentences": steps * 32, "imdb": steps * 32})
    shared = [*keys, f"engine.duration={steps}st", *given.overrides]
    name = f"every {every} steps"
    return [
        common.Race(
            title=f"checkpoints of {given.model} on {given.data}, {steps - warm} steps",
            contestants={
                "never": {"keys": shared, "warm": warm},
                name: {"keys": [*shared, f"engine.checkpoint_every={every}st"], "warm": warm},
            },
            figure="seconds_per_step",
            unit="s",
            reference="never",
            targets={name: ("<=", 1.02)},
            columns={
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


def _window(every: int, saves: int) -> tuple[int, int]:
    """Steps before the clock starts, and in all: the clock starts half an interval after the first checkpoint
    (which takes the memory that all use) and stops half an interval after the last."""
    if every < MOST_OFTEN:
        raise SystemExit(f"--every {every}: at least {MOST_OFTEN}")
    warm = every + every // 2
    return warm, warm + saves * every


def child(settings: common.Figures) -> common.Figures:
    setup = training.set_up(settings["keys"], settings["threads"])
    watches: list[Watch] = []

    def watching(plan: Plan, stepper: Stepper, own: Sequence[Callback]) -> list[Callback]:
        save = next(callback for callback in own if isinstance(callback, Save))
        watches.append(Watch(save, settings["warm"]))
        return []

    trained = training.fit(setup, settings["warm"], more=watching)
    return trained.figures() | watches[0].figures(trained.clock)


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

    def figures(self, clock: training.Clock) -> common.Figures:
        if not self.seconds:
            return {"saves": 0}
        return {
            "saves": len(self.seconds),
            "saving": sum(self.seconds) / (clock.ended[0] - clock.started[0]),
            "seconds_a_save": sum(self.seconds) / len(self.seconds),
            "first_save": self.first,
            "seconds_writing": max(self.writing),
            "mib": max(self.bytes) / 2**20,
        }


if __name__ == "__main__":
    made = training.parser("checkpoint_cost", __doc__ or "")
    made.add_argument("--every", type=int, default=50, help="steps between checkpoints (default %(default)s)")
    raise SystemExit(common.main(made, races, child))
