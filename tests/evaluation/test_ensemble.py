"""Means of probabilities and of logits, against NumPy and SciPy written out."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, softmax

from whet.errors import RunError
from whet.evaluation.ensemble import combine
from whet.evaluation.predictions import Predictions

RNG = np.random.default_rng(2)
IDS = np.array([f"id-{n}" for n in range(7)])
SHAPES = {"single_label": 3, "binary": 1, "multi_label": 4, "regression": 1}


def members(kind, scale=3.0):
    labels = RNG.normal(size=7).astype(np.float32) if kind == "regression" else RNG.integers(0, 2, 7)
    names = () if kind == "regression" else tuple("abcd"[: SHAPES[kind]])
    return [
        Predictions(
            IDS, (scale * RNG.normal(size=(7, SHAPES[kind]))).astype(np.float32), labels, "test", names
        )
        for _ in range(3)
    ]


def link(kind):
    return {"single_label": lambda z: softmax(z, axis=-1), "regression": lambda z: z}.get(kind, expit)


@pytest.mark.parametrize("kind", SHAPES)
def test_probabilities_are_averaged(kind):
    some, of = members(kind), link(kind)
    both = combine(some, ["x", "y", "z"], kind, "probability")
    wanted = np.mean([of(one.logits.astype(np.float64)) for one in some], axis=0)
    np.testing.assert_allclose(of(both.logits.astype(np.float64)), wanted, rtol=1e-5, atol=1e-7)
    assert both.logits.dtype == np.float32
    assert (both.split, both.label_names) == ("test", some[0].label_names)


@pytest.mark.parametrize("kind", SHAPES)
def test_logits_are_averaged(kind):
    some = members(kind)
    both = combine(some, ["x", "y", "z"], kind, "logit")
    np.testing.assert_allclose(both.logits, np.mean([one.logits for one in some], axis=0), rtol=1e-5)
    if kind != "regression":
        other = combine(some, ["x", "y", "z"], kind, "probability")
        assert not np.allclose(link(kind)(both.logits), link(kind)(other.logits), atol=1e-3)


def test_certain_members_stay_finite():
    """Probabilities of 0 and 1 in float64: their mean is 1/2."""
    for kind, values in (
        ("single_label", [[2000.0, -2000.0], [-2000.0, 2000.0]]),
        ("binary", [[2000.0], [-2000.0]]),
    ):
        some = [
            Predictions(IDS[:1], np.array([row], dtype=np.float32), np.array([0]), "test", ("a", "b"))
            for row in values
        ]
        both = combine(some, ["x", "y"], kind, "probability")
        assert link(kind)(both.logits.astype(np.float64))[0, 0] == pytest.approx(0.5)


def test_one_member_is_itself():
    for kind in SHAPES:
        one = members(kind)[0]
        both = combine([one], ["x"], kind, "probability")
        np.testing.assert_allclose(link(kind)(both.logits), link(kind)(one.logits), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ids": IDS[::-1]}, "7 rows that aren't the 7"),
        ({"ids": IDS[:5]}, "5 rows"),
        ({"labels": np.zeros(7, dtype=np.int64)}, "other labels"),
        ({"label_names": ("a", "c", "b")}, "labels ['a', 'c', 'b']"),
        ({"logits": np.zeros((7, 2), dtype=np.float32)}, "2 outputs"),
    ],
)
def test_what_does_not_match_is_named(change, told):
    first, other, _ = members("single_label")
    first = replace(first, labels=np.ones(7, dtype=np.int64))
    other = replace(other, labels=first.labels)
    with pytest.raises(RunError) as caught:
        combine([first, replace(other, **change)], ["runs/one", "runs/two"], "single_label", "logit")
    assert told in str(caught.value) and "runs/two" in str(caught.value)


def test_missing_numbers_are_equal():
    some = [replace(one, labels=np.full(7, np.nan, dtype=np.float32)) for one in members("regression")]
    assert len(combine(some, ["x", "y", "z"], "regression", "probability")) == 7
