"""Batches are a pure function of lengths: nothing lost, nothing twice, never over budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.data.batching import Batching

lengths_of = st.lists(st.integers(0, 60), min_size=1, max_size=150).map(
    lambda items: np.array(items, dtype=np.int64)
)
batchings = st.builds(
    Batching,
    size=st.integers(1, 9),
    tokens=st.one_of(st.none(), st.integers(1, 300)),
    pool=st.integers(1, 5),
    pad_to=st.one_of(st.none(), st.integers(1, 80)),
    evaluation_factor=st.integers(1, 4),
)


def windows(batching, lengths, accumulate=1, seed=0):
    return batching.windows(lengths, accumulate, np.random.default_rng(seed))


def rows_of(windows):
    return sorted(int(row) for window in windows for batch in window for row in batch)


def fits(batching, lengths, rows, factor=1):
    """Within size and budget, or a single row."""
    padded = len(rows) * max(int(lengths[rows].max()), batching.pad_to or 0)
    within = batching.tokens is None or padded <= batching.tokens * factor
    return len(rows) == 1 or (len(rows) <= batching.size * factor and within)


@given(lengths_of, batchings, st.integers(1, 4))
def test_every_row_once_and_within_budget(lengths, batching, accumulate):
    found = windows(batching, lengths, accumulate)
    assert rows_of(found) == list(range(len(lengths)))
    assert all(fits(batching, lengths, rows) for window in found for rows in window)
    whole = [np.concatenate(window) for window in found]
    assert all(fits(batching, lengths, rows, accumulate) for rows in whole)
    assert all(len(rows) for window in found for rows in window)


@given(lengths_of, batchings)
def test_evaluation_covers_all_rows_once_longest_first(lengths, batching):
    found = batching.evaluation(lengths)
    assert sorted(int(row) for rows in found for row in rows) == list(range(len(lengths)))
    assert all(fits(batching, lengths, rows, batching.evaluation_factor) for rows in found)
    assert np.all(np.diff(lengths[np.concatenate(found)]) <= 0)


@given(lengths_of, st.integers(0, 5))
def test_accumulation_holds_the_examples_of_the_big_batch(lengths, seed):
    big = windows(Batching(size=8, tokens=None, pool=3), lengths, 1, seed)
    for k in (2, 4, 8):
        small = windows(Batching(size=8 // k, tokens=None, pool=3), lengths, k, seed)
        assert [sorted(np.concatenate(w)) for w in small] == [sorted(np.concatenate(w)) for w in big]
        assert all(len(window) <= k for window in small)


@given(lengths_of, st.integers(0, 5))
def test_so_does_a_share_of_the_token_budget(lengths, seed):
    big = windows(Batching(size=8, tokens=240, pool=3), lengths, 1, seed)
    small = windows(Batching(size=4, tokens=120, pool=3), lengths, 2, seed)
    assert [sorted(np.concatenate(w)) for w in small] == [sorted(np.concatenate(w)) for w in big]


def test_a_text_beyond_the_budget_stands_alone():
    lengths = np.array([5, 5, 500, 5, 5])
    found = windows(Batching(size=4, tokens=40), lengths)
    assert [2] in [rows.tolist() for window in found for rows in window]


def test_the_budget_cuts_what_the_size_allows():
    lengths = np.full(64, 10)
    count = {tokens: len(windows(Batching(size=16, tokens=tokens), lengths)) for tokens in (None, 160, 80)}
    assert count == {None: 4, 160: 4, 80: 8}


def test_size_and_budget_defaults_are_what_the_signature_says():
    lengths = np.full(1000, 10)
    assert max(len(rows) for window in windows(Batching(), lengths) for rows in window) == 32


@pytest.mark.parametrize("seed", range(3))
def test_padding_falls_with_the_pool(seed):
    lengths = np.random.default_rng(seed).integers(5, 400, 2000)
    shares = []
    for pool in (1, 4, 50):
        batching = Batching(size=16, pool=pool, tokens=None)
        shares.append(batching.padding(lengths, [rows for w in windows(batching, lengths) for rows in w]))
    assert shares[0] > 1.5 * shares[1] > 2 * shares[2] > 0


def test_padding_by_hand():
    batches = [np.array([0, 1]), np.array([2])]
    assert Batching().padding(np.array([2, 4, 6]), batches) == pytest.approx(1 - 12 / 14)
    assert Batching(pad_to=10).padding(np.array([2, 4, 6]), batches) == pytest.approx(1 - 12 / 30)
    assert Batching().padding(np.array([0]), [np.array([0])]) == 0


def test_pad_to_pads_and_counts_against_the_budget():
    batching = Batching(size=8, tokens=128, pad_to=64)
    assert (batching.padded(3), batching.padded(100), Batching().padded(3)) == (64, 100, 3)
    assert [len(rows) for w in windows(batching, np.full(6, 3)) for rows in w] == [2, 2, 2]


def test_batches_come_in_no_order_of_length():
    lengths = np.arange(1, 1001)
    longest = [int(lengths[w[0]].max()) for w in windows(Batching(size=10, pool=100), lengths)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.4


def test_the_generator_alone_decides():
    lengths = np.random.default_rng(0).integers(1, 50, 100)
    one, same, other = (windows(Batching(size=4), lengths, 2, seed) for seed in (1, 1, 2))
    flat = [[rows.tolist() for w in found for rows in w] for found in (one, same, other)]
    assert flat[0] == flat[1] != flat[2]


def test_evaluation_factor_makes_larger_batches():
    lengths = np.full(64, 4)
    assert [len(rows) for rows in Batching(size=8, evaluation_factor=4).evaluation(lengths)] == [32, 32]
    assert len(Batching(size=8, evaluation_factor=1).evaluation(lengths)) == 8
