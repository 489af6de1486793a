"""What predictions on one split amount to: numbers (JSON), tables (Markdown, terminal) and pictures.

A pure function of `Predictions` and of what the task made of them. Rows without a label (a class below 0, or
NaN) are left out and counted. Ties: of two equally confident mistakes the earlier row comes first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.errors import RunError, one_line
from whet.evaluation import plots
from whet.evaluation.describe import cut, pad, percentiles, shorten, width
from whet.evaluation.predictions import Predictions
from whet.storage import aside
from whet.task.metrics import Kind

WORST = 20
"""Mistakes listed."""
WIDE = 100
"""Columns of the terminal table at most."""
TERMINAL_CLASSES = 30
TERMINAL_CONFUSION = 12
MARKDOWN_CONFUSION = 20

Array = NDArray[Any]


@dataclass(frozen=True)
class ClassScore:
    """One class (or label) against the rest."""

    name: str
    precision: float
    """0 where nothing was predicted as this class."""
    recall: float
    """0 where no row is of this class."""
    f1: float
    support: int
    """Rows of this class."""
    predicted: int
    """Rows predicted as this class."""


@dataclass(frozen=True)
class Mistake:
    """One wrong row (regression: one row far off)."""

    id: str
    text: str | None
    true: str | list[str] | float
    predicted: str | list[str] | float
    probability: float | None
    """Of what was decided (multi-label: of its most confident wrong label); None for regression."""


@dataclass(frozen=True)
class Report:
    """All figures of one split."""

    split: str
    kind: Kind
    n: int
    """Labelled rows."""
    unlabelled: int
    metrics: dict[str, float]
    directions: dict[str, str]
    classes: list[ClassScore] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    """[true][predicted] counts, classes in order; None for multi-label and regression."""
    residuals: dict[str, float] | None = None
    """Percentiles of predicted minus true, for regression."""
    worst: list[Mistake] = field(default_factory=list)
    """The most confidently wrong rows, or the furthest off."""

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON; figures that aren't defined are null."""
        balance = {one.name: {"count": one.support, "share": one.support / self.n} for one in self.classes}
        found = {
            "split": self.split,
            "kind": self.kind,
            "n": self.n,
            "unlabelled": self.unlabelled,
            "metrics": self.metrics,
            "directions": self.directions,
            "balance": balance,
            "classes": [vars(one) for one in self.classes],
            "confusion": {"labels": [one.name for one in self.classes], "counts": self.confusion},
            "residuals": self.residuals,
            "worst": [vars(one) for one in self.worst],
        }
        return {name: _finite(value) for name, value in found.items()}

    def text(self) -> str:
        """A plain table for the terminal, at most `WIDE` columns."""
        return "\n".join(cut(line, WIDE) for line in _terminal(self)) + "\n"

    def markdown(self) -> str:
        """The same for a browser, with the worst mistakes."""
        return "\n".join(_markdown(self)) + "\n"


def write_report(
    report: Report, predictions: Predictions, probabilities: Array, folder: Path, pictures: bool = True
) -> None:
    """Write the report of one split to `folder`, each file whole or not at all.

    Args:
        report: made of the same predictions.
        predictions: of the split.
        probabilities: as for `make_report`; the pictures show them.
        folder: gets `<split>.json`, `<split>.md`, `<split>_confusion.png` and `<split>_pr.png`.
        pictures: false leaves out the last two.
    """
    dumped = json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    for name, content in ((f"{report.split}.json", dumped + "\n"), (f"{report.split}.md", report.markdown())):
        with aside(folder / name) as beside:
            beside.write_text(content, encoding="utf-8", newline="\n")
    if pictures:
        _draw(report, predictions, probabilities, folder)


