"""Figures of a sweep: its course, what matters, where good values lie, what was pruned, who worked when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from whet.review.style import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    PINK,
    RED,
    SCALE,
    SKY,
    TALL,
    figure,
    number,
    plain,
    scale,
)  # fmt: skip
from whet.review.trials import (
    Axis,
    Objective,
    axes_of,
    best_so_far,
    complete,
    kind_of,
    last_told,
    peer_of,
    pruned,
    surface,
)  # fmt: skip
from whet.sweep.space import as_text

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from plotly.graph_objects import Figure, Scatter

    Trials = Sequence[FrozenTrial]

STATES = {"complete": BLUE, "pruned": AMBER, "failed": RED, "running": SKY, "waiting": GREY, "reused": PINK}
QUARTERS = ("best quarter", "second quarter", "third quarter", "worst quarter")
QUARTER_LOOKS = ((BLUE, 2.4, 0.95), (GREEN, 1.4, 0.6), (AMBER, 1.2, 0.5), (GREY, 1.0, 0.35))
"""Colour, width and opacity of a quarter's lines."""
MANY = 15
"""Evaluations from which on not each has a tick."""
TICKS = 5
"""On an axis of parallel coordinates."""


def history(trials: Trials, objective: Objective) -> Figure:
    """Every trial's value, pruned ones by their last, and the best so far."""
    from plotly.graph_objects import Scatter

    done, cut, best = complete(trials), pruned(trials), best_so_far(trials, objective)
    spread = [trial.user_attrs.get("std") for trial in done]
    values = [objective.of(trial) for trial in done]
    shown = Scatter(
        x=[trial.number for trial in done], y=values, mode="markers", name="complete",
        marker={"color": BLUE, "size": 8}, text=list(map(told, done)), hovertemplate=_HOVER,
        error_y={"array": spread, "thickness": 1} if any(spread) else None,
    )  # fmt: skip
    ended = Scatter(
        x=[trial.number for trial in cut], y=list(map(last_told, cut)), mode="markers",
        name="pruned (last value told)",
        marker={"color": AMBER, "size": 8, "symbol": "x-thin", "line": {"width": 2, "color": AMBER}},
        text=list(map(told, cut)), hovertemplate=_HOVER,
    )  # fmt: skip
    line = Scatter(
        x=[number for number, _ in best], y=[value for _, value in best], mode="lines", name="best so far",
        line={"color": RED, "shape": "hv", "width": 2},
        hovertemplate="best up to trial %{x}: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    way = "higher" if objective.maximize else "lower"
    single = objective.place == 0 and cut
    traces = [shown, *([ended] if single else []), line]
    made = figure(traces, f"Values of the trials ({way} is better)", "trial", plain(objective.name))
    made.update_yaxes(
        type=scale([*(v for v in values if v is not None), *(map(last_told, cut) if single else ())])
    )
    return made


_HOVER = "%{text}<extra></extra>"


def told(trial: FrozenTrial) -> str:
    """A trial for a hover box: number, state, values, parameters."""
    from whet.sweep.results import state_of, value_of

    lines = [f"trial {trial.number}: {state_of(trial)}", value_of(trial)]
    lines += [plain(f"{name} = {_short(value)}", 80) for name, value in trial.params.items()]
    return "<br>".join(line for line in lines if line)


def _short(value: Any) -> str:
    return number(value) if isinstance(value, float) else as_text(value)


def importance(found: Mapping[str, float]) -> Figure | None:
    """Bars, the most important parameter on top; None where the trials don't tell (see `importances`)."""
    from plotly.graph_objects import Bar

    if not found:
        return None
    names = [plain(name) for name in found]
    bar = Bar(
        x=list(found.values()), y=names, orientation="h", marker={"color": BLUE},
        texttemplate="%{x:.0%}", textposition="auto", textangle=0,
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )  # fmt: skip
    made = figure(
        [bar], "Which parameters matter", "share of the variance explained", tall=150 + 34 * len(names)
    )
    made.update_xaxes(tickformat=".0%", range=[0, 1])
    made.update_yaxes(autorange="reversed", type="category")
    return made


def slices(trials: Trials, objective: Objective, names: Sequence[str]) -> list[Figure]:
    """Value over each parameter, later trials lighter."""
    axes = axes_of(trials)
    return [_slice(trials, objective, axes[name]) for name in names]


def _slice(trials: Trials, objective: Objective, axis: Axis) -> Figure:
    from plotly.graph_objects import Scatter

    own = [trial for trial in complete(trials) if axis.name in trial.params]
    cut = [trial for trial in pruned(trials) if axis.name in trial.params] if objective.place == 0 else []
    values = [objective.of(trial) for trial in own]
    dots = Scatter(
        x=[_at(axis, trial) for trial in own], y=values, mode="markers", name="complete",
        marker={
            "color": [trial.number for trial in own], "colorscale": SCALE, "size": 8,
            "colorbar": {"title": {"text": "trial"}, "thickness": 10}, "line": {"width": 0.5, "color": GREY},
        },
        text=list(map(told, own)), hovertemplate=_HOVER,
    )  # fmt: skip
    crosses = Scatter(
        x=[_at(axis, trial) for trial in cut], y=list(map(last_told, cut)), mode="markers", name="pruned",
        marker={"color": AMBER, "size": 7, "symbol": "x-thin", "line": {"width": 1.5, "color": AMBER}},
        text=list(map(told, cut)), hovertemplate=_HOVER,
    )  # fmt: skip
    made = figure(
        [crosses, dots] if cut else [dots],
        f"Values over {plain(axis.name)}",
        plain(axis.name),
        plain(objective.name),
    )
    _set(made.update_xaxes, axis)
    made.update_yaxes(type=scale([*(v for v in values if v is not None), *map(last_told, cut)]))
    made.update_layout(showlegend=False)
    return made


def _at(axis: Axis, trial: FrozenTrial) -> Any:
    value = axis.shown(trial.params[axis.name])
    return plain(value) if axis.choices else value


def _set(update: Any, axis: Axis) -> None:
    """Give a Plotly axis the parameter's scale."""
    update(type=axis.kind, exponentformat="e")
    if axis.choices:
        update(categoryorder="array", categoryarray=[plain(choice) for choice in axis.choices])


def contour(trials: Trials, objective: Objective, names: Sequence[str]) -> Figure | None:
    """Value over two parameters: trials as dots, between them interpolated where both are numbers."""
    from plotly.graph_objects import Contour

    axes = axes_of(trials)
    first, second = (axes[name] for name in names)
    own = [trial for trial in complete(trials) if first.name in trial.params and second.name in trial.params]
    if not own:
        return None
    values = [objective.of(trial) or 0.0 for trial in own]
    traces: list[Any] = []
    numeric = not (first.choices or second.choices)
    spots = [(first.position(t.params[first.name]), second.position(t.params[second.name])) for t in own]
    found = surface([(x, y, z) for (x, y), z in zip(spots, values, strict=True)]) if numeric else None
    shades = {"colorscale": SCALE, "reversescale": not objective.maximize}
    if found is not None:
        x, y = (_back(axis, places) for axis, places in ((first, found.x), (second, found.y)))
        traces.append(
            Contour(
                x=x,
                y=y,
                z=found.z,
                line={"width": 0.5},
                colorbar={"thickness": 12},
                hoverinfo="skip",
                **shades,
            )
        )
    marker = {"color": values, "size": 9, "line": {"width": 1.2, "color": "white"}, **shades}
    if found is None:
        marker["colorbar"] = {"thickness": 12}
    traces.append(_dots(own, first, second, marker))
    title = f"{plain(objective.name)} over the two that matter most"
    made = figure(traces, title, plain(first.name), plain(second.name), tall=TALL)
    _set(made.update_xaxes, first)
    _set(made.update_yaxes, second)
    return made


def _back(axis: Axis, places: Sequence[float]) -> list[float]:
    """Positions as values of the parameter."""
    return [10**place if axis.log else place for place in places]


def _dots(own: Trials, first: Axis, second: Axis, marker: dict[str, Any]) -> Scatter:
    from plotly.graph_objects import Scatter

    return Scatter(
        x=[_at(first, trial) for trial in own], y=[_at(second, trial) for trial in own], mode="markers",
        marker=marker, text=list(map(told, own)), hovertemplate=_HOVER, showlegend=False, name="trials",
    )  # fmt: skip


# ---------------------------------------------------------------- parallel coordinates


def parallel(trials: Trials, objective: Objective) -> Figure | None:
    """A line a trial through all its parameters to its value, by quarters of the values, the best on top.

    Plain lines and not Plotly's own kind, which knows no gaps: a parameter that only some choices have is
    passed over, and the page prints.
    """
    done = [trial for trial in complete(trials) if "reused_from" not in trial.user_attrs]
    axes = list(axes_of(done).values())
    if len(done) < 2 or not axes:
        return None
    values = [objective.of(trial) or 0.0 for trial in done]
    spans = [
        _span([axis.position(t.params[axis.name]) for t in done if axis.name in t.params]) for axis in axes
    ]
    spans.append(_span(values))
    ranked = sorted(zip(done, values, strict=True), key=lambda pair: pair[1], reverse=objective.maximize)
    traces = []
    for place in reversed(range(4)):
        low, high = (round(len(ranked) * end / 4) for end in (place, place + 1))
        if high > low:
            traces.append(_quarter(ranked[low:high], axes, spans, place))
    made = figure(traces, "From parameters to value", tall=TALL + 80)
    _rule(made, axes, spans, objective)
    return made


def _span(places: Sequence[float]) -> tuple[float, float]:
    low, high = min(places), max(places)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _quarter(
    ranked: Sequence[tuple[FrozenTrial, float]],
    axes: Sequence[Axis],
    spans: Sequence[tuple[float, float]],
    place: int,
) -> Scatter:
    from plotly.graph_objects import Scatter

    colour, width, opacity = QUARTER_LOOKS[place]
    x: list[int | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for trial, value in ranked:
        places = [
            axis.position(trial.params[axis.name]) if axis.name in trial.params else None for axis in axes
        ]
        heights = [
            None if p is None else (p - low) / (high - low)
            for p, (low, high) in zip([*places, value], spans, strict=True)
        ]
        x += [*(column for column, height in enumerate(heights) if height is not None), None]
        y += [*(height for height in heights if height is not None), None]
        text += [told(trial)] * (sum(height is not None for height in heights) + 1)
    return Scatter(
        x=x, y=y, text=text, mode="lines+markers", name=QUARTERS[place], hovertemplate=_HOVER,
        opacity=opacity,
        line={"color": colour, "width": width}, marker={"size": 4}, connectgaps=False, legendrank=place + 1,
    )  # fmt: skip


def _rule(
    made: Figure, axes: Sequence[Axis], spans: Sequence[tuple[float, float]], objective: Objective
) -> None:
    """Draw the upright axes with their ticks."""
    every = [*axes, Axis(objective.name)]
    for column, (axis, (low, high)) in enumerate(zip(every, spans, strict=True)):
        line = {"color": GREY, "width": 1}
        made.add_shape(type="line", x0=column, x1=column, y0=0, y1=1, line=line, layer="below")
        for tick in _ticks(axis, low, high):
            made.add_annotation(
                x=column, y=(tick - low) / (high - low), text=plain(axis.written(tick), 18), showarrow=False,
                xanchor="left", xshift=4, font={"size": 10},
            )  # fmt: skip
    made.update_xaxes(
        tickvals=list(range(len(every))), ticktext=[plain(axis.name, 22) for axis in every],
        range=[-0.45, len(every) - 0.5], showgrid=False, zeroline=False,
    )  # fmt: skip
    made.update_yaxes(visible=False, range=[-0.05, 1.05])


def _ticks(axis: Axis, low: float, high: float) -> list[float]:
    """Positions: of every choice in the range, or evenly between its ends."""
    if axis.choices:
        return [float(place) for place in range(len(axis.choices)) if low <= place <= high]
    return [low + (high - low) * place / (TICKS - 1) for place in range(TICKS)]


# ---------------------------------------------------------------- half-way, in time, several objectives


def intermediate(trials: Trials, objective: Objective) -> Figure | None:
    """Values that trials told half-way, pruned ones apart; None where none told any."""
    told_any = [
        trial for trial in trials if trial.intermediate_values and "reused_from" not in trial.user_attrs
    ]
    if not told_any:
        return None
    by_kind = {
        "pruned": [trial for trial in told_any if trial.state.name == "PRUNED"],
        "complete": complete(told_any),
        "running": [trial for trial in told_any if trial.state.name in ("RUNNING", "WAITING", "FAIL")],
    }
    best = min(
        complete(told_any), key=lambda t: (-1 if objective.maximize else 1) * t.values[0], default=None
    )
    traces = [_paths(own, kind) for kind, own in by_kind.items() if own]
    traces += [] if best is None else [_paths([best], "best")]
    traces += [_ends(by_kind["pruned"])] if by_kind["pruned"] else []
    made = figure(
        traces,
        "Values told half-way, and where pruning cut",
        "evaluation",
        plain(objective.name),
        tall=TALL + 40,
    )
    longest = max(max(trial.intermediate_values) for trial in told_any)
    made.update_xaxes(dtick=1 if longest <= MANY else None, tickformat="d")
    made.update_yaxes(
        type=scale([float(v) for trial in told_any for v in trial.intermediate_values.values()])
    )
    return made


_PATHS = {
    "pruned": (AMBER, "dot", 1.2, 0.8, "pruned"),
    "complete": (BLUE, "solid", 1.2, 0.5, "complete"),
    "running": (GREY, "dash", 1.2, 0.7, "not ended, or failed"),
    "best": (BLUE, "solid", 3.0, 1.0, "best"),
}
"""Colour, dash, width, opacity, name."""


def _paths(own: Trials, kind: str) -> Scatter:
    from plotly.graph_objects import Scatter

    colour, dash, width, opacity, name = _PATHS[kind]
    x: list[int | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for trial in own:
        steps = sorted(trial.intermediate_values)
        x += [*steps, None]
        y += [*(float(trial.intermediate_values[step]) for step in steps), None]
        text += [told(trial)] * (len(steps) + 1)
    return Scatter(
        x=x, y=y, text=text, mode="lines+markers", name=name, opacity=opacity, hovertemplate=_HOVER,
        marker={"size": 4}, connectgaps=False, line={"color": colour, "dash": dash, "width": width},
    )  # fmt: skip


def _ends(cut: Trials) -> Scatter:
    from plotly.graph_objects import Scatter

    return Scatter(
        x=[max(trial.intermediate_values) for trial in cut], y=list(map(last_told, cut)), mode="markers",
        name="pruned here", text=list(map(told, cut)), hovertemplate=_HOVER,
        marker={"symbol": "x", "size": 8, "color": AMBER},
    )  # fmt: skip


def timeline(trials: Trials, now: datetime) -> Figure | None:
    """When each trial ran, a row for each peer; None before any has begun.

    Args:
        trials: of the study.
        now: local time, as Optuna's: trials that run last until then.
    """
    from plotly.graph_objects import Bar

    begun = [trial for trial in trials if trial.datetime_start is not None and trial.state.name != "WAITING"]
    if not begun:
        return None
    peers = list(dict.fromkeys(map(peer_of, sorted(begun, key=lambda trial: str(trial.datetime_start)))))
    traces = []
    for kind, colour in STATES.items():
        own = [trial for trial in begun if kind_of(trial) == kind]
        if own:
            traces.append(
                Bar(
                    base=[str(trial.datetime_start) for trial in own],
                    x=[_lasted(trial, now) for trial in own], y=[plain(peer_of(trial)) for trial in own],
                    orientation="h", name=kind, text=list(map(told, own)),
                    textposition="none", hovertemplate=_HOVER,
                    marker={"color": colour, "line": {"width": 1, "color": "rgba(255,255,255,0.6)"}},
                )
            )  # fmt: skip
    made = figure(traces, "Who worked on which trial, and when", "local time", tall=170 + 34 * len(peers))
    made.update_xaxes(type="date")
    made.update_yaxes(type="category", autorange="reversed", categoryarray=[plain(peer) for peer in peers])
    made.update_layout(barmode="overlay", showlegend=True)
    return made


def _lasted(trial: FrozenTrial, now: datetime) -> float:
    """Milliseconds."""
    start = trial.datetime_start or now
    return 1000 * ((trial.datetime_complete or now) - start).total_seconds()


def pareto(trials: Trials, first: Objective, second: Objective, best: Trials) -> Figure:
    """Two objectives against each other, the front as a line.

    Args:
        trials: of the study.
        first: along x.
        second: along y.
        best: the front over all objectives.
    """
    from plotly.graph_objects import Scatter

    chosen = {trial.number for trial in best}
    others = [trial for trial in complete(trials) if trial.number not in chosen]
    edge = sorted(best, key=lambda trial: (trial.values[first.place], trial.values[second.place]))

    def dots(own: Trials, name: str, colour: str, **more: Any) -> Scatter:
        return Scatter(
            x=[first.of(trial) for trial in own], y=[second.of(trial) for trial in own], name=name,
            text=list(map(told, own)), hovertemplate=_HOVER, marker={"color": colour, "size": 9}, **more,
        )  # fmt: skip

    line = {"mode": "lines+markers", "line": {"shape": "linear", "dash": "dot", "width": 1.5, "color": RED}}
    traces = [dots(others, "others", GREY, mode="markers"), dots(edge, "Pareto front", RED, **line)]
    title = f"{_way(first)} against {_way(second)}"
    made = figure(traces, title, plain(first.name), plain(second.name), tall=TALL + 60)
    made.update_xaxes(type=scale([t.values[first.place] for t in complete(trials)]))
    made.update_yaxes(type=scale([t.values[second.place] for t in complete(trials)]))
    return made


def _way(objective: Objective) -> str:
    return f"{plain(objective.name)} ({'higher' if objective.maximize else 'lower'} is better)"
