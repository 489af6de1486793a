"""What durable checkpoints cost: one every 50 steps beside none.

Whet's own loop trains on the same rows, with its own Save callback: weights, optimizer, generators and
counters, SHA-256 of every file, synced to disk, the last two kept. The timed steps are whole multiples of
50, so each checkpoint is paid by its own 50 steps. Compared are seconds a step; `saving` is the share of
the time that training stood still in the callback, and `mib` the size of one checkpoint.

    make bench ARGS="checkpoint_cost"
    python benchmarks/checkpoint_cost.py --every 25 --folder /mnt/slow
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import common
import training

from whet.engine.callbacks import Callback, Save, State
from whet.engine.checkpoint import Checkpoints
from whet.engine.plan import Plan
from whet.engine.resume import write
from whet.engine.signals import StopRequest
from whet.engine.step import Stepper, StepResult

WARM = 3


def races(given: argparse.Namespace) -> list[common.Race]:
    every = 3 if given.quick else given.every
    steps = WARM + every * (1 if given.quick else 2)
    keys, _ = training.data(given, rows={"sentences": steps * 32, "imdb": steps * 32})
    shared = [*keys, f"engine.duration={steps}st", *given.overrides]
    name = f"every {every} steps"
    return [
        common.Race(
            title=f"checkpoints of {given.model} on {given.data}, {steps - WARM} steps",
            contestants={
                "never": {"keys": shared, "every": None},
                name: {"keys": shared, "every": every, "folder": str(given.folder) if given.folder else None},
            },
            figure="seconds_per_step",
            unit="s",
            reference="never",
            targets={name: ("<=", 1.02)},
            columns={
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
    if settings["every"] is None:
        return training.fit(setup, WARM).figures()
    watches: list[Watched] = []

    def saving(plan: Plan, stepper: Stepper, folder: Path) -> list[Callback]:
        place = Path(settings["folder"] or folder) / "checkpoints"
        marks = frozenset(range(WARM + settings["every"], plan.total + 1, settings["every"]))
        watches.append(Watched(saver(stepper, place, marks)))
        return [watches[0]]

    trained = training.fit(setup, WARM, more=saving)
    return trained.figures() | watches[0].figures(trained.clock)


def saver(stepper: Stepper, place: Path, marks: frozenset[int]) -> Save:
    """Whet's own callback, saving after the updates numbered in `marks`."""
    return Save(
        lambda folder, state: write(folder, stepper, state, []),
        Checkpoints(place),
        StopRequest(),
        further=marks,
    )


class Watched(Callback):
    """A Save whose time is taken."""

    def __init__(self, save: Save) -> None:
        self.save, self.seconds, self.bytes = save, [], 0

    def on_start(self, state: State) -> None:
        self.save.on_start(state)

    def on_update(self, state: State, result: StepResult) -> None:
        started = time.perf_counter()
        self.save.on_update(state, result)
        if state.step in self.save.further:
            self.seconds.append(time.perf_counter() - started)
            self.bytes = size(self.save.checkpoints.at(state.step))

    def figures(self, clock: training.Clock) -> common.Figures:
        whole = clock.ended[0] - clock.started[0]
        each = sum(self.seconds) / len(self.seconds)
        return {"saving": sum(self.seconds) / whole, "seconds_a_save": each, "mib": self.bytes / 2**20}


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0


if __name__ == "__main__":
    made = training.parser("checkpoint_cost", __doc__ or "")
    made.add_argument("--every", type=int, default=50, help="steps between checkpoints (default %(default)s)")
    made.add_argument("--folder", type=Path, help="where to save (default: a temporary folder)")
    raise SystemExit(common.main(made, races, child))
