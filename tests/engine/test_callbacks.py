"""Best checkpoint, early stopping, reports, profiles: each from a list of metrics to what it does."""

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from whet.engine.callbacks import Best, EarlyStopping, Profiler, Report, State
from whet.engine.step import StepResult
from whet.evaluation.predictions import Predictions
from whet.tracking.base import Tracking

NAN = math.nan


def predictions(number):
    logits = np.full((1, 2), number, dtype=np.float32)
    return Predictions(np.array(["a"]), logits, np.array([0]), "validation")


def evaluate(callback, values, total=10**6):
    """Feed evaluations at steps 10, 20, …; the state afterwards and where it stopped."""
    state = State(total=total)
    for number, value in enumerate(values, 1):
        state.step, state.epoch = number * 10, number / 2
        callback.on_evaluation(state, {"score": value, "loss": -1.0}, predictions(number))
        if state.stopped:
            break
    return state


# ---------------------------------------------------------------- best


@pytest.mark.parametrize(
    ("maximize", "values", "step"),
    [
        (True, [1, 3, 2], 20),
        (False, [1, 3, 2], 10),
        (True, [1, 3, 3, 3], 20),
        (False, [2, 1, 1, 1.5], 20),
        (True, [NAN, 1, NAN, 0.5], 20),
        (False, [NAN, 5, NAN, 7], 20),
        (True, [2, NAN, 1], 10),
        (True, [NAN, NAN], 10),
        (True, [-math.inf, 0], 20),
        (True, [0.5], 10),
    ],
)
def test_the_first_among_equals_and_never_nan(maximize, values, step):
    state = evaluate(Best("score", maximize), values)
    assert state.best_step == step
    assert state.best.logits[0, 0] == step // 10
    expected = values[step // 10 - 1]
    assert state.best_value == expected or (math.isnan(expected) and math.isnan(state.best_value))


# ---------------------------------------------------------------- early stopping


@pytest.mark.parametrize(
    ("settings", "values", "stops"),
    [
        ({"patience": 2}, [1, 2, 2, 1, 9], 40),
        ({"patience": 1}, [1, 1, 9], 20),
        ({"patience": 2}, [1, 0, 2, 1, 3, 2, 2], 70),
        ({"patience": 3}, [1, 0, 0], None),
        ({"patience": 2, "maximize": False}, [3, 2, 2, 2], 40),
        ({"patience": 2, "maximize": False}, [3, 4, 2.9, 5, 2.8], None),
        ({"patience": 2, "min_delta": 0.5}, [1, 1.4, 1.5, 9], 30),
        ({"patience": 3, "min_delta": 0.5}, [1, 1.4, 1.6, 2.0, 2.2], None),
        ({"patience": 2, "min_delta": 0.5, "maximize": False}, [1, 0.6, 0.6], 30),
        ({"patience": 2}, [1, NAN, NAN], 30),
        ({"patience": 2}, [NAN, 1, NAN, 2], None),
        ({"patience": 2}, [NAN, NAN, 1], 20),
    ],
)
def test_patience_and_min_delta(settings, values, stops):
    callback = EarlyStopping(**{"metric": "score", "maximize": True, **settings})
    state = evaluate(callback, values)
    assert (state.step if state.stopped else None) == stops
    if stops:
        assert f"validation/score has not improved for {settings['patience']} evaluations" in state.stopped


def test_the_end_of_training_is_no_early_stop():
    state = evaluate(EarlyStopping("score", True, 2), [3, 2, 1], total=30)
    assert not state.stopped
    assert evaluate(EarlyStopping("score", True, 2), [3, 2, 1], total=31).stopped


# ---------------------------------------------------------------- report


@dataclass
class Heard(Tracking):
    """Keeps what it is told."""

    said: list = field(default_factory=list)

    def log(self, metrics, step):
        self.said.append((step, dict(metrics)))


def report(updates, evaluations=(), log_every=4):
    tracking = Heard(log_every=log_every)
    callback, state = Report(tracking), State()
    callback.on_start(state)
    for step in range(1, updates + 1):
        state.step, state.epoch = step, step / 10
        callback.on_update(
            state, StepResult(loss=float(step), grad_norm=2.0 * step, lr=0.1 / step, tokens=50, rows=step)
        )
        if step in evaluations:
            callback.on_evaluation(state, {"score": 0.5, "loss": 1.5}, predictions(0))
    return tracking.said


def test_training_figures_every_so_many_updates():
    said = report(9)
    assert [step for step, _ in said] == [4, 8]
    first, second = said[0][1], said[1][1]
    assert first["train/loss"] == pytest.approx((1 + 4 + 9 + 16) / 10)  # by rows
    assert second["train/grad_norm"] == pytest.approx(2 * (5 + 6 + 7 + 8) / 4)
    assert (second["train/lr"], second["train/epoch"]) == (pytest.approx(0.1 / 8), pytest.approx(0.8))
    assert second["train/tokens_per_second"] > 0


def test_evaluations_bring_what_is_pending_first():
    said = report(9, evaluations=(6, 8))
    assert [step for step, _ in said] == [4, 6, 6, 8, 8]
    assert said[1][1]["train/loss"] == pytest.approx((25 + 36) / 11)
    assert said[2][1] == {"validation/score": 0.5, "validation/loss": 1.5}
    assert "train/loss" in said[3][1] and "validation/loss" in said[4][1]
    assert [step for step, _ in report(3, log_every=1)] == [1, 2, 3]


def test_evaluation_time_is_not_training_time(monkeypatch):
    now = {"t": 0.0}
    monkeypatch.setattr("whet.engine.callbacks.time.perf_counter", lambda: now["t"])
    tracking = Heard(log_every=2)
    callback, state = Report(tracking), State()
    callback.on_start(state)
    result = StepResult(1.0, 1.0, 0.1, tokens=30, rows=4)
    for step in (1, 2):
        now["t"] += 1
        state.step = step
        callback.on_update(state, result)
    now["t"] += 100
    callback.on_evaluation(state, {"score": 1.0}, predictions(0))
    for step in (3, 4):
        now["t"] += 1
        state.step = step
        callback.on_update(state, result)
    rates = [metrics["train/tokens_per_second"] for _, metrics in tracking.said if "train/loss" in metrics]
    assert rates == [30, 30]


# ---------------------------------------------------------------- profiler


@pytest.mark.filterwarnings("ignore:Profiler won't be using warmup")
@pytest.mark.parametrize("updates", [1, 2, 3, 14])
def test_a_profile_of_however_few_updates(tmp_path, updates):
    callback, state = Profiler(tmp_path), State(total=updates)
    callback.on_start(state)
    for _ in range(updates):
        torch.ones(8, 8) @ torch.ones(8, 8)
        callback.on_update(state, None)
    callback.on_end(state)
    events = json.loads((tmp_path / "profile.json").read_text())["traceEvents"]
    products = [event for event in events if event.get("name") == "aten::matmul"]
    assert len(products) == min(10, updates - min(2, updates - 1))
    assert "aten::matmul" in (tmp_path / "profile.txt").read_text()
