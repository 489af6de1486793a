"""The base rate throughout, after a warmup if one is given."""

from __future__ import annotations

from whet.scheduler.base import NO_WARMUP, rising, warmup_steps
from whet.types import Duration


def constant(
    step: int,
    total: int,
    per_epoch: int,
    *,
    warmup: Duration = NO_WARMUP,
) -> float:
    """The base rate throughout, after a warmup if one is given.

    Args:
        step: update, from 0.
        total: updates of the run.
        per_epoch: updates of an epoch.
        warmup: linear rise from 0, in steps (`100st`), epochs (`0.5ep`) or a share of the run (`0.06`).
    """
    rise = warmup_steps(warmup, total, per_epoch)
    early = rising(step, rise)
    if early is not None:
        return early
    return 1.0
