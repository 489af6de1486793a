"""Figures of merit by task kind, from scikit-learn and SciPy, each with its direction.

Conventions, the same for every metric:

- Averages over classes (`macro`, `weighted`) run over the classes that occur in labels or decisions, as
  scikit-learn has it; for multi-label over all columns. A ratio without a denominator counts as 0.
- `roc_auc` and `average_precision` are one-vs-rest, macro: the plain mean over classes. A class that no row
  has, or that every row has, has no ranking and is left out; with none left the figure is NaN.
- Ties: rows of equal probability count half a pair in `roc_auc` and stand at one threshold in
  `average_precision`; `spearman` gives tied values their mean rank.
- A correlation with a constant is NaN. So is every figure over no rows, or over predictions that hold NaN.
  `compute_metrics` notes each such case once in the log and never raises for it.
- Rows without a label (a class below 0, a NaN) are left out.
- Probabilities are clipped to [1e-7, 1 - 1e-7] in `log_loss`.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from whet.errors import ConfigError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

log = logging.getLogger(__name__)

Kind = Literal["single_label", "binary", "multi_label", "regression"]
Direction = Literal["maximize", "minimize"]
Needs = Literal["classes", "probabilities", "values"]
Compute = Callable[["Array", "Array"], float]
EDGE = 1e-7
"""Distance from 0 and 1 that `log_loss` keeps."""


@dataclass(frozen=True)
class Metric:
    """One figure of merit for one kind of task."""

    name: str
    direction: Direction
    needs: Needs
    """What `compute` takes beside the labels: decided classes, probabilities, or a regression's values."""
    compute: Compute
    """(labels, predicted) to the figure; NaN where it isn't defined."""


def metric(name: str, kind: Kind) -> Metric:
    """The metric of that name for that kind of task.

    Raises:
        ConfigError: there is none; lists those there are.
    """
    known = _REGISTRY[kind]
    if name not in known:
        raise ConfigError("metrics", f"no such metric for a {kind} task; {nearest(name, known)}", name)
    return known[name]


def available(kind: Kind) -> tuple[str, ...]:
    """Names of the metrics for that kind of task."""
    return tuple(_REGISTRY[kind])


def compute_metrics(
    names: Sequence[str], kind: Kind, labels: Array, probabilities: Array, decisions: Array | None
) -> dict[str, float]:
    """All metrics of `names`, in that order.

    Args:
        names: metric names; see `available`.
        kind: task kind.
        labels: [n] classes (single_label, binary), [n, k] of 0 and 1 (multi_label) or [n] values
            (regression).
        probabilities: [n, k] (single_label, multi_label), [n] of the positive class (binary) or [n] predicted
            values (regression).
        decisions: the classes decided, shaped like `labels`; not needed for regression.

    Raises:
        ConfigError: an unknown name.
    """
    wanted = [metric(name, kind) for name in names]
    found = {one.name: _figure(one, kind, labels, probabilities, decisions) for one in wanted}
    if undefined := [name for name, value in found.items() if math.isnan(value)]:
        why = _reason(labels[_labelled(labels, kind)], probabilities)
        _note(f"not defined for these rows, given as NaN: {', '.join(undefined)} ({why})")
    return found


def _figure(one: Metric, kind: Kind, labels: Array, probabilities: Array, decisions: Array | None) -> float:
    import numpy as np

    predicted = decisions if one.needs == "classes" else probabilities
    if predicted is None:
        raise ConfigError("metrics", f"{one.name} needs decided classes and none are given", one.name)
    keep = _labelled(labels, kind)
    labels, predicted = labels[keep], predicted[keep]
    if not np.size(labels) or not np.isfinite(predicted).all():
        return math.nan
    dtype = np.float64 if kind == "regression" else np.int64
    given = np.float64 if one.needs != "classes" else np.int64
    with warnings.catch_warnings():  # degenerate rows are noted by compute_metrics, once
        warnings.simplefilter("ignore")
        return float(one.compute(np.asarray(labels).astype(dtype), np.asarray(predicted).astype(given)))


def _labelled(labels: Array, kind: Kind) -> Array:
    """[n] bool: the row has a label (a class of at least 0, a finite value)."""
    import numpy as np

    good: Array = np.isfinite(labels) if kind == "regression" else np.greater_equal(labels, 0)
    every: Array = np.all(good, axis=tuple(range(1, good.ndim)))
    return every


def _reason(labels: Array, probabilities: Array) -> str:
    import numpy as np

    if not np.size(labels):
        return "no labelled rows"
    if not np.isfinite(probabilities).all():
        return "predictions hold NaN or infinity"
    return "labels or predictions are all alike"


@functools.cache
def _note(message: str) -> None:
    log.warning(message)


# ---------------------------------------------------------------- from decided classes


def _accuracy(labels: Array, decisions: Array) -> float:
    same = labels == decisions
    return float((same.all(axis=1) if same.ndim == 2 else same).mean())


def _balanced_accuracy(labels: Array, decisions: Array) -> float:
    """Mean recall over the classes that labels hold."""
    import numpy as np
    from sklearn.metrics import recall_score

    return float(recall_score(labels, decisions, labels=np.unique(labels), average="macro", zero_division=0))


def _mcc(labels: Array, decisions: Array) -> float:
    """Matthews correlation, multi-class by Gorodkin 2004; 0 where all decisions or all labels are alike."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, decisions))


def _hamming_loss(labels: Array, decisions: Array) -> float:
    return float((labels != decisions).mean())


def _averaged(part: Literal["precision", "recall", "f1"], average: str) -> Compute:
    """Precision, recall or F1 under one of scikit-learn's averages, or of the `positive` class alone."""
    place = ("precision", "recall", "f1").index(part)

    def compute(labels: Array, decisions: Array) -> float:
        from sklearn.metrics import precision_recall_fscore_support as scores

        truth, decided, columns = _comparable(labels, decisions)
        over, how = ([1], "macro") if average == "positive" else (columns, average)
        return float(scores(truth, decided, labels=over, average=how, zero_division=0)[place])

    return compute