def make_report(
    predictions: Predictions,
    kind: Kind,
    probabilities: Array,
    decisions: Array,
    metrics: dict[str, float],
    directions: dict[str, str],
    texts: Sequence[str] | None = None,
) -> Report:
    """Work out the report of one split.

    Args:
        predictions: of the split; only ids, labels, names and the split's name are read.
        kind: of the task.
        probabilities: [n, k], or [n] of the positive class (binary), or [n] values (regression).
        decisions: the classes decided, shaped like the labels; for regression the values again.
        metrics: figures already computed.
        directions: `maximize` or `minimize` by metric.
        texts: of each row, shown beside mistakes.

    Raises:
        RunError: no row has a label.
    """
    keep = _labelled(predictions, kind)
    rows = _rows(predictions, kind, keep, probabilities, decisions, texts)
    base = Report(predictions.split, kind, len(keep), len(predictions) - len(keep), metrics, directions)
    if kind == "regression":
        residuals = (rows.chances - rows.labels).tolist()
        return replace(base, residuals=percentiles(residuals), worst=_furthest(rows))
    counts = None if kind == "multi_label" else _confusion(rows).tolist()
    return replace(base, classes=_class_scores(rows), confusion=counts, worst=_mistakes(rows))


def _labelled(predictions: Predictions, kind: Kind) -> Array:
    """Places of the rows that have a label."""
    labels = predictions.labels.astype(np.float64)
    good = np.isfinite(labels) if kind == "regression" else labels >= 0
    keep = np.flatnonzero(good.reshape(len(labels), -1).all(axis=1)) if len(labels) else labels
    if not len(keep):
        raise RunError(
            f"{predictions.split}: not one row has a label; give a labelled split, or only predict"
        )
    return keep


# ---------------------------------------------------------------- figures


@dataclass(frozen=True)
class _Rows:
    """The labelled rows, in one form for all kinds."""

    kind: Kind
    ids: Array
    texts: list[str | None]
    labels: Array
    """[n] classes, [n, k] of 0 and 1, or [n] values."""
    decisions: Array
    chances: Array
    """[n, k], for `binary` both classes; [n] values for regression."""
    names: list[str]

    def columns(self, values: Array) -> Array:
        """[n, k] bool, from classes or from 0 and 1."""
        return values > 0.5 if values.ndim == 2 else values[:, None] == np.arange(len(self.names))

    def say(self, value: Any) -> str | list[str] | float:
        """One row's label or decision as a reader wants it."""
        if self.kind == "regression":
            return float(value)
        if self.kind == "multi_label":
            return [name for name, on in zip(self.names, value, strict=True) if on > 0.5]
        return self.names[int(value)]

    def mistake(self, row: int, probability: float | None) -> Mistake:
        """That row as a mistake."""
        true, predicted = self.say(self.labels[row]), self.say(self.decisions[row])
        return Mistake(str(self.ids[row]), self.texts[row], true, predicted, probability)


def _rows(
    predictions: Predictions,
    kind: Kind,
    keep: Array,
    probabilities: Array,
    decisions: Array,
    texts: Sequence[str] | None,
) -> _Rows:
    kept: list[str | None] = [texts[row] if texts is not None else None for row in keep]
    labels, chances, decided = (
        predictions.labels[keep],
        probabilities[keep].astype(np.float64),
        decisions[keep],
    )
    if kind == "binary":
        chances = np.stack([1 - chances, chances], axis=1)
    if kind in ("binary", "single_label"):
        labels, decided = labels.astype(np.int64), decided.astype(np.int64)
    names = [] if kind == "regression" else _names(predictions, chances.shape[1])
    return _Rows(kind, predictions.ids[keep], kept, labels, decided, chances, names)


def _names(predictions: Predictions, count: int) -> list[str]:
    given = list(predictions.label_names)
    return given if len(given) == count else [str(number) for number in range(count)]


def _confusion(rows: _Rows) -> Array:
    """[true, predicted] counts."""
    counts = np.zeros((len(rows.names), len(rows.names)), dtype=np.int64)
    np.add.at(counts, (rows.labels, rows.decisions), 1)
    return counts


