"""What trials say, against brute force and made-up functions."""

from __future__ import annotations

import itertools
import math
import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from whet.errors import RunError
from whet.review.records import SweepRecord
from whet.review.trials import (
    Axis,
    Objective,
    best_so_far,
    front,
    importances,
    kind_of,
    objectives_of,
    parameters,
    surface,
)

LR = FloatDistribution(1e-5, 1e-1, log=True)
DROPOUT = FloatDistribution(0.0, 0.5)
METHOD = CategoricalDistribution(["none", "lora", None])
LOWER = Objective("validation/loss", 0, maximize=False)
HIGHER = Objective("validation/accuracy", 0, maximize=True)


def trial(number, value, params=None, state=TrialState.COMPLETE, told=None, **facts):
    params = params or {}
    known = {"lr": LR, "dropout": DROPOUT, "method": METHOD}
    made = create_trial(
        state=state, values=value if isinstance(value, list) else None, value=None if isinstance(value, list) else value,
        params=params, distributions={name: known[name] for name in params}, intermediate_values=told or {},
        user_attrs=facts,
    )  # fmt: skip
    made.number = number
    return made


def sample(count, value, seed=1):
    rng = random.Random(seed)
    found = []
    for number in range(count):
        params = {
            "lr": 10 ** rng.uniform(-5, -1),
            "dropout": rng.uniform(0, 0.5),
            "method": rng.choice(["none", "lora", None]),
        }
        found.append(trial(number, value(params), params))
    return found


@pytest.mark.parametrize(
    ("value", "first"),
    [
        (lambda p: (math.log10(p["lr"]) + 3) ** 2, "lr"),
        (lambda p: (p["dropout"] - 0.2) ** 2, "dropout"),
        (lambda p: {"none": 0.1, "lora": 0.9, None: 0.5}[p["method"]], "method"),
    ],
)
def test_the_only_parameter_that_matters_comes_first(value, first):
    found = importances(sample(40, value), LOWER)
    assert next(iter(found)) == first
    assert found[first] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert set(found) == {"lr", "dropout", "method"}
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_importance_needs_trials_that_differ():
    def value(params):
        return params["dropout"]

    assert importances(sample(4, value), LOWER) == {}
    assert importances(sample(20, lambda _: 1.0), LOWER) == {}
    few = sample(4, value)
    again = [trial(4 + n, 1.0, few[0].params, reused_from=0) for n in range(6)]
    assert importances(few + again, LOWER) == {}, "an equal trial tells nothing new"
    some = sample(12, value)
    rare = [trial(12, 0.3, {"dropout": 0.3}), *some]
    assert list(importances(rare, LOWER)) == ["dropout"], "a parameter that some trials lack isn't measured"


def test_importance_of_a_second_objective():
    points = [
        trial(t.number, [t.params["lr"], t.params["dropout"]], t.params) for t in sample(40, lambda _: 0.0)
    ]
    assert next(iter(importances(points, Objective("b", 1, maximize=True)))) == "dropout"
    assert next(iter(importances(points, Objective("a", 0, maximize=True)))) == "lr"


@pytest.mark.parametrize("objective", [LOWER, HIGHER])
def test_best_so_far(objective):
    values = [random.Random(4).random() for _ in range(1)] + [0.5, 0.9, math.nan, 0.1, 0.95, 0.3]
    trials = [trial(number, value) for number, value in enumerate(values) if not math.isnan(value)]
    trials.insert(2, trial(90, 0.99, state=TrialState.PRUNED, told={1: 0.0}))
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    pick = max if objective.maximize else min
    expected = [(t.number, pick(other.value for other in done[: place + 1])) for place, t in enumerate(done)]
    assert best_so_far(trials, objective) == expected


def test_a_pruned_trial_has_no_value():
    """Optuna keeps its last intermediate value as if it were one."""
    cut = trial(0, 0.7, state=TrialState.PRUNED, told={1: 0.7})
    assert cut.value == 0.7
    assert LOWER.of(cut) is None


