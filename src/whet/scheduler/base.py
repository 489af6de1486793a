"""Learning-rate schedules: pure functions of the update's number, in shares of the base rate.

`f(step, total, per_epoch)` is the factor for update `step` (0 the first, `total - 1` the last). The first
update of a warmup of w updates learns at 1 / w, its last at 1: no update is wasted at rate 0.
"""

from __future__ import annotations

from whet.types import Duration

NO_WARMUP = Duration(0.0, "share")
SHORT_WARMUP = Duration(0.06, "share")
"""RoBERTa's share (Liu et al., 2019, table 10)."""


def warmup_steps(warmup: Duration, total: int, per_epoch: int) -> int:
    """Updates of the warmup, never more than the run has."""
    return min(warmup.steps(per_epoch, total), total)


def rising(step: int, warmup: int) -> float | None:
    """The factor while warming up, None afterwards."""
    return (step + 1) / warmup if step < warmup else None


def progress(step: int, warmup: int, total: int) -> float:
    """Share of the way after the warmup: 0 at its first update, below 1 at the last, 1 for what follows."""
    return (step - warmup) / (total - warmup) if step < total else 1.0
