"""What a run said about a split: figures of merit, calibration, the errors that cost most. Pure NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.config import Node, part
from whet.data.tokens import texts_hash
from whet.errors import DataError, WhetError, one_line
from whet.evaluation.report import Report, make_report
from whet.paths import Paths
from whet.review.records import RunRecord
from whet.task.base import Task
from whet.task.metrics import EDGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from whet.evaluation.predictions import Predictions
    from whet.task.metrics import Kind

    Array = NDArray[Any]

BINS = 10
"""Of a reliability diagram, of equal width."""
WORST = 20
"""Errors listed."""
SPLITS = ("test", "validation")


@dataclass(frozen=True)
class Bin:
    """Decisions of like confidence."""

    confidence: float
    """Mean probability of what was decided."""
    accuracy: float
    """Share that was right."""
    count: int


@dataclass(frozen=True)
class Costly:
    """A row that was decided wrongly (of a regression: one far off)."""

    id: str
    text: str | None
    true: str
    predicted: str
    probability: float | None
    """Of the true label; None where there are several labels, or values."""
    loss: float
    """Negative log-likelihood in nats (of several labels the mean); of a regression the squared error."""


@dataclass(frozen=True)
class Judged:
    """One split."""

    report: Report
    labels: Array
    """Of the labelled rows, as the task encodes them."""
    chances: Array
    """Of the same rows: probabilities [n, k] ([n] of the positive class), or values [n]."""
    costly: list[Costly]
    bins: list[Bin]
    """Empty for a regression."""
    untold: str = ""
    """Why no texts are shown; empty where they are."""

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: |accuracy - confidence| weighted by count (Guo et al., 2017)."""
        rows = sum(each.count for each in self.bins)
        return sum(abs(each.accuracy - each.confidence) * each.count for each in self.bins) / max(1, rows)


def task_of(record: RunRecord) -> Task:
    """The task of a run, from its config.

    Raises:
        ConfigError: its code isn't there any more, or takes other settings.
    """
    task: Task = part(record.config["task"], Task, "task")
    return task


def judge(record: RunRecord, task: Task, split: str, texts: bool = True) -> Judged | None:
    """All of one split; None where the run kept no predictions of it, or it has no labels.

    Args:
        record: of the run.
        task: of the run.
        split: train, validation or test.
        texts: read the rows' texts again, too.
    """
    predictions = record.predictions(split)
    keep = None if predictions is None else labelled(predictions.labels, task.kind)
    if predictions is None or keep is None or not keep.any():
        return None
    chances = task.probabilities(predictions.logits)
    decisions = task.decide(chances)
    found, untold = (
        texts_of(record, task, predictions) if texts else (None, "they were left out (texts=false)")
    )
    known = {
        n.partition("/")[2]: v
        for n, v in record.record.get("metrics", {}).items()
        if n.startswith(f"{split}/")
    }
    report = make_report(predictions, task.kind, chances, decisions, known, dict(task.directions()), found)
    losses = row_losses(task.kind, predictions.labels, chances)
    costly = _costly(predictions, task, chances, decisions, np.where(keep, losses, -np.inf), found)
    bins = (
        []
        if task.kind == "regression"
        else reliability(*_sure(task.kind, chances[keep], predictions.labels[keep], decisions[keep]))
    )
    return Judged(report, predictions.labels[keep], chances[keep], costly, bins, untold)


def labelled(labels: Array, kind: Kind) -> Array:
    """[n] bool: the row has a label."""
    values = labels.astype(np.float64)
    good = np.isfinite(values) if kind == "regression" else values >= 0
    return np.asarray(good.reshape(len(labels), -1).all(axis=1))


# ---------------------------------------------------------------- errors


def row_losses(kind: Kind, labels: Array, chances: Array) -> Array:
    """[n] unweighted loss of each row, from probabilities clipped as for `log_loss`.

    What it is for a row without a label means nothing.

    Args:
        kind: of the task.
        labels: [n] classes, [n, k] of 0 and 1, or [n] values.
        chances: [n, k], [n] of the positive class, or [n] values.
    """
    if kind == "regression":
        return np.asarray((chances - labels) ** 2, dtype=np.float64)
    logs = -np.log(np.clip(of_truth(kind, labels, chances), EDGE, 1 - EDGE))
    return np.asarray(logs.mean(axis=1) if logs.ndim == 2 else logs)


