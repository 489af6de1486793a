"""Checkpoints are written while training goes on: only the copy in memory is waited for."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

from whet.engine.callbacks import Callback, State
from whet.engine.checkpoint import Checkpoints, Fill
from whet.engine.distributed import ALONE, World
from whet.engine.signals import StopRequest
from whet.engine.step import StepResult
from whet.errors import Interrupted, WhetError

if TYPE_CHECKING:
    from whet.evaluation.predictions import Predictions

log = logging.getLogger("whet.engine")
T = TypeVar("T")
NICE = 10
"""Priority of the writing thread (0 is the training's, 19 the lowest): it takes what training leaves idle."""


def in_background(work: Callable[[], T]) -> Future[T]:
    """Call `work` in a thread of low priority, which an exit of the process doesn't wait for."""
    future: Future[T] = Future()

    def run() -> None:
        if sys.platform.startswith("linux"):  # where a thread has a priority of its own (setpriority(2))
            with contextlib.suppress(OSError):  # a sandbox may forbid it
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # `result` raises it in the caller's thread
            future.set_exception(error)

    threading.Thread(target=run, name="whet-save", daemon=True).start()
    return future


Best = tuple[int, float, "Predictions | None"]


@dataclass(frozen=True)
class Writing:
    """A checkpoint that is on its way to the disk."""

    step: int
    best: Best
    """Best evaluation that it knows of."""
    task: Future[str | None] | None
    """Comes to why it can't be written; only the first process has one."""

    def problem(self) -> str | None:
        """Why it couldn't be written, once that is known."""
        return None if self.task is None else self.task.result()


@dataclass
class Save(Callback):
    """Save everything at each evaluation, at further steps, and when a signal asks for the end.

    The last callback: what a checkpoint holds has been logged. The last `keep` checkpoints stay, and with
    each the one that was the best then: without it a run couldn't go on there.
    """

    take: Callable[[State], Fill]
    """Copies what a checkpoint holds, on every process of the job; what it returns fills the folder."""
    checkpoints: Checkpoints
    request: StopRequest
    keep: int = 2
    further: frozenset[int] = frozenset()
    """Numbers of finished updates, none of which is evaluated."""
    on_error: Literal["go_on", "stop"] = "go_on"
    """When a checkpoint can't be written (disk full): keep the last good one and go on, or stop."""
    saved: int = -1
    """Step of the last checkpoint that is known to be written."""
    best: Best = (0, math.nan, None)
    """Best evaluation that is in a checkpoint."""
    world: World = ALONE
    """All processes stop together; the first one writes."""
    earlier: Callable[[], dict[int, int]] = dict
    """Tells of the checkpoints that a resumed run finds: step → step of the best then."""
    _bests: dict[int, int] = field(init=False, repr=False, default_factory=dict)
    """The same of all checkpoints."""
    _writing: Writing | None = field(init=False, repr=False, default=None)

    def on_start(self, state: State) -> None:
        self.best = (state.best_step, state.best_value, state.best)
        self.saved = state.step if state.step else -1
        self._bests = self.earlier()

    def on_update(self, state: State, result: StepResult) -> None:
        self.world.agree(self.request)
        noticed = self.request.take_notice()
        if self.request or noticed or state.step in self.further:
            self._save(state)
        if noticed or self._is_through():
            self.settle(state)
        self._stop_if_asked(state)

    def on_evaluation(self, state: State, metrics: dict[str, float], predictions: Predictions) -> None:
        self._save(state)
        self.world.agree(self.request)
        self._stop_if_asked(state)

    def on_end(self, state: State) -> None:
        self.settle(state)

    def close(self, failed: BaseException | None) -> None:
        """Let the last checkpoint come to its end, unless the user wants to go at once."""
        writing, self._writing = self._writing, None
        if writing is None or isinstance(failed, KeyboardInterrupt):
            return
        problem = writing.problem()
        if problem is not None:
            log.warning("%s", self._told(writing.step, problem))

    def settle(self, state: State) -> None:
        """Wait until the last checkpoint is written, and see whether it could be.

        Raises:
            WhetError: it couldn't, with `on_error=stop`.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        problem = self.world.told(writing.problem)
        if problem is None:
            self.saved, self.best = writing.step, writing.best
            return
        # only the best evaluation that was saved can be exported
        state.best_step, state.best_value, state.best = self.best
        if self.on_error == "stop":
            raise WhetError(self._told(writing.step, problem)) from None
        log.warning("%s; going on", self._told(writing.step, problem))

    def _is_through(self) -> bool:
        """Whether settling waits for nothing; several processes settle at the same steps."""
        task = None if self._writing is None else self._writing.task
        return self.world.ranks.size == 1 and task is not None and task.done()

    def _stop_if_asked(self, state: State) -> None:
        if self.request:
            self.settle(state)
            where = (
                f"its state is in {self.checkpoints.at(self.saved)}"
                if self.saved >= 0
                else "nothing is saved"
            )
            raise Interrupted(self.request.number, f"interrupted after step {state.step}; {where}")

    def _save(self, state: State) -> None:
        self.settle(state)
        fill, step, best = self.take(state), state.step, state.best_step
        task = in_background(lambda: self._written(step, best, fill)) if self.world.first else None
        self._writing = Writing(step, (best, state.best_value, state.best), task)

    def _written(self, step: int, best: int, fill: Fill) -> str | None:
        """Write a checkpoint and remove those that needn't be kept; returns why it can't be written."""
        try:
            self.checkpoints.save(step, fill)
        except OSError as error:
            return str(error)
        self._bests[step] = best
        recent = self.checkpoints.steps()[-self.keep :]
        needed = {self._bests[kept] for kept in recent if kept in self._bests}
        self.checkpoints.keep({*recent, *needed, best, step})
        return None

    def _told(self, step: int, problem: str) -> str:
        last = f"step {self.saved} is kept" if self.saved >= 0 else "there is none yet"
        return f"the checkpoint of step {step} can't be written ({problem}); {last}"


@dataclass
class Saved(Callback):
    """Before an evaluation is compared with the best one: know which can be exported. The first callback."""

    save: Save

    def on_evaluation(self, state: State, metrics: dict[str, float], predictions: Predictions) -> None:
        self.save.settle(state)
