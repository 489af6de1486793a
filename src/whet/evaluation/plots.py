"""Pictures of a run and of its predictions, drawn with matplotlib's object interface alone.

No pyplot and no global settings: nothing here can leak into, or be changed by, the caller's own figures.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.storage import aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Point = tuple[float, float]

INK, FAINT, GRID = "#1f2933", "#9aa5b1", "#e4e7eb"
COLOURS = (
    "#2563a8",
    "#d1603d",
    "#2f8f6b",
    "#8e5ea2",
    "#c2a02c",
    "#4aa3b8",
    "#b0457b",
    "#6b7a3a",
    "#7b6f63",
    "#111827",
)
DPI = 150
MAX_CLASSES = 60
"""Classes up to which a confusion matrix is drawn."""
COUNTED = 30
"""Classes up to which its cells carry their counts."""
MAX_CURVES = 10
_UNITS = {"loss": "loss", "validation": "score", "validation, other": "value", "learning rate": "rate"}
NAME = 24
"""Letters of a class name that fit beside an axis."""
_CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "SimHei",
    "Arial Unicode MS",
    "Droid Sans Fallback",
)


# ---------------------------------------------------------------- canvas


def _figure(wide: float, high: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, high), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_fontfamily(fonts())
    with aside(path) as beside, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from"
        )  # a machine without that script's font
        figure.savefig(beside, format="png", metadata={"Software": None})
    return path


@functools.cache
def fonts() -> list[str]:
    """DejaVu Sans, then a font of this machine that knows Chinese, Japanese and Korean, if it has one."""
    from matplotlib import font_manager

    known = set(font_manager.fontManager.get_font_names())
    return ["DejaVu Sans", *[name for name in _CJK_FONTS if name in known][:1]]


def _dress(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)


@functools.cache
def _letters() -> frozenset[int]:
    """Code points that this machine's fonts can draw."""
    from matplotlib import font_manager

    files = [font_manager.findfont(name) for name in fonts()]
    return frozenset().union(*(font_manager.get_font(file).get_charmap() for file in files))


def readable(names: Sequence[str], letters: int = NAME) -> list[str]:
    """Class names as they can be drawn: shortened; `class 3` where no font of this machine has its script."""
    drawable = [_letters().issuperset(map(ord, name)) for name in names]
    return [
        _clip(n, letters) if ok else f"class {i}"
        for i, (n, ok) in enumerate(zip(names, drawable, strict=True))
    ]


def _clip(name: str, letters: int = NAME) -> str:
    """A class name that fits and that matplotlib doesn't take for mathematics."""
    short = name if len(name) <= letters else name[: letters - 1] + "…"
    return short.replace("$", r"\$")


# ---------------------------------------------------------------- learning curves


def learning_curves(
    records: Sequence[Mapping[str, Any]], path: Path, directions: Mapping[str, str] | None = None
) -> Path:
    """Draw loss, validation metrics and learning rate over the updates of a run.

    Args:
        records: lines of `metrics.jsonl`: a `step` and any of `train/loss`, `train/lr`, `validation/…`.
        path: the PNG to write.
        directions: `maximize` or `minimize` by metric name, as the task declares it; a metric without one
            gets no mark at its best point. Losses are minimized.

    Returns:
        `path`.
    """
    panels = [panel for panel in _panels(records) if panel[1]]
    last = max((points[-1][0] for _, curves in panels for points in curves.values()), default=0) or 1
    figure = _figure(8, 0.6 + 2.5 * max(1, len(panels)))
    for place, (title, curves) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, place + 1)
        _dress(axes, title, "optimizer updates" if place == len(panels) - 1 else "", _UNITS[title])
        for colour, (name, points) in zip(_colours(), curves.items(), strict=False):
            _curve(axes, name, points, colour, _goal(name, directions or {}))
        axes.set_xlim(0, 1.03 * last)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    if not panels:
        _empty(figure, "no figures were logged")
    return _save(figure, path)


def _panels(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, list[Point]]]]:
    found = series(records)
    losses = {name: points for name, points in found.items() if name in ("train/loss", "validation/loss")}
    scores = {
        name: points
        for name, points in found.items()
        if name.startswith("validation/") and name not in losses
    }
    bounded = {name: points for name, points in scores.items() if all(abs(y) <= 1 for _, y in points)}
    others = {name: points for name, points in scores.items() if name not in bounded}
    rates = {name: points for name, points in found.items() if name.startswith("train/lr")}
    return [
        ("loss", losses),
        ("validation", bounded),
        ("validation, other", others),
        ("learning rate", rates),
    ]


