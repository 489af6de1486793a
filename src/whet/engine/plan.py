"""Which rows each update sees, and when it is time to evaluate: decided before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
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
    ends: tuple[int, ...]
    """Updates done at the end of each epoch (the last one may be cut short)."""

    @classmethod
    def of(cls, lengths: Rows, batching: Batching, accumulate: int, seed: int, duration: Duration, limit: int | None) -> Plan:
        """The plan of a run of `duration`, at most `limit` updates."""
        draft = cls(lengths, batching, accumulate, seed, ())
        ends: list[int] = []
        done, target = 0, math.inf
        while done < target:
            count = len(draft.windows(len(ends)))
            done += count
            ends.append(done)
            if duration.unit == "ep" and len(ends) >= duration.value:
                target = done - int(count * (len(ends) - duration.value))
            if duration.unit == "st":
                target = int(duration.value)
            target = min(target, limit if limit is not None else target)
        ends[-1] = int(target)
        return cls(lengths, batching, accumulate, seed, tuple(ends))

    @property
    def total(self) -> int:
        """Updates of the run."""
        return self.ends[-1]

    @property
    def per_epoch(self) -> int:
        """Updates of the first epoch."""
        return self.ends[0]

    def windows(self, epoch: int) -> list[list[Rows]]:
        """Windows of one epoch (from 0), in order."""
        rng = np.random.default_rng([self.seed, epoch])
        return self.batching.windows(self.lengths, self.accumulate, rng)

    def __iter__(self) -> Iterator[Update]:
        step = 0
        for epoch, end in enumerate(self.ends):
            windows = self.windows(epoch)
            for place, window in enumerate(windows[: end - step], 1):
                yield Update(step, epoch + place / len(windows), window)
                step += 1

    def evaluations(self, every: Duration) -> frozenset[int]:
        """Numbers of finished updates at which to evaluate; the end is always among them."""
        if every.unit != "ep":
            stride = max(1, every.steps(self.per_epoch, self.total))
            return frozenset({*range(stride, self.total, stride), self.total})
        marks = (every.value * k for k in range(1, math.ceil(len(self.ends) / every.value) + 1))
        return frozenset({min(self._at(epoch), self.total) for epoch in marks} | {self.total})

    def _at(self, epoch: float) -> int:
        """Updates done when `epoch` epochs have passed."""
        whole = min(int(epoch), len(self.ends))
        before = self.ends[whole - 1] if whole else 0
        after = self.ends[min(whole, len(self.ends) - 1)]
        return before + round((epoch - whole) * (after - before))

    def padding(self) -> float:
        """Share of padding among the tokens of the first epoch."""
        return self.batching.padding(self.lengths, [rows for window in self.windows(0) for rows in window])
