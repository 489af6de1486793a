"""The sweeper's node is checked before anything else."""

import pytest

from whet.errors import ConfigError
from whet.sweep.given import directions, settings_of

GIVEN = {
    "sampler": {"_target_": "optuna.samplers.TPESampler"},
    "pruner": {"_target_": "optuna.pruners.NopPruner"},
    "direction": "minimize",
    "storage": None,
    "study_name": None,
    "n_trials": 20,
    "n_jobs": 1,
    "max_failure_rate": None,
    "search_space": None,
    "params": {"x": "interval(0, 1)"},
    "custom_search_space": None,
}


def test_upstreams_fields_are_enough():
    found = settings_of(GIVEN)
    assert (found.n_trials, found.params, found.direction) == (20, {"x": "interval(0, 1)"}, ["minimize"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_trials", 0),
        ("n_trials", "many"),
        ("n_jobs", -1),
        ("repeats", 0),
        ("enqueue", 3),
        ("storage", 5),
        ("direction", "up"),
        ("search_space", {"x": 1}),
        ("sampler", None),
        ("grace", 0),
    ],
)
def test_what_is_wrong_is_named(name, value):
    with pytest.raises(ConfigError, match=rf"^hydra\.sweeper\.{name}"):
        settings_of({**GIVEN, name: value})


def test_directions_may_be_enums_texts_and_lists():
    from hydra_plugins.whet_plugin.optuna_sweeper import Direction

    assert directions(Direction.maximize) == ["maximize"]
    assert directions(["minimize", Direction.maximize]) == ["minimize", "maximize"]
    assert directions("auto") == ["auto"]
