"""Schedules are pure functions of the update, checked point by point against plain formulas and transformers."""

import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from whet.scheduler.constant import constant
from whet.scheduler.cosine import cosine
from whet.scheduler.linear import linear
from whet.scheduler.polynomial import polynomial
from whet.types import Duration

TOTAL, PER_EPOCH = 40, 10
WARMUPS = {"0": 0, "1st": 1, "7st": 7, "0.25": 10, "0.3ep": 3, "1ep": 10, "1": 40, "500st": 40, "0.01": 1}


def shape(name, way, power=2.0):
    """What remains of the base rate after the share `way` of the descent."""
    return {
        "constant": 1.0,
        "linear": 1 - way,
        "cosine": math.cos(math.pi * way / 2) ** 2,
        "polynomial": (1 - way) ** power,
    }[name]


SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine, "polynomial": polynomial}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("final", [0.0, 0.2, 1.0])
def test_pointwise(name, warmup, final):
    w = WARMUPS[warmup]
    settings = {} if name == "constant" else {"final": final}
    for step in range(TOTAL):
        found = SCHEDULES[name](step, TOTAL, PER_EPOCH, warmup=Duration.parse(warmup), **settings)
        if step < w:
            expected = (step + 1) / w
        else:
            left = shape(name, (step - w) / (TOTAL - w))
            expected = left if name == "constant" else final + (1 - final) * left
        assert found == pytest.approx(expected, abs=1e-12), step


def rates(schedule, **settings):
    return [schedule(step, TOTAL, PER_EPOCH, **settings) for step in range(TOTAL)]


def of_transformers(name, **settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = getattr(transformers, name)(optimizer, **settings)
    return [schedule.lr_lambdas[0](step) for step in range(TOTAL)]


@pytest.mark.parametrize("w", [0, 1, 7, 39])
def test_after_the_warmup_it_is_transformers(w):
    steps, warmup = {"num_warmup_steps": w, "num_training_steps": TOTAL}, Duration(w, "st")
    theirs = {
        "linear": of_transformers("get_linear_schedule_with_warmup", **steps),
        "cosine": of_transformers("get_cosine_schedule_with_warmup", **steps),
        "floor": of_transformers("get_cosine_with_min_lr_schedule_with_warmup", min_lr_rate=0.1, **steps),
        "power": of_transformers("get_polynomial_decay_schedule_with_warmup", lr_end=0.2, power=1.7, **steps),
        "constant": of_transformers("get_constant_schedule_with_warmup", num_warmup_steps=w),
    }
    ours = {
        "linear": rates(linear, warmup=warmup),
        "cosine": rates(cosine, warmup=warmup),
        "floor": rates(cosine, warmup=warmup, final=0.1),
        "power": rates(polynomial, warmup=warmup, final=0.2, power=1.7),
        "constant": rates(constant, warmup=warmup),
    }
    for name, expected in theirs.items():
        assert ours[name][w:] == pytest.approx(expected[w:], abs=1e-9), name
        # theirs learns at 0 in its first update; ours is one update ahead while it rises
        assert ours[name][: max(0, w - 1)] == pytest.approx(expected[1:w], abs=1e-9), name


@given(
    name=st.sampled_from(["linear", "cosine", "polynomial"]),
    total=st.integers(1, 300),
    step=st.integers(0, 400),
    warmup=st.one_of(
        st.integers(0, 400).map(lambda n: Duration(n, "st")),
        st.floats(0, 1).map(lambda share: Duration(share, "share")),
        st.floats(0, 5).map(lambda epochs: Duration(epochs, "ep")),
    ),
    final=st.floats(0, 1),
)
def test_between_final_and_one_and_never_negative(name, total, step, warmup, final):
    found = SCHEDULES[name](step, total, 17, warmup=warmup, final=final)
    w = min(warmup.steps(17, total), total)
    assert 0 <= found <= 1 + 1e-12
    if step >= w:
        assert found >= final - 1e-12
        following = SCHEDULES[name](step + 1, total, 17, warmup=warmup, final=final)
        assert following <= found + 1e-12
    if step >= total:
        assert found == pytest.approx(final, abs=1e-12)


def test_no_update_is_wasted():
    for schedule in SCHEDULES.values():
        assert min(rates(schedule, warmup=Duration(0.5, "share"))) > 0


def test_every_setting_counts():
    for schedule in SCHEDULES.values():
        assert rates(schedule) != rates(schedule, warmup=Duration(5, "st"))
    for schedule in (linear, cosine, polynomial):
        assert rates(schedule) != rates(schedule, final=0.1)
    assert rates(polynomial) != rates(polynomial, power=3.0)
    assert rates(polynomial, power=1.0) == pytest.approx(rates(linear))
