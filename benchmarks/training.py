"""Whet's own training, `whet train` without its command line and its report, with a clock at its updates."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import numpy as np

import whet.engine.train as story
from whet.config import Node, build, compose
from whet.engine import loop
from whet.engine.assemble import make_plan, make_stepper
from whet.engine.callbacks import Callback, State
from whet.engine.run import Run, peak_memory
from whet.engine.train import Parts, Ready, get_ready

if TYPE_CHECKING:
    from whet.data.tokens import Tokens
    from whet.engine.evaluate import Evaluator
    from whet.engine.plan import Plan
    from whet.engine.step import Stepper, StepResult
    from whet.evaluation.predictions import Predictions

More = Callable[["Plan", "Stepper", "Sequence[Callback]"], list[Callback]]
"""Makes further callbacks of a training, given its plan, its stepper and whet's own callbacks."""
QUIET = ("tracking=none", "tracking.log_every=50", "engine.patience=null")


@dataclass
class Setup:
    """An experiment in memory, before its first step."""

    config: Node
    parts: Parts
    ready: Ready


def set_up(overrides: Sequence[str], threads: int) -> Setup:
    """Compose, check, load: what `whet train` does before its first step."""
    import torch

    torch.set_num_threads(threads)
    config = compose("train", [*QUIET, f"engine.threads={threads}", *overrides])
    parts = build(config, Parts)()
    return Setup(config, parts, get_ready(parts))


@dataclass
class Clock(Callback):
    """Notes the time of the updates after the first `warm`, and the real tokens they saw."""

    warm: int
    total: int
    started: tuple[float, float] = (0.0, 0.0)
    ended: tuple[float, float] = (0.0, 0.0)
    """Seconds, and seconds of all this process's threads together."""
    tokens: int = 0
    steps: int = 0
    metrics: dict[str, float] | None = None

    def tick(self, step: int, tokens: int) -> None:
        """Update number `step` (from 1) is done."""
        if step <= self.warm:
            self.started = (now(), time.process_time()) if step == self.warm else self.started
            return
        self.tokens, self.steps = self.tokens + tokens, self.steps + 1
        self.ended = (now(), time.process_time()) if step == self.total else self.ended

    def on_update(self, state: State, result: StepResult) -> None:
        self.tick(state.step, result.tokens)

    def on_evaluation(self, state: State, metrics: dict[str, float], predictions: Predictions) -> None:
        self.metrics = metrics

    def figures(self) -> dict[str, Any]:
        """Speed over the timed updates."""
        seconds, work = (end - start for start, end in zip(self.started, self.ended, strict=True))
        return {
            "real_tokens": self.tokens,
            "seconds": seconds,
            "steps": self.steps,
            "tokens_per_second": self.tokens / seconds,
            "seconds_per_step": seconds / self.steps,
            "busy_cores": work / seconds,
        }


def now() -> float:
    """Seconds, once the GPU has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Memory:
    """Peak memory from now on: of the GPU where one computes, else what is resident."""

    def __init__(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif RESET.exists():
            RESET.write_text("5", encoding="utf-8")  # forget the peak so far: proc_pid_clear_refs(5)

    def peak(self) -> float:
        """In MiB. Without Linux's /proc, the peak of the whole process."""
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        if not RESET.exists():
            return float(peak_memory()["peak_mb"])
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


RESET = Path("/proc/self/clear_refs")


@dataclass
class Trained:
    """A training that was timed."""

    plan: Plan
    stepper: Stepper
    clock: Clock
    peak_mib: float
    """Of memory, from the first step on."""

    def figures(self) -> dict[str, Any]:
        """Speed, padding and memory."""
        padding = self.plan.padding()
        return {**self.clock.figures(), "padding": padding, "peak_mib": self.peak_mib}


