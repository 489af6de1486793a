"""Hooks of the loop. A callback is a dataclass that overrides what it needs."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.engine.step import StepResult, figures

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from whet.evaluation.predictions import Predictions
    from whet.tracking.base import Tracking

log = logging.getLogger("whet.engine")


@dataclass
class State:
    """Where a run stands."""

    step: int = 0
    """Finished updates."""
    epoch: float = 0.0
    total: int = 0
    """Updates planned."""
    evaluated: int = -1
    """Step of the last evaluation; -1 before the first."""
    best_step: int = 0
    best_value: float = math.nan
    """Primary metric of the best evaluation."""
    best: Predictions | None = None
    """Validation predictions of the best evaluation."""
    stopped: str = ""
    """Why training ends before its time; empty while it goes on."""


@dataclass
class Callback:
    """Does nothing at every hook."""

    def on_start(self, state: State) -> None:
        """Before the first update."""

    def on_update(self, state: State, result: StepResult) -> None:
        """After each update."""

    def on_evaluation(self, state: State, metrics: dict[str, float], predictions: Predictions) -> None:
        """After each evaluation on the validation split."""

    def on_end(self, state: State) -> None:
        """After the last evaluation; not when training fails."""

    def close(self, failed: BaseException | None) -> None:
        """After all else, whatever happened.

        Args:
            failed: what ended training before its time.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a resumed run needs beside that; the same on every process."""
        return {}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `tensors` gave."""


@dataclass
class Best(Callback):
    """Note which evaluation is the best so far, the first among equals."""

    metric: str
    maximize: bool

    def on_evaluation(self, state: State, metrics: dict[str, float], predictions: Predictions) -> None:
        value = metrics[self.metric]
        if state.best is None or self._better(value, state.best_value):
            state.best_step, state.best_value, state.best = state.step, value, predictions

    def _better(self, value: float, best: float) -> bool:
        if math.isnan(value):
            return False
        return math.isnan(best) or (value > best if self.maximize else value < best)


@dataclass
class EarlyStopping(Callback):
    """Stop after `patience` evaluations that don't better the best by more than `min_delta` (NaN never)."""

    metric: str
    maximize: bool
    patience: int
    min_delta: float = 0.0
    best: float = math.nan
    waited: int = 0

    def on_evaluation(self, state: State, metrics: dict[str, float], predictions: Predictions) -> None:
        value = metrics[self.metric]
        if self._improves(value):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience and state.step < state.total:
            state.stopped = f"validation/{self.metric} has not improved for {self.waited} evaluations"
            log.info("early stop at step %d: %s", state.step, state.stopped)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.best, self.waited = saved["best"], saved["waited"]

    def _improves(self, value: float) -> bool:
        gain = value - self.best if self.maximize else self.best - value
        return not math.isnan(value) and (math.isnan(self.best) or gain > self.min_delta)


@dataclass
class Report(Callback):
    """Tell the trackers: training figures every so many updates, validation figures always."""

    tracking: Tracking
    pending: list[StepResult] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)

    def on_start(self, state: State) -> None:
        self.since = time.perf_counter()

    def on_update(self, state: State, result: StepResult) -> None:
        self.pending.append(result)
        if state.step % self.tracking.log_every == 0:
            self._send(state)

    def on_evaluation(self, state: State, metrics: dict[str, float], predictions: Predictions) -> None:
        self._send(state)
        self.tracking.log({f"validation/{name}": value for name, value in metrics.items()}, state.step)
        self.since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"pending": [asdict(result) for result in figures(self.pending)]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.pending = [StepResult(**result) for result in saved["pending"]]

    def _send(self, state: State) -> None:
        """Means since the last time; evaluation time doesn't count."""
        if not self.pending:
            return
        results = figures(self.pending)
        rows = sum(result.rows for result in results)
        seconds = time.perf_counter() - self.since
        means = {
            "train/loss": sum(result.loss * result.rows for result in results) / rows,
            "train/grad_norm": sum(result.grad_norm for result in results) / len(results),
            "train/lr": results[-1].lr,
            "train/epoch": state.epoch,
            "train/tokens_per_second": sum(result.tokens for result in results) / seconds,
        }
        self.tracking.log(means, state.step)
        self.pending.clear()
        self.since = time.perf_counter()


@dataclass
class Profiler(Callback):
    """Record a few updates with torch's profiler: `profile.json` (chrome://tracing) and a printed table."""

    folder: Path
    skip: int = 2
    """Updates left out at the start (where the run has more)."""
    updates: int = 10
    """Updates recorded at most."""
    profiler: Any = None

    def on_start(self, state: State) -> None:
        from torch.profiler import profile, schedule

        skipped = max(0, min(self.skip, state.total - 1))
        steps = schedule(wait=0, warmup=skipped, active=self.updates, repeat=1)
        self.profiler = profile(schedule=steps, record_shapes=True, profile_memory=True)
        self.profiler.start()

    def on_update(self, state: State, result: StepResult) -> None:
        self.profiler.step()

    def on_end(self, state: State) -> None:
        self.profiler.stop()
        self.profiler.export_chrome_trace(str(self.folder / "profile.json"))
        table = self.profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15)
        (self.folder / "profile.txt").write_text(table, encoding="utf-8")
        log.info("the costliest operations:\n%s\ntrace: %s", table, self.folder / "profile.json")