def _class_scores(rows: _Rows) -> list[ClassScore]:
    truth, decided = rows.columns(rows.labels), rows.columns(rows.decisions)
    hits = (truth & decided).sum(axis=0).tolist()
    support, predicted = truth.sum(axis=0).tolist(), decided.sum(axis=0).tolist()
    return [_score(*one) for one in zip(rows.names, hits, support, predicted, strict=True)]


def _score(name: str, hits: int, support: int, predicted: int) -> ClassScore:
    ratios = _ratio(hits, predicted), _ratio(hits, support), _ratio(2 * hits, support + predicted)
    return ClassScore(name, *ratios, support, predicted)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _mistakes(rows: _Rows) -> list[Mistake]:
    """The wrong rows whose wrong decision was most probable."""
    decided = rows.columns(rows.decisions)
    wrong = rows.columns(rows.labels) != decided
    sure = np.where(decided, rows.chances, 1 - rows.chances)
    counted = wrong if rows.kind == "multi_label" else wrong & decided
    confidence = np.where(counted, np.nan_to_num(sure), -1.0).max(axis=1, initial=-1.0)
    order = np.argsort(-confidence, kind="stable")[:WORST].tolist()
    return [rows.mistake(row, float(confidence[row])) for row in order if confidence[row] >= 0]


def _furthest(rows: _Rows) -> list[Mistake]:
    order = np.argsort(-np.abs(rows.chances - rows.labels), kind="stable")[:WORST].tolist()
    return [rows.mistake(row, None) for row in order]


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- pictures


def _draw(report: Report, predictions: Predictions, probabilities: Array, folder: Path) -> None:
    keep = _labelled(predictions, report.kind)
    rows = _rows(predictions, report.kind, keep, probabilities, predictions.labels, None)
    title, picture = f"{report.split}: {report.n:,} rows", folder / f"{report.split}_confusion.png"
    if report.kind == "regression":
        plots.scatter(rows.labels, rows.chances, picture, title)
        return
    if report.confusion is not None and len(rows.names) <= plots.MAX_CLASSES:
        plots.confusion_matrix(np.array(report.confusion), rows.names, picture, title)
    first = 1 if report.kind == "binary" else 0  # the negative class of two needs no curve of its own
    truth = rows.columns(rows.labels)[:, first:]
    plots.pr_curves(
        truth, rows.chances[:, first:], rows.names[first:], folder / f"{report.split}_pr.png", title
    )


# ---------------------------------------------------------------- terminal


def _terminal(report: Report) -> Iterator[str]:
    left_out = f" ({report.unlabelled:,} more without a label)" if report.unlabelled else ""
    yield f"{report.split}: {report.n:,} rows{left_out}"
    yield ""
    names = max((len(name) for name in report.metrics), default=0)
    for name, value in report.metrics.items():
        yield f"  {name:<{names}}  {_figure(value):>9}  {_arrow(report, name)}".rstrip()
    if report.residuals:
        yield ""
        yield "  predicted - true  " + "  ".join(
            f"{name} {value:.3g}" for name, value in report.residuals.items()
        )
    yield from _class_table(report)
    yield from _confusion_table(report)


def _figure(value: float) -> str:
    if not math.isfinite(value):
        return "undefined"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def _arrow(report: Report, name: str) -> str:
    return {"maximize": "higher is better", "minimize": "lower is better"}.get(
        report.directions.get(name, ""), ""
    )


def _class_table(report: Report) -> Iterator[str]:
    if not report.classes:
        return
    shown = report.classes
    if len(shown) > TERMINAL_CLASSES:
        shown = sorted(shown, key=lambda one: one.f1)[:TERMINAL_CLASSES]
    left_out = (
        f"the {len(shown)} of lowest F1 of {len(report.classes)} classes"
        if shown != report.classes
        else "class"
    )
    first = min(40, max(map(width, [left_out, *(one.name for one in shown)])))
    yield ""
    yield "  " + pad(left_out, first) + "".join(pad(head, 11, right=True) for head in _HEADS)
    for one in shown:
        yield "  " + pad(one.name, first) + "".join(pad(cell, 11, right=True) for cell in _cells(one))


