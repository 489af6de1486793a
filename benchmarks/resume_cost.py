"""Whether a resume late in an epoch costs more than one early in it: it must not replay the epoch.

A tiny model goes through an epoch of all IMDB reviews and leaves checkpoints at 5 % and at 95 % of it. A
fresh process loads the data, then the clock runs from the look for a checkpoint to the end of the first
update. Every text is padded to the same length, so that both first updates are the same work; a replay of
90 % of the epoch would show, as its steps cost next to nothing.

    make bench ARGS="resume_cost"
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import training

import whet.engine.train as story
from whet.engine.callbacks import Callback, State
from whet.engine.checkpoint import Checkpoints
from whet.engine.plan import Plan
from whet.engine.run import Run
from whet.engine.step import Stepper, StepResult
from whet.types import Duration

EARLY, LATE = 1, 19
"""Twentieths of the epoch."""


def races(given: argparse.Namespace) -> list[common.Race]:
    rows = ["debug.rows=1600"] if given.quick else []
    length = 32
    keys = [
        "task=imdb", "model=tiny", f"task.max_length={length}", f"engine.batching.pad_to={length}",
        "engine.batching.size=16", "engine.duration=1ep", *rows,
    ]  # fmt: skip
    ready = common.prepared(given.threads, keys=keys)
    names = {place: f"at {place / 20:.0%}" for place in (EARLY, LATE)}
    return [
        common.Race(
            title=f"first step after a resume, epoch of {ready['steps']} steps",
            contestants={
                name: {
                    "keys": keys,
                    "contestant": "resume",
                    "run": ready["run"],
                    "step": ready["step"] * place,
                    "replay": ready["replay"],
                }
                for place, name in names.items()
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


class End(Callback):
    """Notes the time of the first update from `step` on, and ends the training."""

    def __init__(self, step: int) -> None:
        self.step, self.at = step, 0.0

    def on_update(self, state: State, result: StepResult) -> None:
        if state.step >= self.step:
            self.at = training.now()
            raise training.Done


def prepare(settings: common.Figures) -> common.Figures:
    """A run that died at 95 % of the epoch, with a checkpoint at every twentieth of it."""
    setup = training.set_up(settings["keys"], settings["threads"])
    step = training.updates(setup) // 20
    setup.parts.engine = replace(setup.parts.engine, checkpoint_every=Duration(step, "st"), keep=20)
    folder = Path(settings["folder"]) / "run"
    folder.mkdir()
    kept: list[tuple[Plan, Stepper]] = []

    def ending(plan: Plan, stepper: Stepper, own: Sequence[Callback]) -> list[Callback]:
        kept.append((plan, stepper))
        return [End(step * LATE)]

    training.through(setup, Run.create(folder, setup.config, []), ending)
    plan, stepper = kept[0]
    return {"run": str(folder), "step": step, "steps": plan.total, "replay": replay(plan, stepper, step)}


def replay(plan: Plan, stepper: Stepper, step: int) -> float:
    """Seconds of collating again what lies between the two checkpoints."""
    started = time.perf_counter()
    for update in itertools.islice(plan.after(0), step * EARLY, step * LATE):
        stepper.collator(np.concatenate(update.micro_batches), stepper.amp.device)
    return time.perf_counter() - started


def resume(settings: common.Figures) -> common.Figures:
    """Seconds from the look for a checkpoint to the end of the first update."""
    source = Path(settings["run"])
    folder = source.with_name(f"at-{settings['step']}")
    shutil.copytree(source, folder)
    Checkpoints(folder / "checkpoints").keep({settings["step"]})
    setup = training.set_up(settings["keys"], settings["threads"])
    end, restoring = End(0), Timed(story.restore_newest)
    story.restore_newest = restoring
    training.through(setup, Run.reopen(folder), lambda *_: [end], resume=True)
    shutil.rmtree(folder)
    return {
        "seconds": end.at - restoring.started,
        "restore_seconds": restoring.ended - restoring.started,
        "resumed_after": restoring.result.step - 1,
    }


class Timed:
    """A function whose only call is timed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.started, self.ended, self.result = function, 0.0, 0.0, None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.started = training.now()
        self.result = self.function(*arguments, **named)
        self.ended = training.now()
        return self.result


def told(summaries: list[common.Figures]) -> common.Figures:
    """How much a replay of the epoch's data would have added."""
    late = summaries[0]["contestants"][f"at {LATE / 20:.0%}"]
    return {"seconds that collating the steps between again would add": round(late["settings"]["replay"], 2)}


if __name__ == "__main__":
    raise SystemExit(common.main(common.parser("resume_cost", __doc__ or ""), races, child, told))
