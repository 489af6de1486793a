"""Averaging: which weights are judged, kept as the best and exported, while training goes on with its own.

`f(step, total, per_epoch)` says how far the average moves towards the weights that update `step` (0 the
first, `total - 1` the last) has made: `average += f * (weights - average)`. 1 makes it those weights, None
leaves it. So a schedule is a pure function of the step, and a resumed run needs only the average itself.
"""

from __future__ import annotations

from collections.abc import Callable

from whet.averaging.none import none

Averaging = Callable[[int, int, int], float | None]


def is_off(averaging: object) -> bool:
    """Whether it is `none`, with or without settings bound."""
    return getattr(averaging, "func", averaging) is none