_HEADS = ("precision", "recall", "F1", "support", "predicted")


def _cells(one: ClassScore) -> list[str]:
    shares = [f"{share:.4f}" for share in (one.precision, one.recall, one.f1)]
    return [*shares, f"{one.support:,}", f"{one.predicted:,}"]


def _confusion_table(report: Report) -> Iterator[str]:
    """Columns bear their class's number where its name has no room."""
    if report.confusion is None or len(report.classes) > TERMINAL_CONFUSION:
        return
    names = [one.name for one in report.classes]
    cell = min(12, (WIDE - 2 - _FIRST) // len(names))
    heads, rows = names, names
    if any(width(name) >= cell for name in names):
        heads = [f"[{number}]" for number in range(len(names))]
        rows = [f"{head} {name}" for head, name in zip(heads, names, strict=True)]
    yield ""
    yield "  " + pad("true\\predicted", _FIRST) + "".join(pad(head, cell, right=True) for head in heads)
    for name, counts in zip(rows, report.confusion, strict=True):
        cells = "".join(pad(str(count), cell, right=True) for count in counts)
        yield "  " + pad(shorten(name, _FIRST - 1), _FIRST) + cells


_FIRST = 26
"""Columns of the confusion table's row names."""


# ---------------------------------------------------------------- Markdown


def _markdown(report: Report) -> Iterator[str]:
    left_out = f", {report.unlabelled:,} more without a label" if report.unlabelled else ""
    yield f"# {report.split}: {report.n:,} rows{left_out}"
    yield from _md_table(
        "Metrics",
        ("metric", "value", ""),
        [(name, _figure(value), _arrow(report, name)) for name, value in report.metrics.items()],
    )
    if report.residuals:
        yield from _md_table(
            "Predicted minus true",
            tuple(report.residuals),
            [tuple(f"{value:.4g}" for value in report.residuals.values())],
        )
    if report.classes:
        yield from _md_table(
            "Classes", ("class", *_HEADS), [(one.name, *_cells(one)) for one in report.classes]
        )
    yield from _md_confusion(report)
    yield from _md_worst(report)


def _md_confusion(report: Report) -> Iterator[str]:
    if report.confusion is None or len(report.classes) > MARKDOWN_CONFUSION:
        return
    names = [one.name for one in report.classes]
    rows = [(name, *map(str, row)) for name, row in zip(names, report.confusion, strict=True)]
    yield from _md_table("Confusion (rows: true, columns: predicted)", ("", *names), rows)


def _md_worst(report: Report) -> Iterator[str]:
    if not report.worst:
        return
    title = "Furthest off" if report.kind == "regression" else "Most confidently wrong"
    rows = [
        (one.id, _said(one.true), _said(one.predicted), _chance(one), one.text or "") for one in report.worst
    ]
    yield from _md_table(title, ("id", "true", "predicted", "probability", "text"), rows)


def _said(value: str | list[str] | float) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "(none)"
    return f"{value:.4g}" if isinstance(value, float) else value


def _chance(one: Mistake) -> str:
    return "" if one.probability is None else f"{one.probability:.4f}"


def _md_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    yield _md_row(heads)
    yield _md_row(["---"] * len(heads))
    yield from (_md_row(row) for row in rows)


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escape, cells)) + " |"


def _escape(cell: str) -> str:
    """A cell that can neither end its table nor turn into markup."""
    short = shorten(one_line(cell), 300)
    return (
        short.replace("\\", "\\\\")
        .replace("|", "\\|")
        .replace("<", "&lt;")
        .replace("`", "\\`")
        .replace("*", "\\*")
    )
