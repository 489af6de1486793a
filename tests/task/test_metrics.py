"""Every metric against its formula, written out with loops, and what happens in degenerate cases."""

import logging
import math
import warnings
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.errors import ConfigError
from whet.task.metrics import _note, available, compute_metrics, metric

KINDS = ("single_label", "binary", "multi_label", "regression")
SEEDS = st.integers(0, 10_000)
FEW = settings(max_examples=60, deadline=None)


def rows(kind, seed, n=None, classes=4):
    """Labels, probabilities (with ties) and decisions."""
    rng = np.random.default_rng(seed)
    n = n or int(rng.integers(2, 30))
    if kind == "regression":
        labels, values = rng.integers(-3, 4, n) / 2.0, rng.integers(-3, 4, n) / 2.0
        return labels, values, None
    if kind == "binary":
        chance = rng.integers(0, 6, n) / 5
        return rng.integers(0, 2, n), chance, (chance >= 0.5).astype(int)
    if kind == "multi_label":
        chance = rng.integers(0, 6, (n, classes)) / 5
        return (rng.random((n, classes)) < 0.4).astype(np.float32), chance, (chance >= 0.5).astype(np.float32)
    chance = rng.integers(1, 5, (n, classes)).astype(float)
    chance /= chance.sum(axis=1, keepdims=True)
    return rng.integers(0, classes, n), chance, chance.argmax(axis=1)


def close(found, expected):
    if math.isnan(expected):
        return math.isnan(found)
    return found == pytest.approx(expected, abs=1e-9)


# ---------------------------------------------------------------- the formulas


def counts(truth, decided):
    """True positives, false positives, false negatives of one class from booleans."""
    hits = sum(1 for t, d in zip(truth, decided, strict=True) if t and d)
    return hits, sum(map(bool, decided)) - hits, sum(map(bool, truth)) - hits


def precision_recall_f1(hits, extra, missed):
    precision = hits / (hits + extra) if hits + extra else 0.0
    recall = hits / (hits + missed) if hits + missed else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return precision, recall, f1


def by_class(labels, decisions):
    return {
        c: counts([t == c for t in labels], [d == c for d in decisions])
        for c in sorted({*labels.tolist(), *decisions.tolist()})
    }


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def naive_classes(labels, decisions):
    table = by_class(labels, decisions)
    scores = {c: precision_recall_f1(*found) for c, found in table.items()}
    support = {c: sum(t == c for t in labels) for c in table}
    same = sum(t == d for t, d in zip(labels, decisions, strict=True))
    return {
        "accuracy": same / len(labels),
        "balanced_accuracy": mean(scores[c][1] for c in table if support[c]),
        "f1_macro": mean(s[2] for s in scores.values()),
        "f1_weighted": sum(scores[c][2] * support[c] for c in table) / len(labels),
        "f1_micro": same / len(labels),
        "precision_macro": mean(s[0] for s in scores.values()),
        "recall_macro": mean(s[1] for s in scores.values()),
        "mcc": naive_mcc(labels, decisions, same),
    }


def naive_mcc(labels, decisions, same):
    """Gorodkin (2004), closed form over the confusion counts."""
    n = len(labels)
    classes = {*labels.tolist(), *decisions.tolist()}
    t = {c: sum(y == c for y in labels) for c in classes}
    p = {c: sum(d == c for d in decisions) for c in classes}
    above = same * n - sum(t[c] * p[c] for c in classes)
    below = math.sqrt(n * n - sum(v * v for v in p.values())) * math.sqrt(
        n * n - sum(v * v for v in t.values())
    )
    return above / below if below else 0.0


def naive_auc(truth, scores):
    """Share of (positive, negative) pairs in the right order, half for a tie."""
    positive = [s for t, s in zip(truth, scores, strict=True) if t]
    negative = [s for t, s in zip(truth, scores, strict=True) if not t]
    if not positive or not negative:
        return math.nan
    return mean((p > q) + 0.5 * (p == q) for p, q in product(positive, negative))


def naive_ap(truth, scores):
    """Sum over distinct thresholds of precision times the step in recall."""
    if not any(truth) or all(truth):
        return math.nan
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = [t for t, s in zip(truth, scores, strict=True) if s >= threshold]
        recall = sum(taken) / sum(truth)
        area += (recall - before) * sum(taken) / len(taken)
        before = recall
    return area


def macro(score, truth, chance):
    found = [score(truth[:, c], chance[:, c]) for c in range(truth.shape[1])]
    defined = [value for value in found if not math.isnan(value)]
    return mean(defined) if defined else math.nan


