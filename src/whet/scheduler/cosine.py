"""Half a cosine wave down to `final` after the warmup (Loshchilov & Hutter, 2017, SGDR, equation 5)."""

from __future__ import annotations

import math

from whet.scheduler.base import SHORT_WARMUP, progress, rising, warmup_steps
from whet.types import Duration, Fraction


def cosine(
    step: int,
    total: int,
    per_epoch: int,
    *,
    warmup: Duration = SHORT_WARMUP,
    final: Fraction = 0.0,
) -> float:
    """Half a cosine wave down to `final` after the warmup (Loshchilov & Hutter, 2017, SGDR, equation 5).

    Args:
        step: update, from 0.
        total: updates of the run.
        per_epoch: updates of an epoch.
        warmup: linear rise from 0, in steps (`100st`), epochs (`0.5ep`) or a share of the run (`0.06`).
        final: share of the base rate at the end.
    """
    rise = warmup_steps(warmup, total, per_epoch)
    early = rising(step, rise)
    if early is not None:
        return early
    return final + (1 - final) * (1 + math.cos(math.pi * progress(step, rise, total))) / 2
