"""The loop only loops."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from whet.engine.callbacks import Callback, State
from whet.randomness import untouched

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from whet.engine.evaluate import Evaluator
    from whet.engine.plan import Plan
    from whet.engine.step import Stepper


def fit(
    plan: Plan,
    stepper: Stepper,
    evaluator: Evaluator,
    callbacks: Sequence[Callback],
    evaluations: frozenset[int],
    state: State | None = None,
) -> State:
    """Train through `plan`, evaluating after the updates numbered in `evaluations`, and always at the end.

    Args:
        plan: all updates of the run.
        stepper: makes them.
        evaluator: of the validation split.
        callbacks: their hooks are called in this order.
        evaluations: numbers of finished updates.
        state: where to go on; None starts anew.

    Raises:
        NonFiniteError: from a step.
        Interrupted: a signal asked for the end.
    """
    with _closing(callbacks):
        return _fit(plan, stepper, evaluator, callbacks, evaluations, state or State(total=plan.total))


def _fit(
    plan: Plan,
    stepper: Stepper,
    evaluator: Evaluator,
    callbacks: Sequence[Callback],
    evaluations: frozenset[int],
    state: State,
) -> State:
    for callback in callbacks:
        callback.on_start(state)
    groups = callbacks[:-1], callbacks[-1:]  # the last one saves the generators' states
    for update in stepper.ahead(plan.after(state.step)):
        # evaluate and save
        if state.step in evaluations and state.evaluated != state.step:
            stepper.settle()
            _evaluate(state, stepper, evaluator, callbacks)
        if state.stopped:
            break
        # one training step
        result = stepper.update(update)
        state.step, state.epoch = update.step + 1, update.epoch
        for some in groups:
            with untouched():
                for callback in some:
                    callback.on_update(state, result)
    stepper.settle()
    if state.evaluated != state.step:
        _evaluate(state, stepper, evaluator, callbacks)
    for callback in callbacks:
        callback.on_end(state)
    return state


@contextlib.contextmanager
def _closing(callbacks: Sequence[Callback]) -> Iterator[None]:
    """Close all callbacks in the end, and tell them why it came before its time."""
    try:
        yield
    except BaseException as error:
        for callback in callbacks:
            callback.close(error)
        raise
    for callback in callbacks:
        callback.close(None)


def _evaluate(state: State, stepper: Stepper, evaluator: Evaluator, callbacks: Sequence[Callback]) -> None:
    with untouched(), stepper.judged():
        stepper.before_judging()
        predictions = evaluator.predict(stepper.model)
        metrics = evaluator.metrics(predictions)
    state.evaluated = state.step
    for callback in callbacks:
        with untouched():
            callback.on_evaluation(state, metrics, predictions)
