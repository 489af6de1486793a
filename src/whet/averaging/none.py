"""No averaging: what is judged and exported are the weights of the last update."""

from __future__ import annotations


def none(step: int, total: int, per_epoch: int) -> float | None:
    """No averaging: what is judged and exported are the weights of the last update."""
    return None
