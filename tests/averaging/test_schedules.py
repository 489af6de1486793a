"""Averages by the schedules against sums written out."""

import numpy as np
import pytest

from whet.averaging.base import is_off
from whet.averaging.ema import ema
from whet.averaging.none import none
from whet.averaging.swa import swa
from whet.config import Method, part
from whet.types import Duration

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(41, 3))
"""Before the first update, and after each of 40."""


def followed(schedule, **settings):
    """The average after each update."""
    average, found = WEIGHTS[0], []
    for step in range(40):
        share = schedule(step, 40, 10, **settings)
        if share is not None:
            average = average + share * (WEIGHTS[step + 1] - average)
        found.append(average)
    return np.array(found)


def test_none_moves_nothing():
    assert {none(step, 40, 10) for step in range(40)} == {None}
    assert is_off(none)
    assert is_off(part({"_target_": "whet.averaging.none.none"}, Method, "averaging"))
    assert not is_off(part({"_target_": "whet.averaging.ema.ema"}, Method, "averaging"))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("every", [1, 3])
def test_ema_from_the_initial_weights(decay, every):
    """decay^n w_0 + (1 - decay) sum_i decay^(n - i) w_i."""
    found = followed(ema, decay=decay, every=every, beginning="initial")
    for step in (0, 2, 11, 39):
        seen = WEIGHTS[every : step + 2 : every]
        shares = (1 - decay) * decay ** np.arange(len(seen))[::-1]
        np.testing.assert_allclose(found[step], decay ** len(seen) * WEIGHTS[0] + shares @ seen, rtol=1e-12)


@pytest.mark.parametrize("every", [1, 4])
def test_unbiased_ema_is_a_weighted_mean_without_the_start(every):
    found = followed(ema, decay=0.8, every=every, beginning="unbiased")
    for step in (every - 1, 11, 39):
        seen = WEIGHTS[every : step + 2 : every]
        shares = 0.8 ** np.arange(len(seen))[::-1]
        np.testing.assert_allclose(found[step], shares @ seen / shares.sum(), rtol=1e-12)


def test_rising_ema_keeps_what_the_rule_says():
    kept = [1 - ema(step, 40, 10, decay=0.7) for step in range(40)]
    np.testing.assert_allclose(kept, [min(0.7, (1 + n) / (10 + n)) for n in range(1, 41)])
    assert kept[0] == pytest.approx(2 / 11) and kept[-1] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("start", "every", "first", "stride"),
    [
        ("0.5", "1st", 20, 1),
        ("2ep", "5st", 20, 5),
        ("8st", "0.5ep", 8, 5),
        ("0", "1st", 1, 1),
        ("1", "1st", 40, 1),
    ],
)
def test_swa_is_the_mean_from_its_start(start, every, first, stride):
    found = followed(swa, start=Duration.parse(start), every=Duration.parse(every))
    for step in (0, 5, 19, 22, 39):
        if step + 1 < first:
            wanted = WEIGHTS[step + 1]
        else:
            wanted = WEIGHTS[first : step + 2 : stride].mean(0)
        np.testing.assert_allclose(found[step], wanted, rtol=1e-12)
