"""Which rows each update sees, and when it is time to evaluate: decided before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction as Exact
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from whet.data.batching import Batching
    from whet.types import Duration

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Update:
    """One optimizer update."""

    step: int
    """From 0."""
    epoch: float
    """Epochs seen once this update is done."""
    micro_batches: list[Rows]


@dataclass(frozen=True)
class Plan:
    """All updates of a run; a pure function of lengths, settings and seed."""

    lengths: Rows
    batching: Batching
    accumulate: int
    seed: int
    counts: tuple[int, ...]
    """Updates of each epoch that the run touches, as if none were cut short."""
    total: int
    """Updates of the run; the last epoch may end before its time."""
    editions: tuple[Rows, ...] = ()
    """Rows of each epoch where they differ; empty: all rows in every epoch."""

    @classmethod
    def of(
        cls,
        lengths: Rows,
        batching: Batching,
        accumulate: int,
        seed: int,
        duration: Duration,
        limit: int | None,
        editions: tuple[Rows, ...] = (),
    ) -> Plan:
        """The plan of a run of `duration`, at most `limit` updates; a last part of an update counts whole.

        Raises:
            ValueError: there are no rows.
        """
        if not len(lengths):
            raise ValueError("no rows to plan for")
        draft = cls(lengths, batching, accumulate, seed, (), 0, editions)
        most = math.inf if limit is None else limit
        steps = duration.value if duration.unit == "st" else math.inf
        epochs = exact(duration.value) if duration.unit == "ep" else None
        counts: list[int] = []
        while sum(counts) < min(most, steps):
            counts.append(len(draft.windows(len(counts))))
            if epochs is not None and len(counts) >= epochs:
                steps = _at(counts, epochs, math.ceil)
        return replace(draft, counts=tuple(counts), total=int(min(most, steps)))

    @property
    def per_epoch(self) -> int:
        """Updates of a whole first epoch, even where the run is shorter."""
        return self.counts[0]

    def windows(self, epoch: int) -> list[list[Rows]]:
        """Windows of one whole epoch (from 0), in order."""
        rng = np.random.default_rng([self.seed, epoch])
        if not self.editions:
            return self.batching.windows(self.lengths, self.accumulate, rng)
        own = self.editions[epoch]
        windows = self.batching.windows(self.lengths[own], self.accumulate, rng)
        return [[own[rows] for rows in window] for window in windows]

    def __iter__(self) -> Iterator[Update]:
        return self.after(0)

    def after(self, done: int) -> Iterator[Update]:
        """Updates that follow when `done` are finished; earlier epochs cost nothing."""
        start = 0
        for epoch, count in enumerate(self.counts):
            end = min(start + count, self.total)
            if done < end:
                windows = self.windows(epoch)
                for step in range(max(start, done), end):
                    yield Update(step, epoch + (step - start + 1) / count, windows[step - start])
            start += count

    def evaluations(self, every: Duration) -> frozenset[int]:
        """Numbers of finished updates at which to evaluate; the end is always among them.

        Whole epochs fall on their ends, fractions on the nearest update; a distance shorter than an update
        means every update.
        """
        if every.unit != "ep":
            stride = max(1, every.steps(self.per_epoch, self.total))
            return frozenset({*range(stride, self.total, stride), self.total})
        gap = exact(every.value)
        marks = (_at(self.counts, gap * k, round) for k in range(1, int(len(self.counts) / gap) + 1))
        return frozenset({max(1, mark) for mark in marks if mark < self.total} | {self.total})

    def padding(self) -> float:
        """Share of padding among the tokens of the first epoch."""
        return self.batching.padding(self.lengths, [rows for window in self.windows(0) for rows in window])


def most_epochs(rows: int, batching: Batching, accumulate: int, duration: Duration, limit: int | None) -> int:
    """How many epochs `Plan.of` can touch at most, whatever the lengths of the `rows` of an epoch."""
    updates = math.ceil(rows / (batching.size * accumulate))  # of an epoch, at least
    length = exact(duration.value) / (1 if duration.unit == "ep" else updates)
    return math.ceil(length if limit is None else min(length, Exact(limit, updates)))


def exact(value: float) -> Exact:
    """The decimal number that was written, without binary rounding: 0.1 is a tenth."""
    return Exact(str(value))


def _at(counts: list[int] | tuple[int, ...], epoch: Exact, whole: Callable[[Exact], int]) -> int:
    """Updates done when `epoch` epochs have passed; `whole` makes a number of updates of a fraction."""
    full = int(epoch)
    part = epoch - full
    return sum(counts[:full]) + (whole(part * counts[full]) if part else 0)
