"""What a study's trials say: best so far, importance, places on axes, fronts. No figures here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.review.records import SweepRecord
from whet.review.style import number
from whet.sweep.space import as_text

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    Trials = Sequence[FrozenTrial]

LEAST = 5
"""Complete trials from which on an importance says anything."""
SEED = 0
"""Of the forest that measures importance: the same trials, the same figures."""
CELLS = 40
"""Of a contour, along each axis."""


@dataclass(frozen=True)
class Objective:
    """What the trials are compared by."""

    name: str
    place: int
    """Among the values of a trial."""
    maximize: bool

    def of(self, trial: FrozenTrial) -> float | None:
        """The trial's value; None of one that isn't complete."""
        return float(trial.values[self.place]) if trial.state.name == "COMPLETE" else None

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is better than `other`."""
        return one > other if self.maximize else one < other


def objectives_of(sweep: SweepRecord) -> list[Objective]:
    """In the order of a trial's values."""
    names, ways = sweep.facts["objectives"], sweep.facts["directions"]
    return [
        Objective(str(n), i, way == "maximize") for i, (n, way) in enumerate(zip(names, ways, strict=True))
    ]


# ---------------------------------------------------------------- picking


def complete(trials: Trials) -> list[FrozenTrial]:
    """Those with values."""
    return [trial for trial in trials if trial.state.name == "COMPLETE"]


def pruned(trials: Trials) -> list[FrozenTrial]:
    """Those that ended early and told something before."""
    return [trial for trial in trials if trial.state.name == "PRUNED" and trial.intermediate_values]


def last_told(trial: FrozenTrial) -> float:
    """The last value that a trial told half-way."""
    return float(trial.intermediate_values[max(trial.intermediate_values)])


def parameters(trials: Trials) -> dict[str, BaseDistribution]:
    """What was searched, in order of appearance, with the ranges of the latest trial that has it."""
    found: dict[str, BaseDistribution] = {}
    for trial in trials:
        found.update(trial.distributions)
    return found


def best_so_far(trials: Trials, objective: Objective) -> list[tuple[int, float]]:
    """(trial number, best value of the complete trials up to it)."""
    found: list[tuple[int, float]] = []
    for trial in complete(trials):
        value = objective.of(trial)
        if value is None or math.isnan(value):
            continue
        best = value if not found or objective.better(value, found[-1][1]) else found[-1][1]
        found.append((trial.number, best))
    return found


def front(trials: Trials, objectives: Sequence[Objective]) -> list[FrozenTrial]:
    """The Pareto front: complete trials that no other one matches in all objectives and betters in one."""
    done = complete(trials)
    points = [[(-1 if o.maximize else 1) * trial.values[o.place] for o in objectives] for trial in done]
    return [
        t for t, own in zip(done, points, strict=True) if not any(_dominates(other, own) for other in points)
    ]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


# ---------------------------------------------------------------- importance


def importances(trials: Trials, objective: Objective) -> dict[str, float]:
    """Share of the objective's variance that each parameter explains, the largest first.

    By functional ANOVA over a random forest (Hutter et al., 2014), as Optuna has it. Only parameters that all
    complete trials have, and that took more than one value, are measured; an equal trial counts once.

    Returns:
        Nothing where fewer than `LEAST` different trials are complete, or their values don't differ.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    done = [trial for trial in complete(trials) if "reused_from" not in trial.user_attrs]
    values = {objective.of(trial) for trial in done}
    names = _measured(done)
    if len(done) < LEAST or len(values) < 2 or not names:
        return {}
    study = optuna.create_study(directions=["minimize"] * len(done[0].values))
    study.add_trials(done)
    evaluator = FanovaImportanceEvaluator(seed=SEED)
    return dict(
        get_param_importances(
            study,
            evaluator=evaluator,
            params=names,
            target=lambda trial: float(trial.values[objective.place]),
        )
    )


def _measured(done: Trials) -> list[str]:
    """Parameters of all trials, of more than one value."""
    names = [name for name in parameters(done) if all(name in trial.params for trial in done)]
    return [name for name in names if len({as_text(trial.params[name]) for trial in done}) > 1]


# ---------------------------------------------------------------- axes


@dataclass(frozen=True)
class Axis:
    """A parameter as an axis: numbers, numbers on a log scale, or choices in their order."""

    name: str
    choices: tuple[str, ...] = ()
    log: bool = False

    @classmethod
    def of(cls, name: str, each: BaseDistribution) -> Axis:
        """By the parameter's distribution."""
        choices = getattr(each, "choices", None)
        if choices is not None:
            return cls(name, tuple(map(as_text, choices)))
        return cls(name, log=bool(getattr(each, "log", False)))

    @property
    def kind(self) -> str:
        """As Plotly calls it."""
        return "category" if self.choices else "log" if self.log else "linear"

    def shown(self, value: Any) -> Any:
        """A value as it stands on the axis."""
        return as_text(value) if self.choices else value

    def position(self, value: Any) -> float:
        """A value as a number in which distances mean something."""
        if self.choices:
            return float(self.choices.index(as_text(value)))
        return math.log10(value) if self.log else float(value)

    def written(self, position: float) -> str:
        """The value at a position, for people."""
        if self.choices:
            return self.choices[round(position)]
        return number(10**position if self.log else position, 3)


def axes_of(trials: Trials) -> dict[str, Axis]:
    """Of all parameters."""
    return {name: Axis.of(name, each) for name, each in parameters(trials).items()}


@dataclass(frozen=True)
class Surface:
    """Values between trials, on a grid of two parameters."""

    x: list[float]
    """Positions of columns (see `Axis.position`)."""
    y: list[float]
    z: list[list[float | None]]
    """[rows, columns]; None outside of the trials' hull."""


def surface(points: Sequence[tuple[float, float, float]]) -> Surface | None:
    """Linear interpolation between (x, y, value) points; None where they don't span a plane."""
    import numpy as np
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import QhullError

    array = np.array(points, dtype=np.float64).reshape(-1, 3)
    array = array[np.isfinite(array).all(axis=1)]
    unit = _to_unit(array[:, :2])
    if len(array) < 4 or unit is None:
        return None
    try:
        between = LinearNDInterpolator(unit, array[:, 2])
    except QhullError:  # all on one line
        return None
    grid = np.linspace(0, 1, CELLS)
    z = between(*np.meshgrid(grid, grid))
    x, y = (array[:, c].min() + grid * np.ptp(array[:, c]) for c in (0, 1))
    return Surface(x.tolist(), y.tolist(), [[None if np.isnan(v) else float(v) for v in row] for row in z])


def _to_unit(places: NDArray[Any]) -> NDArray[Any] | None:
    """Each column stretched to 0 … 1; None where one doesn't vary."""
    import numpy as np

    spans = np.ptp(places, axis=0) if len(places) else np.zeros(2)
    return None if not spans.all() else np.asarray((places - places.min(axis=0)) / spans)


# ---------------------------------------------------------------- peers and states


def peer_of(trial: FrozenTrial) -> str:
    """Who worked on it: host and process."""
    peer: Mapping[str, Any] = trial.user_attrs.get("peer") or {}
    return f"{peer['host']}:{peer['pid']}" if peer else "unknown"


def kind_of(trial: FrozenTrial) -> str:
    """How it ended: complete, pruned, failed, running, waiting; `reused` if it is an equal trial's result."""
    from whet.sweep.results import state_of

    return "reused" if "reused_from" in trial.user_attrs else state_of(trial)
