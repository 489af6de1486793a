"""Figures of a sweep, against its trials."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from optuna.trial import TrialState
from tests.review.test_trials import HIGHER, LOWER, sample, trial

from whet.review import search
from whet.review.trials import Objective, front, importances

DONE = [
    trial(0, 0.9, {"lr": 1e-4, "dropout": 0.1}, told={1: 1.0, 2: 0.9}),
    trial(2, 0.5, {"lr": 1e-2, "dropout": 0.3}, told={1: 0.8, 2: 0.5}, std=0.05),
    trial(3, 0.7, {"lr": 1e-3, "dropout": 0.2}, told={1: 0.75, 2: 0.7}),
]
CUT = [trial(1, 1.4, {"lr": 1e-5, "dropout": 0.4}, TrialState.PRUNED, told={1: 1.4})]
FAILED = [trial(4, None, {"lr": 1e-1, "dropout": 0.4}, TrialState.FAIL, reason="RuntimeError: no")]
TRIALS = sorted(DONE + CUT + FAILED, key=lambda each: each.number)


def traces(figure):
    return {each.name: each for each in figure.data}


def test_history_has_every_value_and_marks_pruned_ones():
    found = traces(search.history(TRIALS, LOWER))
    assert (found["complete"].x, found["complete"].y) == ((0, 2, 3), (0.9, 0.5, 0.7))
    assert found["complete"].error_y.array[1] == 0.05
    assert (found["pruned (last value told)"].x, found["pruned (last value told)"].y) == ((1,), (1.4,))
    assert found["pruned (last value told)"].marker.symbol != found["complete"].marker.symbol
    assert (found["best so far"].x, found["best so far"].y) == ((0, 2, 3), (0.9, 0.5, 0.5))
    assert traces(search.history(TRIALS, HIGHER))["best so far"].y == (0.9, 0.9, 0.9)
    assert "lower is better" in search.history(TRIALS, LOWER).layout.title.text


def test_importance_bars_from_the_top():
    trials = sample(40, lambda p: (p["dropout"] - 0.2) ** 2)
    figure = search.importance(importances(trials, LOWER))
    assert figure.data[0].y[0] == "dropout"
    assert figure.layout.yaxis.autorange == "reversed"
    assert sum(figure.data[0].x) == pytest.approx(1)
    assert search.importance({}) is None


def test_slices_have_the_parameters_scale():
    lr, dropout = search.slices(TRIALS, LOWER, ["lr", "dropout"])
    assert lr.layout.xaxis.type == "log"
    assert dropout.layout.xaxis.type == "linear"
    assert traces(lr)["complete"].x == (1e-4, 1e-2, 1e-3)
    assert traces(lr)["complete"].y == (0.9, 0.5, 0.7)
    assert traces(lr)["pruned"].x == (1e-5,)
    (method,) = search.slices(sample(9, lambda p: p["dropout"]), LOWER, ["method"])
    assert method.layout.xaxis.type == "category"
    assert method.layout.xaxis.categoryarray == ("none", "lora", "null")
    assert set(traces(method)["complete"].x) <= {"none", "lora", "null"}


def test_contour_goes_through_the_trials():
    trials = sample(30, lambda p: p["dropout"])
    figure = search.contour(trials, LOWER, ["lr", "dropout"])
    surface, dots = figure.data
    assert figure.layout.xaxis.type == "log"
    assert dots.x == tuple(each.params["lr"] for each in trials)
    assert tuple(dots.marker.color) == tuple(each.value for each in trials)
    assert surface.x[0] == pytest.approx(min(dots.x)) and surface.x[-1] == pytest.approx(max(dots.x))
    assert surface.reversescale, "the lower, the lighter"
    for row, y in zip(surface.z, surface.y, strict=True):
        assert all(z == pytest.approx(y) for z in row if z is not None)
    assert not search.contour(trials, HIGHER, ["lr", "dropout"]).data[0].reversescale
    assert len(search.contour(trials, LOWER, ["method", "dropout"]).data) == 1, "choices have no between"


def test_parallel_lines_by_quarters():
    trials = sample(8, lambda p: p["dropout"])
    trials[3].params.pop("lr")
    figure = search.parallel(trials, LOWER)
    found = traces(figure)
    assert list(found) == ["worst quarter", "third quarter", "second quarter", "best quarter"]
    ranked = sorted(trials, key=lambda each: each.value)
    low, high = ranked[0].value, ranked[-1].value
    heights = [(each.value - low) / (high - low) for each in ranked[:2]]
    ends = [y for x, y in zip(found["best quarter"].x, found["best quarter"].y, strict=True) if x == 3]
    assert ends == pytest.approx(heights)
    points = sum(x is not None for each in figure.data for x in each.x)
    assert points == 8 * 4 - 1, "a parameter that a trial lacks is passed over"
    assert figure.layout.xaxis.ticktext == ("lr", "dropout", "method", "validation/loss")
    best_of_accuracy = traces(search.parallel(trials, HIGHER))["best quarter"]
    assert max(y for y in best_of_accuracy.y if y is not None) == 1
    assert search.parallel(trials[:1], LOWER) is None


def test_intermediate_values_tell_where_pruning_cut():
    found = traces(search.intermediate(TRIALS, LOWER))
    assert (found["pruned"].x, found["pruned"].y) == ((1, None), (1.4, None))
    assert (found["pruned here"].x, found["pruned here"].y) == ((1,), (1.4,))
    assert found["complete"].y == (1.0, 0.9, None, 0.8, 0.5, None, 0.75, 0.7, None)
    assert found["best"].y == (0.8, 0.5, None)
    assert found["pruned"].line.dash != found["complete"].line.dash
    assert traces(search.intermediate(TRIALS, HIGHER))["best"].y == (1.0, 0.9, None)
    assert search.intermediate([trial(0, 1.0)], LOWER) is None


def test_timeline_has_a_row_for_each_peer():
    start, trials = datetime(2026, 1, 1, 12), [trial(n, 0.1) for n in range(3)]
    for each, peer, begin, end in zip(trials, (7, 8, 7), (0, 1, 10), (9, 5, None), strict=True):
        each.user_attrs["peer"] = {"host": "h", "pid": peer}
        each.datetime_start = start + timedelta(seconds=begin)
        each.datetime_complete = None if end is None else start + timedelta(seconds=end)
    trials[2].state = TrialState.RUNNING
    found = traces(search.timeline(trials, start + timedelta(seconds=30)))
    assert found["complete"].y == ("h:7", "h:8")
    assert found["complete"].x == (9000.0, 4000.0)
    assert found["complete"].base == ("2026-01-01 12:00:00", "2026-01-01 12:00:01")
    assert found["running"].x == (20000.0,), "until now"
    assert search.timeline([], start) is None


def test_pareto_separates_the_front():
    first, second = Objective("accuracy", 0, maximize=True), Objective("cost", 1, maximize=False)
    trials = [
        trial(n, values) for n, values in enumerate([[0.9, 500.0], [0.8, 50.0], [0.7, 60.0], [0.95, 9000.0]])
    ]
    figure = search.pareto(trials, first, second, front(trials, [first, second]))
    found = traces(figure)
    assert (found["Pareto front"].x, found["Pareto front"].y) == ((0.8, 0.9, 0.95), (50.0, 500.0, 9000.0))
    assert (found["others"].x, found["others"].y) == ((0.7,), (60.0,))
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("linear", "log")


def test_names_that_look_like_markup_are_text():
    bad = trial(0, 0.5, {"method": "none"}, told={1: 0.5}, reason="x")
    bad.params = {"<b>x</b>": 1.0}
    assert "&lt;b&gt;x&lt;/b&gt; = 1" in search.told(bad)
