"""Confusion counts and precision-recall points against scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_curve

from whet.evaluation.predictions import Predictions
from whet.tracking.figures import MAX_CURVES, Curve, confusion, curves, unseen


def made(classes=3, rows=200, seed=0, split="test"):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)).astype(np.float32)
    logits[np.arange(rows), labels] += 1
    names = tuple(f"class {c}" for c in range(classes))
    return Predictions(np.arange(rows).astype(str), logits, labels, split, names)


def test_confusion_agrees_with_sklearn():
    predictions = made()
    assert (
        confusion(predictions) == confusion_matrix(predictions.labels, predictions.logits.argmax(1))
    ).all()


def test_points_agree_with_sklearn():
    rng = np.random.default_rng(1)
    truth, scores = rng.random(300) < 0.3, rng.random(300).round(2)  # many ties
    precision, recall, _ = precision_recall_curve(truth, scores)
    for wanted, got in Curve("x", truth, scores).points(11):
        assert np.isclose(got, precision[:-1][recall[:-1] >= wanted - 1e-9].max())


def test_two_classes_make_one_curve_of_the_second():
    (curve,) = curves(made(2), None)
    assert curve.name == "class 1" and curve.truth.sum() == (made(2).labels == 1).sum()
    assert ((curve.scores >= 0) & (curve.scores <= 1)).all()


def test_many_classes_are_capped_and_names_can_be_given():
    given = [f"n{c}" for c in range(30)]
    assert [curve.name for curve in curves(made(30, 3000), given)] == given[:MAX_CURVES]


def test_several_labels_a_row_have_curves_but_no_confusion():
    one_hot = np.eye(3, dtype=np.float32)[made().labels]
    predictions = Predictions(made().ids, made().logits, one_hot, "test", ("a", "b", "c"))
    assert confusion(predictions) is None
    assert [curve.name for curve in curves(predictions, None)] == ["a", "b", "c"]


def test_regression_and_unlabelled_rows_have_neither():
    regression = Predictions(np.array(["0"]), np.ones((1, 1), np.float32), np.ones(1, np.float32), "test")
    unlabelled = Predictions(made().ids, made().logits, np.array([], np.int64), "test", ("a", "b", "c"))
    for predictions in (regression, unlabelled):
        assert confusion(predictions) is None and curves(predictions, None) == []


def test_rows_without_a_label_or_with_broken_logits_do_not_count():
    predictions = made(rows=10)
    predictions.labels[0] = -100
    predictions.logits[1] = np.nan
    assert confusion(predictions).sum() == 8
    assert len(curves(predictions, None)[0].scores) == 8


def test_unseen_names_the_split():
    assert unseen({"accuracy": 1.0, "test/f1": 2.0}, "test", ["test/f1"]) == {"test/accuracy": 1.0}
