"""A number a text: three losses by their formulas, and labels that must be numbers."""

import math

import numpy as np
import pytest
import torch

from whet.data.audit import Audit
from whet.data.files import Files
from whet.data.split import Split
from whet.errors import ConfigError, DataError
from whet.paths import Paths
from whet.task.regression import Regression

LABELS = np.array([0.0, 2.5, -1.0, 4.0], dtype=np.float32)
LOGITS = torch.tensor([[0.4], [2.0], [3.0], [4.0]])


def task(path="unused.csv", **settings):
    return Regression(
        name="t", data=Files(path=str(path)), split=Split(validation=0.25, test=0.25), **settings
    )


def load(tmp_path, labels, **settings):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"t{i},{value}\n" for i, value in enumerate(labels)))
    return task(path, **settings).load(Paths(cache=str(tmp_path / "cache")))


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        ("mse", lambda e: e**2),
        ("mae", abs),
        ("huber", lambda e: e**2 / 2 if abs(e) <= 1 else abs(e) - 0.5),
    ],
)
def test_losses_by_the_formula(loss, formula):
    criterion = task(loss=loss).criterion(LABELS, ())
    found = criterion.losses(LOGITS, torch.from_numpy(LABELS))
    expected = [formula(z - y) for z, y in zip([0.4, 2.0, 3.0, 4.0], LABELS.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert criterion.weights(LABELS).tolist() == [1] * 4


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_rows_without_a_label_count_for_nothing(loss):
    criterion = task(loss=loss).criterion(LABELS, ())
    labels = np.array([0.0, math.nan, -1.0, 4.0], dtype=np.float32)
    logits = LOGITS.clone().requires_grad_()
    losses = criterion.losses(logits, torch.from_numpy(labels))
    losses.sum().backward()
    assert losses[1] == 0 and logits.grad[1] == 0 and logits.grad.isfinite().all()
    assert criterion.weights(labels).tolist() == [1, 0, 1, 1]


def test_numbers_are_read_as_they_stand(tmp_path):
    corpus = load(tmp_path, [-1, "2.5", "1e1", " 3 "] * 6)
    found = {
        int(texts[0][1:]) % 4: value
        for examples in corpus.splits.values()
        for texts, value in zip(examples.texts, examples.labels.tolist(), strict=True)
    }
    assert found == {0: -1.0, 1: 2.5, 2: 10.0, 3: 3.0}
    assert corpus.label_names == () and corpus.splits["train"].labels.dtype == np.float32


@pytest.mark.parametrize(
    ("wrong", "problem"), [("high", "needs numbers"), ("inf", "finite"), ("-inf", "finite")]
)
def test_what_is_no_number_is_named(tmp_path, wrong, problem):
    with pytest.raises(DataError, match=f"task.label={wrong}: .*{problem}"):
        load(tmp_path, [1, 2, wrong] * 8)


def test_words_may_stand_for_numbers(tmp_path):
    corpus = load(tmp_path, ["bad", "good"] * 10, label_names={"bad": "1", "good": "5"})
    assert set(corpus.splits["train"].labels.tolist()) == {1.0, 5.0}


def test_missing_numbers(tmp_path):
    assert sum(map(len, load(tmp_path, [1, "", "nan", 4] * 8).splits.values())) == 16
    kept = load(tmp_path, [1, "", "nan", 4] * 8, audit=Audit(missing_label="keep"))
    values = np.concatenate([examples.labels for examples in kept.splits.values()])
    assert np.isnan(values).sum() == 16


def test_values_are_the_logits():
    made = task()
    values = made.probabilities(LOGITS.numpy())
    assert values.tolist() == pytest.approx([0.4, 2, 3, 4], rel=1e-6)
    assert made.decide(values) is values
    assert made.describe(values, ())[1] == {"value": 2.0}
    assert (made.head(()).outputs, made.head(()).problem) == (1, "regression")


def test_it_has_no_label_names():
    with pytest.raises(ConfigError, match="labels.*leave it null"):
        task(labels=["a"])
