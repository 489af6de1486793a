"""Figures of what a run said about a split: confusion, calibration, values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from whet.review.judged import Judged
from whet.review.style import BLUE, GREY, RED, figure, plain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COUNTED = 15
"""Classes up to which the cells of a confusion matrix carry their counts."""
SHADES = [[0.0, "rgba(0,114,178,0.04)"], [1.0, "rgba(0,114,178,0.8)"]]
SHORT = 22
"""Letters of a class's name."""
SHOWN = 3000
"""Rows of a scatter at most; of more a regular sample is drawn."""


def confusion(judged: Judged) -> Figure | None:
    """Counts [true, predicted], shaded by their share of the true class; None without exclusive classes."""
    from plotly.graph_objects import Heatmap

    counts = judged.report.confusion
    if counts is None:
        return None
    names = [plain(each.name, SHORT) for each in judged.report.classes]
    table = np.array(counts)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    size = len(names)
    trace = Heatmap(
        z=shares.tolist(), x=names, y=names, text=[[f"{count:,}" for count in row] for row in counts],
        zmin=0, zmax=1, colorscale=SHADES, xgap=2, ygap=2,
        colorbar={"title": {"text": "share of true class"}, "tickformat": ".0%"}, showscale=size > COUNTED,
        hovertemplate="true %{y}<br>predicted %{x}<br>%{text} rows, %{z:.1%} of the class<extra></extra>",
    )  # fmt: skip
    made = figure(
        [trace], "Which classes are taken for which", "predicted", "true", tall=min(900, 240 + 34 * size)
    )
    if size <= COUNTED:  # not the trace's own texts: those are black or white by its colours over white paper
        for true, row in enumerate(counts):
            for predicted, count in enumerate(row):
                made.add_annotation(x=predicted, y=true, text=f"{count:,}", showarrow=False)
    made.update_yaxes(autorange="reversed", type="category")
    made.update_xaxes(type="category", tickangle=-35 if max(map(len, names)) > 6 else 0)
    return made


def calibration(judged: Judged) -> Figure | None:
    """Share of right decisions over their confidence; None for a regression."""
    from plotly.graph_objects import Scatter

    if not judged.bins:
        return None
    most = max(each.count for each in judged.bins)
    perfect = Scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "dash": "dash"}, name="perfectly calibrated",
        hoverinfo="skip",
    )  # fmt: skip
    own = Scatter(
        x=[each.confidence for each in judged.bins],
        y=[each.accuracy for each in judged.bins],
        customdata=[each.count for each in judged.bins],
        mode="lines+markers", line={"color": BLUE}, name="this run (larger: more rows)",
        marker={"size": [6 + 14 * (each.count / most) ** 0.5 for each in judged.bins]},
        hovertemplate="confidence %{x:.3f}<br>right %{y:.3f}<br>%{customdata:,} decisions<extra></extra>",
    )  # fmt: skip
    title = f"Is it as often right as it says? (calibration error {judged.calibration_error:.3f})"
    made = figure([perfect, own], title, "confidence", "share that is right")
    made.update_xaxes(range=[0, 1.02])
    made.update_yaxes(range=[0, 1.05])
    return made


def values(judged: Judged) -> Figure | None:
    """Predicted over true values of a regression."""
    from plotly.graph_objects import Scatter

    if judged.report.kind != "regression":
        return None
    every = max(1, -(-len(judged.labels) // SHOWN))
    true, predicted = (_plain(each[::every]) for each in (judged.labels, judged.chances))
    ends = [min([*true, *predicted]), max([*true, *predicted])]
    line = Scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dash"}, name="equal")
    rows = Scatter(
        x=true, y=predicted, mode="markers", marker={"color": BLUE, "opacity": 0.5, "size": 6}, name="rows",
        hovertemplate="true %{x:.4g}<br>predicted %{y:.4g}<extra></extra>",
    )  # fmt: skip
    return figure([line, rows], "Predicted over true values", "true", "predicted")


def scores(judged: Judged) -> Figure | None:
    """Precision and recall of each class; None without classes."""
    from plotly.graph_objects import Scatter

    classes = judged.report.classes
    if not 2 < len(classes) <= 4 * COUNTED:
        return None
    names = [plain(each.name, SHORT) for each in classes]
    told = {"precision": (BLUE, "circle"), "recall": (RED, "diamond")}
    traces = [
        Scatter(
            x=[getattr(each, name) for each in classes], y=names, mode="markers", name=name,
            marker={"color": colour, "symbol": symbol, "size": 10},
            hovertemplate=f"%{{y}}: {name} %{{x:.3f}}<extra></extra>",
        )
        for name, (colour, symbol) in told.items()
    ]  # fmt: skip
    made = figure(traces, "How well each class is found", "score", tall=min(1400, 190 + 26 * len(names)))
    made.update_xaxes(range=[-0.03, 1.03])
    made.update_yaxes(autorange="reversed", type="category")
    return made


def _plain(array: Any) -> list[float]:
    return [float(value) for value in array]
