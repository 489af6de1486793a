"""Differences between groups of runs, pair by pair."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whet.errors import ConfigError, nearest

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """How far a group of runs lies from the baseline."""

    group: str
    n: int
    """Pairs: seeds that both have a figure for."""
    mean: float
    """Of group minus baseline; NaN without a pair."""
    low: float
    """Lower end of the mean's 95 % t-interval; NaN with less than two pairs."""
    high: float


def paired(values: Mapping[str, Mapping[int, float]], baseline: str) -> list[Difference]:
    """Each group against the baseline, seed by seed.

    Runs of one seed share data order and initial head, so that much of the noise is common to both and
    cancels (Student's paired t: mean ± t(0.975, n - 1) · s / √n, with s over n - 1). A seed that one of the
    two lacks, or has a NaN for, makes no pair.

    Args:
        values: group → seed → figure.
        baseline: one of the groups.

    Returns:
        One difference for every other group, in their order.

    Raises:
        ConfigError: no such baseline.
    """
    if baseline not in values:
        raise ConfigError("baseline", f"no runs of it; {nearest(baseline, values)}", baseline)
    base = values[baseline]
    found = []
    for group, own in values.items():
        if group != baseline:
            steps = [own[seed] - base[seed] for seed in own if seed in base]
            found.append(_difference(group, [step for step in steps if not math.isnan(step)]))
    return found


def _difference(group: str, steps: Sequence[float]) -> Difference:
    n = len(steps)
    mean = statistics.fmean(steps) if steps else math.nan
    half = _quantile(n - 1) * statistics.stdev(steps) / math.sqrt(n) if n > 1 else math.nan
    return Difference(group, n, mean, mean - half, mean + half)


def _quantile(freedom: int) -> float:
    """Of Student's t, at the upper end of a two-sided interval."""
    from scipy import special

    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))
