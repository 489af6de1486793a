"""The plan: which rows when, for how long, and when to evaluate."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.data.batching import Batching
from whet.engine.plan import Plan
from whet.types import Duration

LENGTHS = np.random.default_rng(0).integers(3, 40, 103)
TEN = np.full(100, 7)
"""Ten updates an epoch under `Batching(size=10)`."""


def plan(duration, lengths=TEN, batching=None, accumulate=1, seed=0, limit=None):
    return Plan.of(lengths, batching or Batching(size=10), accumulate, seed, Duration.parse(duration), limit)


def uneven(duration, seed=0, limit=None):
    """A plan whose epochs have different numbers of updates (the token budget sees to that)."""
    return plan(duration, LENGTHS, Batching(size=6, tokens=90, pool=2), 2, seed, limit)


def test_every_row_once_an_epoch():
    made = uneven("3ep")
    steps = iter(made)
    for count in made.counts:
        rows = [row for _ in range(count) for batch in next(steps).micro_batches for row in batch]
        assert sorted(rows) == list(range(len(LENGTHS)))
    assert next(steps, None) is None


def test_epochs_differ_in_their_number_of_updates():
    assert len(set(uneven("6ep").counts)) > 1


@pytest.mark.parametrize(
    ("duration", "total", "epochs"),
    [
        ("3ep", 30, 3),
        ("0.5ep", 5, 1),
        ("2.5ep", 25, 3),
        ("2.7ep", 27, 3),
        ("0.01ep", 1, 1),
        ("0.55ep", 6, 1),
        ("500st", 500, 50),
        ("7st", 7, 1),
        ("10st", 10, 1),
    ],
)
def test_totals(duration, total, epochs):
    made = plan(duration)
    assert (made.total, len(made.counts), len(list(made))) == (total, epochs, total)
    assert made.per_epoch == 10


def test_the_debug_limit_cuts():
    assert plan("3ep", limit=4).total == 4
    assert plan("500st", limit=12).total == len(list(plan("500st", limit=12))) == 12
    assert plan("3ep", limit=100).total == 30
    assert plan("3ep", limit=4).per_epoch == 10


@given(st.integers(1, 60), st.integers(1, 80), st.integers(1, 3))
@settings(max_examples=50)
def test_totals_of_any_fraction(tenths, rows, accumulate):
    made = plan(f"{tenths / 10}ep", np.full(rows, 3), Batching(size=4), accumulate)
    each = math.ceil(rows / (4 * accumulate))
    full, part = divmod(Fraction(tenths, 10), 1)
    assert made.total == full * each + math.ceil(part * each) == len(list(made))


def order(made):
    return [[rows.tolist() for rows in update.micro_batches] for update in made]


def test_a_pure_function_of_the_seed():
    assert order(uneven("2ep")) == order(uneven("2ep"))
    assert order(uneven("2ep")) != order(uneven("2ep", seed=1))
    ten = order(plan("2ep"))
    assert ten[:10] != ten[10:]
    assert order(plan("1ep")) == ten[:10]  # a longer run starts like a shorter one


def test_steps_and_epochs_are_numbered():
    updates = list(plan("2.5ep"))
    assert [update.step for update in updates] == list(range(25))
    assert [update.epoch for update in updates] == pytest.approx([(step + 1) / 10 for step in range(25)])


@pytest.mark.parametrize(
    ("duration", "every", "marks"),
    [
        ("3ep", "1ep", {10, 20, 30}),
        ("3ep", "0.5ep", {5, 10, 15, 20, 25, 30}),
        ("3ep", "2ep", {20, 30}),
        ("3ep", "5ep", {30}),
        ("2.5ep", "1ep", {10, 20, 25}),
        ("2.5ep", "0.5ep", {5, 10, 15, 20, 25}),
        ("0.5ep", "0.2ep", {2, 4, 5}),
        ("3ep", "0.7ep", {7, 14, 21, 28, 30}),
        ("2ep", "8st", {8, 16, 20}),
        ("2ep", "100st", {20}),
        ("2ep", "0.25", {5, 10, 15, 20}),
        ("2ep", "1", {20}),
        ("1ep", "0.01ep", set(range(1, 11))),
        ("1ep", "0.001", set(range(1, 11))),
    ],
)
def test_evaluation_marks(duration, every, marks):
    assert plan(duration).evaluations(Duration.parse(every)) == marks


@pytest.mark.parametrize("seed", range(5))
def test_whole_epochs_fall_on_their_ends(seed):
    made = uneven("4.5ep", seed)
    ends = set(np.cumsum(made.counts).tolist())
    marks = made.evaluations(Duration(1, "ep"))
    assert {mark for mark in marks if mark < made.total} == {end for end in ends if end < made.total}
    assert made.total in marks
    by_step = {update.step + 1: update.epoch for update in made}
    assert all(by_step[mark] == round(by_step[mark]) for mark in marks - {made.total})
    halves = made.evaluations(Duration(0.5, "ep"))
    assert marks <= halves
    for mark in halves - {made.total}:  # the nearest update, at most half an update away
        distance = min(abs(by_step[mark] - k / 2) for k in range(1, 10))
        assert distance <= 0.5 / min(made.counts) + 1e-9


@given(st.floats(0.01, 5), st.sampled_from(["3ep", "0.3ep", "17st"]), st.integers(0, 3))
@settings(max_examples=40)
def test_the_end_is_always_evaluated_and_nothing_before_the_first_update(every, duration, seed):
    made = uneven(duration, seed)
    marks = made.evaluations(Duration(every, "ep"))
    assert made.total in marks
    assert all(1 <= mark <= made.total for mark in marks)


def test_padding_is_that_of_the_batches():
    made = uneven("1ep")
    batches = [rows for update in made for rows in update.micro_batches]
    real = sum(int(LENGTHS[rows].sum()) for rows in batches)
    padded = sum(len(rows) * int(LENGTHS[rows].max()) for rows in batches)
    assert made.padding() == pytest.approx(1 - real / padded)


def test_no_rows_no_plan():
    with pytest.raises(ValueError, match="no rows"):
        plan("5st", np.array([], dtype=np.int64))