def test_front_is_optunas():
    study = optuna.create_study(directions=["maximize", "minimize"])
    rng = random.Random(2)
    study.add_trials([trial(n, [round(rng.random(), 1), round(rng.random(), 1)]) for n in range(40)])
    objectives = [Objective("a", 0, maximize=True), Objective("b", 1, maximize=False)]
    own = {t.number for t in front(study.trials, objectives)}
    assert own == {t.number for t in study.best_trials}
    assert 1 < len(own) < 40


def test_axes():
    log, line, choice = Axis.of("lr", LR), Axis.of("n", IntDistribution(1, 9)), Axis.of("m", METHOD)
    assert (log.kind, line.kind, choice.kind) == ("log", "linear", "category")
    assert log.position(1e-3) == pytest.approx(-3)
    assert log.written(-3.0) == "0.001"
    assert choice.choices == ("none", "lora", "null")
    assert choice.position(None) == 2
    assert choice.written(2.0) == choice.shown(None) == "null"
    assert line.position(4) == 4


def test_surface_of_a_plane_is_the_plane():
    points = [(x, y, 2 * x - 3 * y + 1) for x, y in itertools.product([0.0, 1.0, 4.0], [-2.0, 5.0])]
    found = surface(points)
    assert found is not None
    assert (found.x[0], found.x[-1], found.y[0], found.y[-1]) == (0, 4, -2, 5)
    for row, y in zip(found.z, found.y, strict=True):
        for value, x in zip(row, found.x, strict=True):
            assert value == pytest.approx(2 * x - 3 * y + 1)


def test_surface_needs_a_plane():
    assert surface([(0, 0, 1), (1, 1, 2), (2, 2, 3), (3, 3, 4)]) is None
    assert surface([(0, 1, 1), (0, 2, 2), (0, 3, 3), (0, 4, 4)]) is None
    assert surface([(0, 0, 1), (1, 0, 1), (0, 1, 1)]) is None
    hole = surface([(0, 0, 1), (1, 0, 1), (0, 1, 1), (0.1, 0.1, 1)])
    assert hole is not None and hole.z[-1][-1] is None and hole.z[0][0] == pytest.approx(1)


def test_kinds():
    assert kind_of(trial(0, 1.0)) == "complete"
    assert kind_of(trial(1, 1.0, reused_from=0)) == "reused"
    assert kind_of(trial(2, None, state=TrialState.FAIL)) == "failed"


def test_parameters_in_order_of_appearance():
    trials = [trial(0, 1.0, {"dropout": 0.1}), trial(1, 1.0, {"lr": 1e-3, "dropout": 0.2})]
    assert list(parameters(trials)) == ["dropout", "lr"]


def sweep(folder, url):
    facts = {"study": "mine", "storage": url, "objectives": ["validation/loss"], "directions": ["minimize"]}
    record = SweepRecord(folder)
    record.__dict__["facts"] = facts
    return record


def test_a_sweep_that_was_moved_is_found_in_its_own_folder(tmp_path):
    study = optuna.create_study(study_name="mine", storage=f"sqlite:///{tmp_path}/study.db")
    study.add_trial(trial(0, 0.5))
    moved = sweep(tmp_path, "sqlite:////nowhere/any/more/study.db")
    assert [t.value for t in moved.study().trials] == [0.5]
    assert objectives_of(moved) == [LOWER]


def test_a_study_that_is_gone(tmp_path):
    with pytest.raises(RunError, match="the study's file .* is gone"):
        sweep(tmp_path, f"sqlite:///{tmp_path}/study.db").study()
    assert list(tmp_path.iterdir()) == [], "looking makes no file"
    optuna.create_study(study_name="other", storage=f"sqlite:///{tmp_path}/study.db")
    with pytest.raises(RunError, match="no study mine"):
        sweep(tmp_path, f"sqlite:///{tmp_path}/study.db").study()
