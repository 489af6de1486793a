"""The loop only loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.engine.callbacks import Callback, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from whet.engine.evaluate import Evaluator
    from whet.engine.plan import Plan
    from whet.engine.step import Stepper


def fit(
    plan: Plan,
    stepper: Stepper,
    evaluator: Evaluator,
    callbacks: Sequence[Callback],
    evaluations: frozenset[int],
) -> State:
    """Train through `plan`, evaluating after the updates numbered in `evaluations`, and always at the end.

    Raises:
        NonFiniteError: from a step.
    """
    state = State(total=plan.total)
    for callback in callbacks:
        callback.on_start(state)
    for update in plan:
        # evaluate and save
        if state.step in evaluations:
            _evaluate(state, stepper, evaluator, callbacks)
            if state.stopped:
                break
        # one training step
        result = stepper.update(update)
        state.step, state.epoch = update.step + 1, update.epoch
        for callback in callbacks:
            callback.on_update(state, result)
    if not state.stopped:
        _evaluate(state, stepper, evaluator, callbacks)
    for callback in callbacks:
        callback.on_end(state)
    return state


def _evaluate(state: State, stepper: Stepper, evaluator: Evaluator, callbacks: Sequence[Callback]) -> None:
    predictions = evaluator.predict(stepper.model)
    metrics = evaluator.metrics(predictions)
    for callback in callbacks:
        callback.on_evaluation(state, metrics, predictions)
