"""The loop: hooks in order, the last state evaluated exactly once, an early stop stops."""

import contextlib
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from whet.data.batching import Batching
from whet.engine.callbacks import Callback, EarlyStopping
from whet.engine.loop import fit
from whet.engine.plan import Plan
from whet.errors import NonFiniteError
from whet.types import Duration


@dataclass
class Recorder(Callback):
    """Writes down every hook with step and epoch."""

    heard: list = field(default_factory=list)

    def on_start(self, state):
        self.heard.append(("start", state.step))

    def on_update(self, state, result):
        self.heard.append(("update", state.step, round(state.epoch, 6), result))

    def on_evaluation(self, state, metrics, predictions):
        self.heard.append(("evaluation", state.step, metrics["score"], predictions))

    def on_end(self, state):
        self.heard.append(("end", state.step))


class Steps:
    """A stepper that counts."""

    judged = contextlib.nullcontext

    def __init__(self, fails_at=None):
        self.model, self.done, self.fails_at = SimpleNamespace(), 0, fails_at

    def ahead(self, updates):
        return updates

    def settle(self): ...

    def before_judging(self): ...

    def update(self, update):
        assert update.step == self.done
        if update.step == self.fails_at:
            raise NonFiniteError("loss is nan")
        self.done += 1
        return self.done


class Judge:
    """An evaluator whose score is a given list."""

    def __init__(self, stepper, scores=None):
        self.stepper, self.scores, self.calls = stepper, iter(scores or range(1000)), []

    def predict(self, model):
        assert model is self.stepper.model
        self.calls.append(self.stepper.done)
        return f"after {self.stepper.done}"

    def metrics(self, predictions):
        return {"score": next(self.scores)}


def run(duration="2ep", every="1ep", scores=None, callbacks=(), limit=None, fails_at=None):
    plan = Plan.of(np.full(12, 3), Batching(size=4), 1, 0, Duration.parse(duration), limit)
    stepper, recorder = Steps(fails_at), Recorder()
    judge = Judge(stepper, scores)
    marks = plan.evaluations(Duration.parse(every))
    state = None
    try:
        state = fit(plan, stepper, judge, [recorder, *callbacks], marks)
    except NonFiniteError:
        recorder.heard.append(("raised",))
    return state, recorder.heard, judge.calls


def test_hooks_in_order():
    state, heard, _ = run()
    third = pytest.approx(1 / 3, abs=1e-6)
    assert heard == [
        ("start", 0),
        ("update", 1, third, 1),
        ("update", 2, pytest.approx(2 / 3, abs=1e-6), 2),
        ("update", 3, 1.0, 3),
        ("evaluation", 3, 0, "after 3"),
        ("update", 4, pytest.approx(4 / 3, abs=1e-6), 4),
        ("update", 5, pytest.approx(5 / 3, abs=1e-6), 5),
        ("update", 6, 2.0, 6),
        ("evaluation", 6, 1, "after 6"),
        ("end", 6),
    ]
    assert (state.step, state.epoch, state.total, state.stopped) == (6, 2.0, 6, "")


@pytest.mark.parametrize(
    ("duration", "every", "marks"),
    [
        ("2ep", "1ep", [3, 6]),
        ("2ep", "4st", [4, 6]),
        ("2ep", "2st", [2, 4, 6]),
        ("2ep", "1", [6]),
        ("5st", "1ep", [3, 5]),
        ("1st", "1ep", [1]),
        ("2ep", "100ep", [6]),
        ("2ep", "0.01ep", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_last_state_is_evaluated_exactly_once(duration, every, marks):
    state, _, calls = run(duration, every)
    assert calls == marks
    assert state.step == marks[-1]


def test_it_stops_early_and_evaluates_no_more():
    stop = EarlyStopping("score", True, patience=1)
    state, heard, calls = run("5ep", scores=[3, 2, 9, 9, 9], callbacks=[stop])
    assert calls == [3, 6] and state.step == 6 and "not improved" in state.stopped
    assert heard[-2:] == [("evaluation", 6, 2, "after 6"), ("end", 6)]


def test_patience_at_the_very_end_is_no_early_stop():
    stop = EarlyStopping("score", True, patience=1)
    state, heard, calls = run("2ep", scores=[3, 2], callbacks=[stop])
    assert calls == [3, 6] and state.stopped == "" and heard[-1] == ("end", 6)


def test_a_failing_step_ends_it_without_the_end_hook():
    state, heard, calls = run(fails_at=4)
    assert state is None and calls == [3]
    assert heard[-1] == ("raised",) and not any(item[0] == "end" for item in heard)


def test_the_limit():
    state, _, calls = run("3ep", limit=4)
    assert (state.step, calls) == (4, [3, 4])


def test_a_bare_callback_does_nothing():
    state, heard, _ = run(callbacks=[Callback()])
    assert state.step == 6 and len(heard) == 10
