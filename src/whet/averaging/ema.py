"""An exponential moving average of the weights (Polyak & Juditsky, 1992; Tarvainen & Valpola, 2017)."""

from __future__ import annotations

from typing import Literal

from whet.types import PositiveInt, Probability


def ema(
    step: int,
    total: int,
    per_epoch: int,
    *,
    decay: Probability = 0.999,
    every: PositiveInt = 1,
    beginning: Literal["rising", "unbiased", "initial"] = "rising",
) -> float | None:
    """An exponential moving average of the weights (Polyak & Juditsky, 1992; Tarvainen & Valpola, 2017).

    Args:
        step: update, from 0.
        total: updates of the run.
        per_epoch: updates of an epoch.
        decay: share of the average that stays; about the last 1 / (1 - decay) of the averaged weights count.
        every: average after every so many updates.
        beginning: while few weights were averaged the share that stays rises as (1 + n) / (10 + n) up to
            decay (rising), or all of them count as if there had been none before (unbiased, Adam's
            correction), or the average starts at the weights before the first update (initial).
    """
    number, rest = divmod(step + 1, every)
    if rest:
        return None
    if beginning == "unbiased":
        return (1 - decay) / (1 - decay**number)
    rising = beginning == "rising"
    return 1 - (min(decay, (1 + number) / (10 + number)) if rising else decay)
