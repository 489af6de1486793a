"""Figures of a run's course: losses, metrics, learning rate, gradients, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from whet.evaluation.plots import best, series, smooth
from whet.review.style import GREY, colours, figure, number, plain, scale

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

    Point = tuple[float, float]
    Curves = Mapping[str, Sequence[Point]]

STEPS = "optimizer updates"
NOISY = ("train/loss", "train/grad_norm", "train/tokens_per_second")
CROWDED = 60
"""Points from which on a noisy curve is drawn smoothed, over a faint one of the points themselves."""


def course(
    rows: Sequence[Mapping[str, Any]], directions: Mapping[str, str], best_step: int | None = None
) -> list[Figure]:
    """Figures of one run, those of which nothing was logged left out.

    Args:
        rows: lines of `metrics.jsonl`.
        directions: `maximize` or `minimize` by metric name (`accuracy`).
        best_step: of the checkpoint that was kept; marked by a line.
    """
    found = series(rows)
    made = [_panel(title, unit, picked, directions) for title, unit, picked in _panels(found) if picked]
    for each in made:
        if best_step is not None:
            _mark(each, best_step)
    return made


def _panels(found: Curves) -> list[tuple[str, str, Curves]]:
    losses = {name: found[name] for name in ("train/loss", "validation/loss") if name in found}
    scores = {n: p for n, p in found.items() if n.startswith("validation/") and n not in losses}
    bounded = {name: points for name, points in scores.items() if all(abs(y) <= 1 for _, y in points)}
    return [
        ("Loss in training and on validation", "loss", losses),
        ("Metrics on validation", "score", bounded),
        ("Further metrics on validation", "value", {n: p for n, p in scores.items() if n not in bounded}),
        ("Learning rate", "rate", _starting(found, "train/lr")),
        ("Length of the gradient before clipping", "L2 norm", _starting(found, "train/grad_norm")),
        ("Speed of training", "tokens a second", _starting(found, "train/tokens_per_second")),
    ]


def _starting(found: Curves, start: str) -> Curves:
    return {name: points for name, points in found.items() if name.startswith(start)}


def _panel(title: str, unit: str, picked: Curves, directions: Mapping[str, str]) -> Figure:
    traces: list[Scatter] = []
    for (name, points), (colour, dash) in zip(picked.items(), colours(), strict=False):
        split, _, metric = name.partition("/")
        goal = directions.get(metric) if split == "validation" else None
        traces += _curve(name, points, colour, dash)
        traces += [] if goal is None else [_star(name, best(points, goal), colour)]
    made = figure(traces, title, STEPS, unit)
    norms = [y for name, points in picked.items() if name.startswith("train/grad") for _, y in points]
    made.update_yaxes(type=scale(norms))
    made.update_layout(showlegend=len(picked) > 1)
    return made


def _curve(name: str, points: Sequence[Point], colour: str, dash: str = "solid") -> list[Scatter]:
    """The curve; a crowded one smoothed, over its points."""
    from plotly.graph_objects import Scatter

    steps, values = [x for x, _ in points], [y for _, y in points]
    crowded = len(points) > CROWDED and name in NOISY
    line = {"color": colour, "dash": dash, "width": 2}
    mode = "lines" if len(points) > 25 else "lines+markers"
    shown = name if name.endswith("/loss") else name.partition("/")[2]
    told = {"name": plain(shown, 60), "legendgroup": name, "hovertemplate": "step %{x:,}: %{y:.4g}"}
    if not crowded:
        return [Scatter(x=steps, y=values, mode=mode, line=line, **told)]
    raw = Scatter(x=steps, y=values, mode="lines", line={**line, "width": 1}, opacity=0.3, **told)
    raw.update(showlegend=False, hoverinfo="skip", hovertemplate=None)
    return [raw, Scatter(x=steps, y=smooth(values), mode="lines", line=line, **told)]


def _star(name: str, point: Point, colour: str) -> Scatter:
    from plotly.graph_objects import Scatter

    x, y = point
    return Scatter(
        x=[x], y=[y], mode="markers", marker={"symbol": "star", "size": 13, "color": colour},
        legendgroup=name, showlegend=False, name=f"best {plain(name, 60)}",
        hovertemplate=f"best {number(y)} at step %{{x:,}}",
    )  # fmt: skip


def _mark(made: Figure, step: int) -> None:
    """A line at the step whose checkpoint was kept."""
    made.add_vline(
        x=step, line={"color": GREY, "dash": "dot", "width": 1.5}, annotation_text=f"kept: step {step:,}",
        annotation_position="top left", annotation_font_size=11,
    )  # fmt: skip


# ---------------------------------------------------------------- several runs


def overlay(curves: Curves, groups: Mapping[str, str], title: str, unit: str) -> Figure:
    """One metric of several runs, runs of a group in one colour.

    Args:
        curves: points by run.
        groups: each run's group; the legend shows it.
        title: what is seen.
        unit: of the metric.
    """
    from plotly.graph_objects import Scatter

    names = list(dict.fromkeys(groups[run] for run in curves))
    looks = dict(zip(names, colours(), strict=False))
    seen: set[str] = set()
    traces = []
    for run, points in curves.items():
        group = groups[run]
        colour, dash = looks[group]
        traces.append(
            Scatter(
                x=[x for x, _ in points], y=[y for _, y in points], name=plain(group, 60), legendgroup=group,
                showlegend=group not in seen, line={"color": colour, "dash": dash, "width": 1.6},
                mode="lines" if len(points) > 25 else "lines+markers", marker={"size": 5},
                text=plain(run, 60), hovertemplate="%{text}<br>step %{x:,}: %{y:.4g}<extra></extra>",
            )
        )  # fmt: skip
        seen.add(group)
    made = figure(traces, title, STEPS, unit)
    made.update_layout(showlegend=True)
    return made
