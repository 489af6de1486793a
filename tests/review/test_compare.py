"""Paired differences against SciPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from whet.errors import ConfigError
from whet.review.compare import Difference, paired


def test_by_hand():
    """Differences 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.302653 (tables)."""
    values = {"none": {1: 10.0, 2: 20.0, 3: 30.0}, "lora": {3: 33.0, 1: 11.0, 2: 22.0}}
    (found,) = paired(values, "none")
    half = 4.302652729911275 / math.sqrt(3)
    assert (found.group, found.n, found.mean) == ("lora", 3, 2.0)
    assert (found.low, found.high) == (pytest.approx(2 - half), pytest.approx(2 + half))


def test_against_scipy():
    rng = np.random.default_rng(0)
    for n in (2, 5, 30):
        one, other = rng.normal(size=n), rng.normal(0.3, size=n)
        (found,) = paired({"b": dict(enumerate(one)), "g": dict(enumerate(other))}, "b")
        expected = stats.ttest_rel(other, one).confidence_interval(0.95)
        assert found.n == n
        assert found.mean == pytest.approx(np.mean(other - one))
        assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_only_shared_seeds_make_pairs():
    values = {"b": {1: 0.5, 2: 0.5, 3: math.nan}, "g": {2: 0.75, 3: 0.9, 4: 0.1}, "h": {9: 1.0}, "i": {}}
    one, none, empty = paired(values, "b")
    assert (one.group, one.n, one.mean) == ("g", 1, 0.25)
    assert math.isnan(one.low) and math.isnan(one.high), "one pair says nothing about spread"
    assert (none.group, none.n, empty.n) == ("h", 0, 0)
    assert math.isnan(none.mean)


def test_equal_groups_differ_by_exactly_nothing():
    same = {1: 0.1, 2: 0.7}
    assert paired({"b": same, "g": same}, "b") == [Difference("g", 2, 0.0, 0.0, 0.0)]


def test_unknown_baseline_is_named():
    with pytest.raises(ConfigError, match="baseline=nome: no runs of it; did you mean none"):
        paired({"none": {}, "lora": {}}, "nome")
