"""The trial that this process works on, for the code inside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import Trial


@dataclass
class Current:
    """A trial, and which of its repeats runs."""

    trial: Trial
    study: str
    folder: Path
    """Of the sweep."""
    params: dict[str, Any]
    repeat: int = 0
    repeats: int = 1
    seed: int | None = None
    """Of this repeat, where there are several."""
    prunable: bool = True
    """One objective: several can't be compared half-way."""
    told: frozenset[int] = frozenset()
    """Steps of which an earlier peer has told."""
    facts: dict[str, float] = field(default_factory=dict)
    """Sums over the repeats that the code inside wants kept: updates made and planned."""

    @property
    def number(self) -> int:
        """Of the trial in its study."""
        return int(self.trial.number)

    @property
    def place(self) -> str:
        """Folder of the run, relative to the sweep's."""
        name = f"{self.number:04d}"
        return name if self.repeats == 1 else f"{name}/seed-{self.seed}"

    def report(self, value: float, step: int, last: bool = False) -> str | None:
        """Tell the study a value of the objective half-way.

        Args:
            value: the objective now.
            step: counts from 1.
            last: nothing comes after it, so there is nothing to prune.

        Returns:
            Why the trial is to end: the pruner doesn't expect anything of it; None while it may go on.
        """
        if not self.prunable or self.repeats > 1:
            return None  # several repeats are compared as a whole, see `whet.sweep.peer`
        if step not in self.told:  # an earlier peer may have come further than the checkpoint
            self.trial.report(value, step)
        return (
            f"pruned after evaluation {step} ({value:g})" if not last and self.trial.should_prune() else None
        )


_current: list[Current | None] = []


def current() -> Current | None:
    """The trial, where there is one."""
    return _current[-1] if _current else None


@contextlib.contextmanager
def working_on(trial: Current | None) -> Iterator[None]:
    """`trial` is the current one while this lasts; None: what runs inside a trial is no part of it."""
    _current.append(trial)
    try:
        yield
    finally:
        _current.pop()


def report(value: float, step: int) -> None:
    """For the function of any Hydra app: tell the sweep a value half-way, so that it may prune the trial.

    Outside a sweep nothing happens.

    Raises:
        optuna.TrialPruned: the trial ends here; let it through.
    """
    import optuna

    reason = None if (trial := current()) is None else trial.report(value, step)
    if reason is not None:
        raise optuna.TrialPruned(reason)