def ranks(values):
    """Mean rank of each value among all, from 1."""
    return [sum(w < v for w in values) + (1 + sum(w == v for w in values)) / 2 for v in values]


def naive_pearson(a, b):
    a, b = list(a), list(b)
    x, y = [v - mean(a) for v in a], [v - mean(b) for v in b]
    below = math.sqrt(sum(v * v for v in x) * sum(v * v for v in y))
    return sum(v * w for v, w in zip(x, y, strict=True)) / below if below > 1e-12 else math.nan


# ---------------------------------------------------------------- properties


@given(SEEDS)
@FEW
def test_single_label_classes(seed):
    labels, chance, decisions = rows("single_label", seed)
    expected = naive_classes(labels, decisions)
    found = compute_metrics(list(expected), "single_label", labels, chance, decisions)
    assert list(found) == list(expected)
    assert all(close(found[name], expected[name]) for name in expected), (found, expected)


@given(SEEDS)
@FEW
def test_binary_classes(seed):
    labels, chance, decisions = rows("binary", seed)
    precision, recall, f1 = precision_recall_f1(*counts(labels == 1, decisions == 1))
    expected = naive_classes(labels, decisions) | {"precision": precision, "recall": recall, "f1": f1}
    found = compute_metrics(list(expected), "binary", labels, chance, decisions)
    assert all(close(found[name], expected[name]) for name in expected), (found, expected)


@given(SEEDS, st.integers(1, 4))
@FEW
def test_multi_label_classes(seed, classes):
    labels, chance, decisions = rows("multi_label", seed, classes=classes)
    table = [counts(labels[:, c], decisions[:, c]) for c in range(classes)]
    scores = [precision_recall_f1(*found) for found in table]
    micro = precision_recall_f1(*(sum(part) for part in zip(*table, strict=True)))
    support = labels.sum(axis=0).tolist()
    weighted = (
        sum(s[2] * w for s, w in zip(scores, support, strict=True)) / sum(support) if sum(support) else 0.0
    )
    expected = {
        "precision_micro": micro[0],
        "recall_micro": micro[1],
        "f1_micro": micro[2],
        "precision_macro": mean(s[0] for s in scores),
        "recall_macro": mean(s[1] for s in scores),
        "f1_macro": mean(s[2] for s in scores),
        "f1_weighted": weighted,
        "f1_samples": mean(
            precision_recall_f1(*counts(t, d))[2] for t, d in zip(labels, decisions, strict=True)
        ),
        "subset_accuracy": mean(all(t == d) for t, d in zip(labels, decisions, strict=True)),
        "hamming_loss": mean(t != d for t, d in zip(labels.ravel(), decisions.ravel(), strict=True)),
    }
    found = compute_metrics(list(expected), "multi_label", labels, chance, decisions)
    assert all(close(found[name], expected[name]) for name in expected), (found, expected)


@given(SEEDS, st.sampled_from(KINDS[:3]))
@FEW
def test_probabilities(seed, kind):
    labels, chance, decisions = rows(kind, seed)
    if kind == "binary":
        truth, columns = (labels == 1)[:, None], chance[:, None]
    else:
        columns = chance
        truth = labels == 1 if kind == "multi_label" else np.stack([labels == c for c in range(4)], axis=1)
    own = columns[truth] if kind == "single_label" else np.where(truth, columns, 1 - columns).ravel()
    squares = [(float(t) - p) ** 2 for t, p in zip(truth.ravel(), columns.ravel(), strict=True)]
    expected = {
        "roc_auc": macro(naive_auc, truth, columns),
        "average_precision": macro(naive_ap, truth, columns),
        "log_loss": mean(-math.log(min(max(p, 1e-7), 1 - 1e-7)) for p in own.tolist()),
        "brier": sum(squares) / (len(labels) if kind == "single_label" else len(squares)),
    }
    found = compute_metrics(list(expected), kind, labels, chance, decisions)
    assert all(close(found[name], expected[name]) for name in expected), (found, expected)


@given(SEEDS)
@FEW
def test_regression(seed):
    labels, values, _ = rows("regression", seed)
    errors = [v - t for t, v in zip(labels, values, strict=True)]
    spread = mean((t - mean(labels)) ** 2 for t in labels)
    expected = {
        "pearson": naive_pearson(labels, values),
        "spearman": naive_pearson(ranks(labels), ranks(values)),
        "mse": mean(e * e for e in errors),
        "rmse": math.sqrt(mean(e * e for e in errors)),
        "mae": mean(abs(e) for e in errors),
        "r2": 1 - mean(e * e for e in errors) / spread if spread else math.nan,
    }
    found = compute_metrics(list(expected), "regression", labels, values, None)
    assert all(close(found[name], expected[name]) for name in expected), (found, expected)