def _comparable(labels: Array, decisions: Array) -> tuple[Array, Array, list[int] | None]:
    """Multi-label arrays get an idle column: scikit-learn takes [n, 1] for single-label."""
    import numpy as np

    if labels.ndim == 1:
        return labels, decisions, None
    wider = [np.pad(array, ((0, 0), (0, 1))) for array in (labels, decisions)]
    return wider[0], wider[1], list(range(labels.shape[1]))


# ---------------------------------------------------------------- from probabilities


def _one_vs_rest(labels: Array, probabilities: Array) -> tuple[Array, Array]:
    """Both as [n, columns]: is the row of that class, and how probable."""
    import numpy as np

    if probabilities.ndim == 1:
        return labels[:, None], probabilities[:, None]
    if labels.ndim == 1:
        return (labels[:, None] == np.arange(probabilities.shape[1])).astype(np.int64), probabilities
    return labels, probabilities


def _ranked(score: Literal["roc_auc_score", "average_precision_score"]) -> Compute:
    def compute(labels: Array, probabilities: Array) -> float:
        import sklearn.metrics

        truth, chance = _one_vs_rest(labels, probabilities)
        defined = [column for column in range(truth.shape[1]) if 0 < truth[:, column].sum() < len(truth)]
        scores = [getattr(sklearn.metrics, score)(truth[:, c], chance[:, c]) for c in defined]
        return math.fsum(scores) / len(scores) if scores else math.nan

    return compute


def _log_loss(labels: Array, probabilities: Array) -> float:
    """Mean negative log-likelihood in nats; multi-label: per cell."""
    import numpy as np

    if labels.ndim == 1 and probabilities.ndim == 2:
        own = probabilities[np.arange(len(labels)), labels]
    else:
        own = np.where(labels == 1, probabilities, 1 - probabilities)
    return float(-np.log(np.clip(own, EDGE, 1 - EDGE)).mean())


def _brier(labels: Array, probabilities: Array) -> float:
    """Mean squared distance to the truth; single_label: summed over classes (Brier 1950), so up to 2."""
    truth, chance = _one_vs_rest(labels, probabilities)
    squares = (truth - chance) ** 2
    single = labels.ndim == 1 and probabilities.ndim == 2
    return float(squares.sum(axis=1).mean() if single else squares.mean())


# ---------------------------------------------------------------- from values


def _correlation(name: Literal["pearsonr", "spearmanr"]) -> Compute:
    def compute(labels: Array, values: Array) -> float:
        import numpy as np
        import scipy.stats

        if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(values) == 0:
            return math.nan
        return float(getattr(scipy.stats, name)(labels, values).statistic)

    return compute


def _mse(labels: Array, values: Array) -> float:
    return float(((labels - values) ** 2).mean())


def _rmse(labels: Array, values: Array) -> float:
    return math.sqrt(_mse(labels, values))


def _mae(labels: Array, values: Array) -> float:
    return float(abs(labels - values).mean())


def _r2(labels: Array, values: Array) -> float:
    spread = float(((labels - labels.mean()) ** 2).mean())
    return 1 - _mse(labels, values) / spread if spread else math.nan


# ---------------------------------------------------------------- registry

_CLASSES: dict[str, Compute] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1_macro": _averaged("f1", "macro"),
    "f1_weighted": _averaged("f1", "weighted"),
    "f1_micro": _averaged("f1", "micro"),
    "precision_macro": _averaged("precision", "macro"),
    "recall_macro": _averaged("recall", "macro"),
    "mcc": _mcc,
}
_POSITIVE: dict[str, Compute] = {
    "f1": _averaged("f1", "positive"),
    "precision": _averaged("precision", "positive"),
    "recall": _averaged("recall", "positive"),
}
_SETS: dict[str, Compute] = {
    "f1_micro": _averaged("f1", "micro"),
    "f1_macro": _averaged("f1", "macro"),
    "f1_weighted": _averaged("f1", "weighted"),
    "f1_samples": _averaged("f1", "samples"),
    "precision_micro": _averaged("precision", "micro"),
    "precision_macro": _averaged("precision", "macro"),
    "recall_micro": _averaged("recall", "micro"),
    "recall_macro": _averaged("recall", "macro"),
    "subset_accuracy": _accuracy,
    "hamming_loss": _hamming_loss,
}
_PROBABILITIES: dict[str, Compute] = {
    "roc_auc": _ranked("roc_auc_score"),
    "average_precision": _ranked("average_precision_score"),
    "log_loss": _log_loss,
    "brier": _brier,
}
_VALUES: dict[str, Compute] = {
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
    "r2": _r2,
    "mse": _mse,
    "rmse": _rmse,
    "mae": _mae,
}
_MINIMIZED = frozenset({"log_loss", "brier", "hamming_loss", "mse", "rmse", "mae"})


def _entries(computes: dict[str, Compute], needs: Needs) -> dict[str, Metric]:
    return {
        n: Metric(n, "minimize" if n in _MINIMIZED else "maximize", needs, c) for n, c in computes.items()
    }


_RANKED = _entries(_PROBABILITIES, "probabilities")
_REGISTRY: dict[Kind, dict[str, Metric]] = {
    "single_label": _entries(_CLASSES, "classes") | _RANKED,
    "binary": _entries(_CLASSES | _POSITIVE, "classes") | _RANKED,
    "multi_label": _entries(_SETS, "classes") | _RANKED,
    "regression": _entries(_VALUES, "values"),
}
