"""What a sweep tells of its trials."""

from __future__ import annotations

from optuna.trial import TrialState, create_trial

from whet.sweep.results import saved_by_pruning


def trial(state, **facts):
    value = None if state == TrialState.FAIL else 0.5
    return create_trial(state=state, value=value, user_attrs=facts)


def test_saved_by_pruning():
    trials = [
        trial(TrialState.COMPLETE, steps=8, planned=10),  # stopped early by itself: nothing saved
        trial(TrialState.PRUNED, steps=3, planned=10),
        trial(TrialState.PRUNED, steps=3, planned=10, reused_from=1),
        trial(TrialState.FAIL, planned=10),  # failed before it could tell
        trial(TrialState.FAIL),
    ]
    assert saved_by_pruning(trials) == (11, 18)
