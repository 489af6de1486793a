"""A run that a sweep has asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.engine.callbacks import Callback, State
from whet.errors import PrunedError

if TYPE_CHECKING:
    from whet.config import Node
    from whet.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Trial:
    """What a sweep wants of a run. The test split isn't looked at: a search would learn it by heart."""

    facts: Node
    """For the run's record: study, number, repeat, parameters."""
    metric: str | None
    """Validation metric that is told half-way; None: what the sweep optimises isn't one."""
    report: Callable[[float, int, bool], str | None]
    """Takes that metric, the number of the evaluation (from 1), and whether it is the last one; says
    why the run is to end, or None."""


@dataclass
class Reporting(Callback):
    """Tell the sweep its metric at each evaluation, and end the run if the sweep says so."""

    trial: Trial
    count: int = 0

    def on_evaluation(self, state: State, metrics: dict[str, float], predictions: Predictions) -> None:
        """Raises PrunedError."""
        self.count += 1
        if self.trial.metric is None:
            return
        last = state.step >= state.total or bool(state.stopped)
        reason = self.trial.report(metrics[self.trial.metric], self.count, last)
        if reason is not None:
            raise PrunedError(reason, state.step)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.count = saved["count"]
