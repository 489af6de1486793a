"""Whether a resume late in an epoch costs more than one early in it: it must not replay the epoch.

A tiny model goes through an epoch of all IMDB reviews and leaves a checkpoint at 5 % and at 95 % of it. A
fresh process loads the data, then the clock runs from the look for a checkpoint to the end of the first
update. Every text is padded to the same length, so that both first updates are the same work; a replay of
90 % of the epoch would show, as its steps cost next to nothing.

    make bench ARGS="resume_cost"
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from pathlib import Path

import common
import numpy as np
import training

from whet.engine import loop
from whet.engine.assemble import evaluator
from whet.engine.callbacks import Callback, Save, State
from whet.engine.checkpoint import Checkpoints
from whet.engine.plan import Plan
from whet.engine.resume import restore_newest, write
from whet.engine.signals import StopRequest
from whet.engine.step import Stepper, StepResult

EARLY, LATE = 0.05, 0.95


def races(given: argparse.Namespace) -> list[common.Race]:
    rows = ["debug.rows=1600"] if given.quick else []
    length = 32
    keys = [
        "task=imdb", "model=tiny", f"task.max_length={length}", f"engine.batching.pad_to={length}",
        "engine.batching.size=16", "engine.duration=1ep", *rows,
    ]  # fmt: skip
    ready = common.prepared(given.threads, keys=keys)
    names = {share: f"at {share:.0%}" for share in (EARLY, LATE)}
    return [
        common.Race(
            title=f"first step after a resume, epoch of {ready['steps']} steps",
            contestants={
                name: {
                    "keys": keys,
                    "contestant": "resume",
                    "checkpoints": ready[str(share)],
                    "replay": ready["replay"],
                }
                for share, name in names.items()
            },
            figure="seconds",
            unit="s",
            reference=names[EARLY],
            targets={names[LATE]: ("<=", 1.1)},
            columns={"resumed_after": ".0f", "restore_seconds": ".3f"},
            warm_up=0 if given.quick else 1,
        )
    ]


def child(settings: common.Figures) -> common.Figures:
    return prepare(settings) if settings["contestant"] == "prepare" else resume(settings)


class Done(Exception):
    """Ends the loop."""


class End(Callback):
    """Notes the time of the first update from `step` on, and ends the loop."""

    def __init__(self, step: int) -> None:
        self.step, self.at = step, 0.0

    def on_update(self, state: State, result: StepResult) -> None:
        if state.step >= self.step:
            self.at = training.now()
            raise Done


def prepare(settings: common.Figures) -> common.Figures:
    """Train to 95 % of the epoch; where the checkpoints are, and how long collating takes."""
    setup = training.set_up(settings["keys"], settings["threads"])
    folder = Path(settings["folder"])
    plan, stepper = training.assemble(setup, folder)
    marks = {share: max(1, round(share * plan.total)) for share in (EARLY, LATE)}
    savers = [saver(stepper, folder / str(share), step) for share, step in marks.items()]
    go(setup, plan, stepper, None, [*savers, End(marks[LATE])])
    started = time.perf_counter()
    for update in itertools.islice(plan.after(0), marks[EARLY], marks[LATE]):
        stepper.collator(np.concatenate(update.micro_batches), stepper.amp.device)
    replay = time.perf_counter() - started
    return {
        "steps": plan.total,
        "replay": replay,
        **{str(share): str(folder / str(share)) for share in marks},
    }


def saver(stepper: Stepper, folder: Path, step: int) -> Save:
    """Saves after one update."""
    return Save(
        lambda place, state: write(place, stepper, state, []),
        Checkpoints(folder),
        StopRequest(),
        further=frozenset({step}),
    )


def resume(settings: common.Figures) -> common.Figures:
    """Seconds from the look for a checkpoint to the end of the first update."""
    setup = training.set_up(settings["keys"], settings["threads"])
    plan, stepper = training.assemble(setup, Path(settings["checkpoints"]))
    end = End(0)
    started = training.now()
    state = restore_newest(Checkpoints(Path(settings["checkpoints"])), stepper, [])
    restored = training.now()
    if state is None:
        raise SystemExit("there is no checkpoint")
    go(setup, plan, stepper, state, [end])
    return {
        "seconds": end.at - started,
        "restore_seconds": restored - started,
        "resumed_after": state.step - 1,
    }


def go(
    setup: training.Setup, plan: Plan, stepper: Stepper, state: State | None, callbacks: list[Callback]
) -> None:
    """The loop, until a callback ends it."""
    parts, ready = setup.parts, setup.ready
    judge = evaluator("validation", parts.task, ready.data, ready.loaded, parts.engine, ready.amp)
    with contextlib.suppress(Done):
        loop.fit(plan, stepper, judge, callbacks, frozenset(), state)


def told(summaries: list[common.Figures]) -> common.Figures:
    """How much a replay of the epoch's data would have added."""
    late = summaries[0]["contestants"][f"at {LATE:.0%}"]
    return {"seconds that collating the steps between again would add": round(late["settings"]["replay"], 2)}


if __name__ == "__main__":
    raise SystemExit(common.main(common.parser("resume_cost", __doc__ or ""), races, child, told))
