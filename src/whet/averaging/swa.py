"""The mean of the weights along the last part of training (Izmailov et al., 2018, SWA, algorithm 1)."""

from __future__ import annotations

from whet.types import Duration

HALF = Duration(0.5, "share")
EACH = Duration(1, "st")


def swa(
    step: int,
    total: int,
    per_epoch: int,
    *,
    start: Duration = HALF,
    every: Duration = EACH,
) -> float | None:
    """The mean of the weights along the last part of training (Izmailov et al., 2018, SWA, algorithm 1).

    Before `start` there is nothing to average: the weights themselves are judged. The paper averages once an
    epoch at a constant or cyclical rate (`scheduler=constant`); a falling rate brings the weights closer
    together.

    Args:
        step: update, from 0.
        total: updates of the run.
        per_epoch: updates of an epoch.
        start: after how much training the first weights count, in steps, epochs or a share of the run.
        every: after how much training from then on the next ones count.
    """
    number = step + 1
    first = min(max(1, start.steps(per_epoch, total)), total)
    if number < first:
        return 1.0
    taken, rest = divmod(number - first, max(1, every.steps(per_epoch, total)))
    return None if rest else 1 / (taken + 1)
