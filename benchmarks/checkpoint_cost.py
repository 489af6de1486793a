"""What durable checkpoints cost: one every 50 steps beside none.

Whet's own loop trains on the same rows, with its own Save callback: weights, optimizer, generators and
counters, SHA-256 of every file, synced to disk, the last two kept. The timed steps are whole multiples of
50, so each checkpoint is paid by its own 50 steps. Compared are seconds a step; `saving` is the share of
the time that training stood still in the callback, and `mib` the size of one checkpoint.

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
from whet.engine.plan import Plan
from whet.engine.saving import Save
from whet.engine.step import Stepper, StepResult

WARM = 3


def races(given: argparse.Namespace) -> list[common.Race]:
    every = WARM + 1 if given.quick else given.every
    if every <= WARM:
        raise SystemExit(f"--every {every}: more than the {WARM} steps before the clock starts")
    steps = WARM + every * (1 if given.quick else 2)
    keys, _ = training.data(given, rows={"sentences": steps * 32, "imdb": steps * 32})
    shared = [*keys, f"engine.duration={steps}st", *given.overrides]
    name = f"every {every} steps"
    return [
        common.Race(
            title=f"checkpoints of {given.model} on {given.data}, {steps - WARM} steps",
            contestants={
                "never": {"keys": shared},
                name: {"keys": [*shared, f"engine.checkpoint_every={every}st"]},
            },
            figure="seconds_per_step",
            unit="s",
            reference="never",
            targets={name: ("<=", 1.02)},
            columns={
                "saves": ".0f",
                "saving": ".2%",
                "seconds_a_save": ".3f",
                "mib": ".0f",
                "peak_mib": ".0f",
                "busy_cores": ".2f",
            },
        )
    ]


def child(settings: common.Figures) -> common.Figures:
    setup = training.set_up(settings["keys"], settings["threads"])
    watches: list[Watch] = []

    def watching(plan: Plan, stepper: Stepper, own: Sequence[Callback]) -> list[Callback]:
        save = next(callback for callback in own if isinstance(callback, Save))
        watches.append(Watch(save))
        return []

    trained = training.fit(setup, WARM, more=watching)
    return trained.figures() | watches[0].figures(trained.clock)


class Watch:
    """Takes the time of a Save's checkpoints between evaluations."""

    def __init__(self, save: Save) -> None:
        self.save, self.update = save, save.on_update
        self.seconds: list[float] = []
        self.bytes: list[int] = []
        save.on_update = self.on_update  # type: ignore[method-assign]

    def on_update(self, state: State, result: StepResult) -> None:
        started = time.perf_counter()
        self.update(state, result)
        if state.step in self.save.further:
            self.seconds.append(time.perf_counter() - started)
            self.bytes.append(
                sum(path.stat().st_size for path in self.save.checkpoints.at(state.step).iterdir())
            )

    def figures(self, clock: training.Clock) -> common.Figures:
        if not self.seconds:
            return {"saves": 0}
        return {
            "saves": len(self.seconds),
            "saving": sum(self.seconds) / (clock.ended[0] - clock.started[0]),
            "seconds_a_save": sum(self.seconds) / len(self.seconds),
            "mib": max(self.bytes) / 2**20,
        }


if __name__ == "__main__":
    made = training.parser("checkpoint_cost", __doc__ or "")
    made.add_argument("--every", type=int, default=50, help="steps between checkpoints (default %(default)s)")
    raise SystemExit(common.main(made, races, child))