@given(SEEDS, st.sampled_from(KINDS))
@FEW
def test_order_of_rows_does_not_matter(seed, kind):
    labels, chance, decisions = rows(kind, seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = None if decisions is None else decisions[order]
    one = compute_metrics(available(kind), kind, labels, chance, decisions)
    other = compute_metrics(available(kind), kind, labels[order], chance[order], shuffled)
    assert all(close(one[name], other[name]) for name in one)


# ---------------------------------------------------------------- directions and names


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_beats_reversed_in_the_direction_declared(kind):
    labels, _, _ = rows(kind, 3, n=40)
    good = {"single_label": np.eye(4)[labels.astype(int)] * 0.9 + 0.025, "regression": labels}.get(
        kind, labels * 0.8 + 0.1
    )
    bad = {"single_label": np.roll(good, 1, axis=-1), "regression": -labels}.get(kind, 1 - good)
    decide = (lambda p: p.argmax(axis=1)) if kind == "single_label" else (lambda p: (p >= 0.5).astype(int))
    best = compute_metrics(available(kind), kind, labels, good, decide(good))
    worst = compute_metrics(available(kind), kind, labels, bad, decide(bad))
    for name in available(kind):
        sign = 1 if metric(name, kind).direction == "maximize" else -1
        assert sign * best[name] > sign * worst[name], name


def test_unknown_name_says_what_there_is():
    with pytest.raises(ConfigError, match=r"metrics=f1_marco: .*did you mean f1_macro\?"):
        metric("f1_marco", "single_label")
    with pytest.raises(ConfigError, match="no such metric for a regression task"):
        metric("accuracy", "regression")
    assert metric("rmse", "regression").needs == "values"
    assert metric("log_loss", "binary").needs == "probabilities"
    assert metric("mcc", "binary").needs == "classes"


def test_classes_need_decisions():
    with pytest.raises(ConfigError, match="accuracy needs decided classes"):
        compute_metrics(["accuracy"], "binary", np.array([0, 1]), np.array([0.1, 0.9]), None)


# ---------------------------------------------------------------- degenerate cases


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["one class", "constant", "one row", "no rows", "nan", "unlabelled"])
def test_degenerate_rows_never_raise_nor_warn(kind, case, caplog):
    labels, chance, decisions = rows(kind, 1, n=1 if case == "one row" else 12)
    if case == "one class":
        labels = np.ones_like(labels)
    if case == "constant":
        chance = np.full_like(chance, 0.25)
    if case == "no rows":
        labels, chance, decisions = labels[:0], chance[:0], None if decisions is None else decisions[:0]
    if case == "nan":
        chance = np.full_like(chance, np.nan)
    if case == "unlabelled":
        labels = np.full_like(labels, np.nan if kind == "regression" else -1)
    _note.cache_clear()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        for _ in range(3):
            found = compute_metrics(available(kind), kind, labels, chance, decisions)
    assert list(found) == list(available(kind))
    assert len(caplog.records) <= 1
    if case in ("no rows", "unlabelled"):
        assert all(map(math.isnan, found.values()))
        assert "no labelled rows" in caplog.text
    if case == "nan":
        assert math.isnan(found.get("roc_auc", found.get("pearson")))
        assert "NaN or infinity" in caplog.text


def test_rows_without_a_label_are_left_out():
    labels, chance, decisions = rows("single_label", 5, n=20)
    gaps = labels.copy()
    gaps[::3] = -1
    kept = gaps >= 0
    names = available("single_label")
    found = compute_metrics(names, "single_label", gaps, chance, decisions)
    assert found == compute_metrics(names, "single_label", labels[kept], chance[kept], decisions[kept])


def test_absent_classes_are_left_out_of_rankings_alone():
    labels = np.array([0, 0, 1, 1])
    chance = np.array([[0.6, 0.2, 0.2], [0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7]])
    found = compute_metrics(
        ["roc_auc", "f1_macro", "log_loss"], "single_label", labels, chance, chance.argmax(axis=1)
    )
    assert found["roc_auc"] == pytest.approx((1.0 + 0.625) / 2)
    assert found["f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)
