"""What predictions amount to, against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from omegaconf import OmegaConf
from sklearn.metrics import log_loss

from whet.evaluation.predictions import Predictions
from whet.review import verdicts
from whet.review.judged import Bin, Judged, judge, labelled, of_truth, reliability, row_losses, said, task_of
from whet.review.records import RunRecord
from whet.review.run_page import run_page

RNG = np.random.default_rng(3)


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_losses_of_rows_average_to_the_log_loss():
    chances, labels = softmax(RNG.normal(size=(50, 4))), RNG.integers(0, 4, 50)
    assert row_losses("single_label", labels, chances).mean() == pytest.approx(log_loss(labels, chances))
    positive, binary = RNG.uniform(size=50), RNG.integers(0, 2, 50)
    assert row_losses("binary", binary, positive).mean() == pytest.approx(log_loss(binary, positive))
    several, chosen = RNG.uniform(size=(50, 3)), RNG.integers(0, 2, (50, 3)).astype(np.float32)
    each = [log_loss(chosen[:, c], several[:, c]) for c in range(3)]
    assert row_losses("multi_label", chosen, several).mean() == pytest.approx(np.mean(each))
    assert row_losses("regression", np.array([1.0, 2.0]), np.array([1.5, 0.0])).tolist() == [0.25, 4.0]


def test_probability_of_the_truth():
    assert of_truth("single_label", np.array([1]), np.array([[0.2, 0.8]])).tolist() == [0.8]
    assert of_truth("binary", np.array([1, 0]), np.array([0.7, 0.9])).tolist() == pytest.approx([0.7, 0.1])


def test_reliability_is_brute_force():
    confidence, right = RNG.uniform(0.2, 1, 300), RNG.uniform(size=300) < 0.6
    found = reliability(confidence, right, bins=5)
    expected = []
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        own = [place for place, value in enumerate(confidence) if low <= value < low + 0.2]
        if own:
            expected.append((np.mean(confidence[own]), np.mean(right[own]), len(own)))
    assert [(b.confidence, b.accuracy, b.count) for b in found] == [pytest.approx(e) for e in expected]
    assert reliability(np.array([1.0]), np.array([True])) == [Bin(1.0, 1.0, 1)], (
        "certainty is in the last bin"
    )


def test_calibration_error_weights_by_count():
    judged = Judged(None, np.array([]), np.array([]), [], [Bin(0.9, 0.5, 30), Bin(0.6, 0.7, 10)])
    assert judged.calibration_error == pytest.approx((0.4 * 30 + 0.1 * 10) / 40)
    figure = verdicts.calibration(judged)
    assert figure.data[1].x == (0.9, 0.6)
    assert figure.data[1].y == (0.5, 0.7)
    assert "calibration error 0.325" in figure.layout.title.text


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        ("single_label", [0, -1, 2], [True, False, True]),
        ("multi_label", [[0, 1], [-1, -1]], [True, False]),
        ("regression", [0.5, float("nan")], [True, False]),
    ],
)
def test_rows_without_a_label(kind, labels, expected):
    assert labelled(np.array(labels), kind).tolist() == expected


def test_labels_as_a_reader_wants_them():
    assert said(1, "single_label", ("a", "b")) == "b"
    assert said([1, 0, 1], "multi_label", ("a", "b", "c")) == "a, c"
    assert said([0, 0, 0], "multi_label", ("a", "b", "c")) == "(none)"
    assert said(0.123456, "regression", ()) == "0.1235"


# ---------------------------------------------------------------- every kind of task

KINDS = {
    "single_label": ("whet.task.single_label.SingleLabel", RNG.normal(size=(40, 3)), RNG.integers(-1, 3, 40)),
    "binary": ("whet.task.binary.Binary", RNG.normal(size=(40, 1)), RNG.integers(-1, 2, 40)),
    "multi_label": (
        "whet.task.multi_label.MultiLabel",
        RNG.normal(size=(40, 3)),
        RNG.integers(0, 2, (40, 3)),
    ),
    "regression": ("whet.task.regression.Regression", RNG.normal(size=(40, 1)), RNG.normal(size=40)),
}
NAMES = {
    "single_label": ("a", "b", "c"),
    "binary": ("no", "yes"),
    "multi_label": ("a", "b", "c"),
    "regression": (),
}


def run_of(kind, folder):
    """A run's folder made by hand: config, record, predictions."""
    target, logits, labels = KINDS[kind]
    data = {"_target_": "whet.data.files.Files", "path": "gone.csv"}
    task = {"_target_": target, "name": "mine", "data": data, "text": "t", "label": "l"}
    OmegaConf.save(
        OmegaConf.create({"task": task, "seed": 1, "debug": {"_target_": "whet.debug.Debug"}, "paths": {}}),
        folder / "config.yaml",
    )
    (folder / "run.json").write_text('{"name": "x", "status": "finished", "seed": 1}')
    (folder / "predictions").mkdir()
    ids = np.array([f"row {n}" for n in range(40)])
    kept = labels if kind == "single_label" else labels.astype(np.int64 if kind == "binary" else np.float32)
    Predictions(ids, logits.astype(np.float32), kept, "test", NAMES[kind]).save(
        folder / "predictions" / "test.npz"
    )
    return RunRecord(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_every_kind_of_task(kind, tmp_path):
    record = run_of(kind, tmp_path)
    task, predictions = task_of(record), record.predictions("test")
    judged = judge(record, task, "test", texts=False)
    chances = task.probabilities(predictions.logits)
    decided, labels = task.decide(chances), predictions.labels
    keep = labelled(labels, kind)
    wrong = keep & (
        np.ones(40, bool) if kind == "regression" else (labels != decided).reshape(40, -1).any(axis=1)
    )
    losses = row_losses(kind, labels, chances)
    expected = sorted(np.flatnonzero(wrong), key=lambda row: -losses[row])[:20]
    assert [each.id for each in judged.costly] == [f"row {row}" for row in expected]
    assert [each.loss for each in judged.costly] == pytest.approx([losses[row] for row in expected])
    assert judged.report.n == keep.sum() == len(judged.labels)
    assert sum(each.count for each in judged.bins) == {"multi_label": 120, "regression": 0}.get(
        kind, keep.sum()
    )
    right = (labels == decided)[keep].mean()
    if judged.bins:
        shares = [each.accuracy * each.count for each in judged.bins]
        assert sum(shares) / sum(each.count for each in judged.bins) == pytest.approx(right)
    assert judge(record, task, "validation") is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_has_a_page(kind, tmp_path):
    _, sections = run_page(run_of(kind, tmp_path))
    page = "\n".join(sections)
    assert '<section id="test-split">' in page
    assert "the data can&#x27;t be read any more: " in page and "gone.csv" in page
    assert ("Predicted over true values" in page) == (kind == "regression")
    assert ("Which classes are taken for which" in page) == (kind in ("single_label", "binary"))
    assert ("calibration error" in page) == (kind != "regression")
    assert ("Furthest off" in page) == (kind == "regression") == ("Costliest errors" not in page)


def test_values_of_a_regression(tmp_path):
    record = run_of("regression", tmp_path)
    line, rows = verdicts.values(judge(record, task_of(record), "test", texts=False)).data
    logits, labels = KINDS["regression"][1:]
    assert rows.x == pytest.approx(labels, rel=1e-5)
    assert rows.y == pytest.approx(logits[:, 0], rel=1e-5)
    both = [*rows.x, *rows.y]
    assert line.x == line.y == (min(both), max(both))