def of_truth(kind: Kind, labels: Array, chances: Array) -> Array:
    """Probability of what is true: [n], for several labels [n, k]."""
    if kind == "single_label":
        return np.asarray(chances[np.arange(len(labels)), labels.astype(np.int64)])
    return np.where(labels == 1, chances, 1 - chances)


def _costly(
    predictions: Predictions,
    task: Task,
    chances: Array,
    decisions: Array,
    losses: Array,
    texts: Sequence[str] | None,
) -> list[Costly]:
    """The wrong rows of the largest loss; of equal ones the earlier."""
    labels = predictions.labels
    wrong = np.ones(len(labels), dtype=bool)
    if task.kind != "regression":
        wrong = (labels != decisions).reshape(len(labels), -1).any(axis=1)
    losses = np.where(wrong, losses, -np.inf)
    single = task.kind in ("single_label", "binary")
    true = of_truth(task.kind, labels, chances) if single else None
    return [
        Costly(
            str(predictions.ids[row]),
            None if texts is None else texts[row],
            said(labels[row], task.kind, predictions.label_names),
            said(decisions[row], task.kind, predictions.label_names),
            None if true is None else float(true[row]),
            float(losses[row]),
        )
        for row in np.argsort(-losses, kind="stable")[:WORST]
        if np.isfinite(losses[row])
    ]


def said(value: Any, kind: Kind, names: Sequence[str]) -> str:
    """A label or a decision as a reader wants it."""
    if kind == "regression":
        return f"{float(value):.4g}"
    if kind == "multi_label":
        return ", ".join(name for name, on in zip(names, value, strict=True) if on > 0.5) or "(none)"
    return names[int(value)] if names else str(int(value))


# ---------------------------------------------------------------- calibration


def _sure(kind: Kind, chances: Array, labels: Array, decisions: Array) -> tuple[Array, Array]:
    """(confidence, right) of every decision; of several labels each counts."""
    if kind == "single_label":
        return chances.max(axis=1), decisions == labels
    taken = np.where(decisions > 0.5, chances, 1 - chances)
    return taken.ravel(), (decisions == labels).ravel()


def reliability(confidence: Array, right: Array, bins: int = BINS) -> list[Bin]:
    """Decisions in bins of equal width of their confidence (0 to 1), empty ones left out.

    Args:
        confidence: [n] probability of what was decided.
        right: [n] whether it is true.
        bins: how many.
    """
    confidence = confidence.astype(np.float64)
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    return [
        Bin(float(confidence[own].mean()), float(right[own].mean()), int(own.sum()))
        for number in range(bins)
        if (own := place == number).any()
    ]


# ---------------------------------------------------------------- texts


def texts_of(record: RunRecord, task: Task, predictions: Predictions) -> tuple[list[str] | None, str]:
    """The split's texts, read again; or None and why they can't be shown.

    They are those that the run saw: the hash of the texts is compared with that of the run.
    """
    try:
        return _texts(record, task, predictions), ""
    except (WhetError, OSError) as error:
        return None, f"the data can't be read any more: {one_line(error)}"


def _texts(record: RunRecord, task: Task, predictions: Predictions) -> list[str]:
    from whet.debug import Debug

    config = record.config
    debug: Debug = part(config["debug"], Debug, "debug")
    corpus = debug.cut(task.load(paths_of(config)), int(config["seed"]))
    split = predictions.split
    if split not in corpus.splits:
        raise DataError("task.data", f"it has no {split} split any more")
    rows = corpus.splits[split]
    before = record.record.get("hashes", {}).get("data", {}).get(split)
    if before != texts_hash(rows.texts) or list(map(str, rows.ids)) != list(map(str, predictions.ids)):
        raise DataError("task.data", f"its {split} rows aren't those of the run")
    return [" ⏎ ".join(row) for row in rows.texts]


def paths_of(config: Node) -> Paths:
    """Where the run read its data."""
    return Paths(**{name: value for name, value in config["paths"].items() if not name.startswith("_")})
