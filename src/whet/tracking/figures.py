"""What sinks draw from predictions: confusion counts and precision-recall curves, in pure NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from whet.evaluation.predictions import Predictions

MAX_CURVES = 20
"""Precision-recall curves are drawn for so many classes at most."""


@dataclass(frozen=True)
class Curve:
    """One class against the rest."""

    name: str
    truth: NDArray[Any]
    """[n] bool: the row is of this class."""
    scores: NDArray[Any]
    """[n] probability of this class."""

    def points(self, count: int = 21) -> list[tuple[float, float]]:
        """`count` (recall, precision) pairs, recall evenly from 0 to 1, precision the best reachable."""
        import numpy as np

        order = np.argsort(-self.scores, kind="stable")
        hits = np.cumsum(self.truth[order])
        last = np.append(np.diff(self.scores[order]) != 0, True)  # rows of equal score are taken together
        precision = (hits / np.arange(1, len(hits) + 1))[last]
        recall = (hits / max(int(hits[-1]), 1))[last]
        best = np.maximum.accumulate(precision[::-1])[::-1]
        wanted = np.linspace(0, 1, count)
        places = np.minimum(np.searchsorted(recall, wanted - 1e-12), len(best) - 1)
        return [(float(x), float(best[place])) for x, place in zip(wanted, places, strict=True)]


def class_names(predictions: Predictions, label_names: list[str] | None) -> list[str]:
    """Names in logit order; numbers where the task has no names."""
    return list(label_names or predictions.label_names or map(str, range(predictions.logits.shape[1])))


def confusion(predictions: Predictions) -> NDArray[Any] | None:
    """[actual, predicted] counts; None unless every row has exactly one class."""
    import numpy as np

    if not _single_label(predictions):
        return None
    keep = _usable(predictions)
    classes = predictions.logits.shape[1]
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (predictions.labels[keep], predictions.logits[keep].argmax(axis=1)), 1)
    return counts


def curves(predictions: Predictions, label_names: list[str] | None) -> list[Curve]:
    """One curve per class (of two classes: the second), at most `MAX_CURVES`; none for regression."""
    import numpy as np

    names, keep = class_names(predictions, label_names), _usable(predictions)
    logits, labels = predictions.logits[keep].astype(np.float64), predictions.labels
    if _single_label(predictions):
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
        scores = exponents / exponents.sum(axis=1, keepdims=True)
        truth = labels[keep][:, None] == np.arange(logits.shape[1])
    elif labels.ndim == 2 and labels.shape == predictions.logits.shape and predictions.label_names:
        scores, truth = 1 / (1 + np.exp(-np.clip(logits, -60, 60))), labels[keep] > 0.5
    else:
        return []
    columns = [1] if _single_label(predictions) and logits.shape[1] == 2 else range(logits.shape[1])
    return [
        Curve(names[c], truth[:, c], scores[:, c]) for c in list(columns)[:MAX_CURVES] if truth[:, c].any()
    ]


def unseen(metrics: Mapping[str, float], split: str, seen: Iterable[str]) -> dict[str, float]:
    """`metrics` under names that carry their split, without those that were logged during the run."""
    named = {name if "/" in name else f"{split}/{name}": value for name, value in metrics.items()}
    known = set(seen)
    return {name: value for name, value in named.items() if name not in known}


def _single_label(predictions: Predictions) -> bool:
    labels, logits = predictions.labels, predictions.logits
    whole = labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels) > 0
    return bool(whole and logits.ndim == 2 and logits.shape[1] >= 2)


def _usable(predictions: Predictions) -> NDArray[Any]:
    """[n] bool: labelled rows (a class below 0 means none) whose logits are finite."""
    import numpy as np

    if len(predictions.labels) != len(predictions):
        return np.zeros(len(predictions), dtype=bool)
    finite: NDArray[Any] = np.isfinite(predictions.logits.reshape(len(predictions), -1).sum(axis=1))
    return finite & (predictions.labels >= 0) if predictions.labels.ndim == 1 else finite
