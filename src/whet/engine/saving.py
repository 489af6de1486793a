"""Checkpoints are written while training goes on: only the copy in memory is waited for."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

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


class Task(Generic[T]):
    """One call of a function in a thread of low priority, which an exit of the process doesn't wait for."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._result: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="whet-save", daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Whether `result` would wait for nothing."""
        return not self._thread.is_alive()

    def result(self) -> T:
        """What the function returned, once it has; raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _run(self) -> None:
        if sys.platform.startswith("linux"):  # where a thread has a priority of its own (setpriority(2))
            with contextlib.suppress(OSError):  # a sandbox may forbid it
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001  # `result` raises it in the caller's thread
            self._error = error


Best = tuple[int, float, "Predictions | None"]


@dataclass(frozen=True)
class Writing:
    """A checkpoint that is on its way to the disk."""

    step: int
    best: Best
    """Best evaluation that it knows of."""
    task: Task[str | None] | None
    """Returns why it can't be written; only the first process has one."""

    def problem(self) -> str | None:
        """Why it couldn't be written, once that is known."""
        return None if self.task is None else self.task.result()


@dataclass
class Save(Callback):
    """Save everything at each evaluation, at further steps, and when a signal asks for the end.

    The last callback: what a checkpoint holds has been logged. The best checkpoint and the last `keep` stay.
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
    _writing: Writing | None = field(init=False, repr=False, default=None)

    def on_start(self, state: State) -> None:
        self.best = (state.best_step, state.best_value, state.best)
        self.saved = state.step if state.step else -1

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
        task = Task(lambda: self._written(step, best, fill)) if self.world.first else None
        self._writing = Writing(step, (best, state.best_value, state.best), task)

    def _written(self, step: int, best: int, fill: Fill) -> str | None:
        """Write a checkpoint and remove those that needn't be kept; returns why it can't be written."""
        try:
            self.checkpoints.save(step, fill)
        except OSError as error:
            return str(error)
        recent = self.checkpoints.steps()[-self.keep :]
        self.checkpoints.keep({*recent, best, step})
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