def series(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """(step, value) points by name, in order of step; what isn't a finite number is left out."""
    found: dict[str, dict[float, float]] = {}
    for record in records:
        for name, value in record.items():
            if "/" in name and "step" in record and isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(name, {})[float(record["step"])] = float(value)
    return {name: sorted(points.items()) for name, points in found.items()}


def _goal(name: str, directions: Mapping[str, str]) -> str | None:
    split, _, metric = name.partition("/")
    if split != "validation":
        return None
    return directions.get(name, directions.get(metric, "minimize" if metric == "loss" else None))


def _curve(axes: Axes, name: str, points: Sequence[Point], colour: str, goal: str | None) -> None:
    steps, values = [x for x, _ in points], [y for _, y in points]
    crowded = len(points) > 60
    marker = "" if len(points) > 25 else "o"
    label = name if goal is None else f"{name}  best {best(points, goal)[1]:.4g}"
    if crowded and name.startswith("train/loss"):
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        values = smooth(values)
    axes.plot(
        steps, values, color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=_clip(label, 60)
    )
    if goal is not None:
        x, y = best(points, goal)
        axes.plot(
            [x], [y], marker="*", markersize=12, color=colour, markeredgecolor="white", linestyle="none"
        )


def best(points: Sequence[Point], goal: str) -> Point:
    """The best of the points; of equal ones the first."""
    return (max if goal == "maximize" else min)(points, key=lambda point: point[1])


def smooth(values: Sequence[float], share: float = 0.03) -> list[float]:
    """Exponential mean over about `share` of the values, freed of its start-up bias (Kingma & Ba 2015, 3)."""
    decay = 1 - 1 / max(1.0, len(values) * share)
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean = decay * mean + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        out.append(mean / weight)
    return out


def _colours() -> Iterator[str]:
    while True:
        yield from COLOURS


def _empty(figure: Figure, message: str) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.5, message, ha="center", va="center", color=FAINT, fontsize=14)


# ---------------------------------------------------------------- confusion


def confusion_matrix(counts: NDArray[Any], names: Sequence[str], path: Path, title: str = "") -> Path:
    """Draw counts [true, predicted], shaded by the share of their row, the names along both axes."""
    import numpy as np

    size = len(names)
    side = min(16.0, 3.2 + 0.55 * size if size <= COUNTED else 4.5 + 0.19 * size)
    figure = _figure(side + 1.2, side)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    _dress(axes, title, "predicted", "true")
    axes.grid(visible=False)
    _name_axes(axes, names)
    if size <= COUNTED:
        _write_counts(axes, counts, shares)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("share of the true class", color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    return _save(figure, path)


def _name_axes(axes: Axes, names: Sequence[str]) -> None:
    shown = readable(names)
    longest = max(map(len, shown), default=0)
    turn = 0 if longest <= 5 and len(names) <= 12 else 45 if len(names) <= 20 else 90
    size = 9 if len(names) <= 20 else 6.5
    aligned = {0: "center", 45: "right", 90: "center"}[turn]
    axes.set_xticks(
        range(len(names)), shown, rotation=turn, ha=aligned, rotation_mode="anchor" if turn == 45 else None
    )
    axes.set_yticks(range(len(names)), shown)
    axes.tick_params(length=0, labelsize=size)


def _write_counts(axes: Axes, counts: NDArray[Any], shares: NDArray[Any]) -> None:
    size = max(5.0, 10 - 0.17 * len(counts))
    for true, row in enumerate(counts):
        for predicted, count in enumerate(row):
            colour = "white" if shares[true, predicted] > 0.55 else INK if count else FAINT
            axes.text(
                predicted, true, f"{int(count):,}", ha="center", va="center", color=colour, fontsize=size
            )


# ---------------------------------------------------------------- curves and scatter


def pr_curve(truth: NDArray[Any], scores: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Recall and precision at every distinct score from the highest down, and the average precision.

    Rows of equal score stand at one threshold, so their order can't matter. Average precision is the sum of
    precision times the step in recall (no interpolation, as in scikit-learn).
    """
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(truth[order].astype(np.float64))[last]
    precision = hits / (np.flatnonzero(last) + 1)
    recall = hits / hits[-1]
    area = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    return recall, precision, area


def pr_curves(
    truth: NDArray[Any], scores: NDArray[Any], names: Sequence[str], path: Path, title: str = ""
) -> Path:
    """Draw a precision-recall curve for each column of [n, columns]: the `MAX_CURVES` with the most rows."""
    import numpy as np

    support = truth.sum(axis=0)
    columns = [int(c) for c in np.argsort(-support, kind="stable")[:MAX_CURVES] if support[c]]
    figure = _figure(7.5, 5)
    axes = figure.add_subplot()
    left_out = f" (the {len(columns)} largest classes)" if len(columns) < np.count_nonzero(support) else ""
    _dress(axes, title + left_out, "recall", "precision")
    shown = readable(names)
    for colour, column in zip(_colours(), columns, strict=False):
        recall, precision, area = pr_curve(truth[:, column], scores[:, column])
        x, y = np.append(0.0, recall), np.append(precision[0], precision)
        axes.step(x, y, where="pre", color=colour, linewidth=1.6, label=f"{shown[column]}  AP {area:.3f}")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.03))
    if columns:
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _save(figure, path)


def scatter(true: NDArray[Any], predicted: NDArray[Any], path: Path, title: str = "") -> Path:
    """Draw predicted over true values with the line on which they agree."""
    import numpy as np

    figure = _figure(5.5, 5.2)
    axes = figure.add_subplot()
    _dress(axes, title, "true", "predicted")
    finite = np.isfinite(true) & np.isfinite(predicted)
    true, predicted = true[finite], predicted[finite]
    both = np.concatenate([true, predicted])
    low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.5
    limits = (low - room, high + room)
    axes.plot(limits, limits, color=FAINT, linewidth=1, linestyle="--", label="perfect")
    faint = max(0.08, min(0.7, 40 / math.sqrt(len(true) + 1) / 10))
    axes.scatter(true, predicted, s=14, color=COLOURS[0], alpha=faint, linewidths=0, label="rows")
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return _save(figure, path)