def fit(setup: Setup, warm: int, judged: int | None = 32, more: More | None = None) -> Trained:
    """Train through the whole plan, evaluate at its end, and take the time.

    Args:
        setup: from `set_up`.
        warm: updates at the start that aren't timed.
        judged: validation rows evaluated after the last update; None takes all.
        more: makes further callbacks, called after whet's own and before the clock.
    """
    found: list[tuple[Plan, Stepper, Clock]] = []
    memory = Memory()

    def timed(plan: Plan, stepper: Stepper, own: Sequence[Callback]) -> list[Callback]:
        clock = Clock(warm, plan.total)
        found.append((plan, stepper, clock))
        return [*(more(plan, stepper, own) if more is not None else []), clock]

    if judged is not None:
        cut(setup.ready, "validation", judged)
    with tempfile.TemporaryDirectory() as folder:
        through(setup, Run.create(Path(folder), setup.config, []), timed)
    return Trained(*found[0], memory.peak())


class Done(Exception):
    """Ends a training where nothing of it is wanted any more."""


def through(setup: Setup, run: Run, more: More, resume: bool = False) -> None:
    """`whet.engine.train.train` itself, its loop called with further callbacks, up to the loop's end."""

    def fit(
        plan: Plan,
        stepper: Stepper,
        judge: Evaluator,
        callbacks: Sequence[Callback],
        evaluations: frozenset[int],
        state: State | None = None,
    ) -> State:
        loop.fit(plan, stepper, judge, [*callbacks, *more(plan, stepper, callbacks)], frozenset(), state)
        raise Done

    story.fit = fit  # the one name by which `train` calls the loop
    with contextlib.suppress(Done):
        story.train(setup.parts, setup.ready, run, setup.config, None, resume)


def assemble(setup: Setup, folder: Path) -> tuple[Plan, Stepper]:
    """Plan and stepper, for a benchmark that looks at a part of `whet.engine.train.train`."""
    parts, ready = setup.parts, setup.ready
    plan = make_plan(ready.data, parts.engine, parts.debug, parts.seed)
    stepper = make_stepper(
        ready.model, ready.data, ready.loaded, parts.engine, plan, ready.amp,
        parts.objective, parts.optimizer, parts.scheduler, folder,
    )  # fmt: skip
    return plan, stepper


def cut(ready: Ready, split: str, rows: int) -> None:
    """Keep the first `rows` of a split."""
    examples, tokens = ready.data.corpus.splits[split], ready.data.tokens[split]
    count = min(rows, len(examples))
    ready.data.corpus.splits[split] = examples.take(np.arange(count))
    ready.data.tokens[split] = head(tokens, count)


def head(tokens: Tokens, count: int) -> Tokens:
    """The first `count` texts."""
    from whet.data.tokens import Tokens

    end = int(tokens.offsets[count])
    return Tokens(tokens.ids[:end], tokens.types[:end], tokens.offsets[: count + 1], tokens.truncated[:count])


# ---------------------------------------------------------------- command line

DATA = {
    "sentences": ["task=rotten_tomatoes", "task.max_length=256"],
    "imdb": ["task=imdb", "task.max_length=256"],
}
"""Data sets and their overrides."""


def parser(name: str, text: str, data: bool = True) -> argparse.ArgumentParser:
    """The shared options, and those of a training; with `data` a choice of the data set."""
    made = common.parser(name, text)
    if data:
        made.add_argument("--data", choices=list(DATA), default="sentences", help="default %(default)s")
    made.add_argument("--rows", type=int, help="training examples")
    made.add_argument("--model", default="minilm", help="a name of conf/model (default %(default)s)")
    made.add_argument("overrides", nargs="*", help="of whet's config, for every contestant")
    return made


def data(given: argparse.Namespace, rows: Mapping[str, int], quick: int = 160) -> tuple[list[str], int]:
    """Overrides for one epoch on the data that the options name, and how many rows that is."""
    count = given.rows or (quick if given.quick else rows[given.data])
    return [*DATA[given.data], f"model={given.model}", f"debug.rows={count}", "engine.duration=1ep"], count


def updates(setup: Setup) -> int:
    """Updates of the whole training."""
    parts = setup.parts
    return make_plan(setup.ready.data, parts.engine, parts.debug, parts.seed).total
