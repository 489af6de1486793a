"""Every option of every pruner and sampler that the sweeper's node offers changes what happens."""

from __future__ import annotations

import math
import random
import warnings

import optuna
import pytest

from hydra_plugins.whet_plugin.optuna_sweeper import PRUNERS, SAMPLERS
from whet.errors import ConfigError
from whet.sweep.peer import made, sampler_of

TRIALS, STEPS = 40, 12


def curves(seed=4):
    """[trial][step] a made-up metric that rises to a level of the trial's own, with noise and dips."""
    rng = random.Random(seed)
    found = []
    for _ in range(TRIALS):
        level, pace, dip = rng.uniform(0.5, 0.9), rng.uniform(0.2, 1.5), rng.randrange(STEPS)
        found.append(
            [
                level * (1 - math.exp(-pace * (step + 1))) + rng.gauss(0, 0.02) - 0.1 * (step == dip)
                for step in range(STEPS)
            ]
        )
    return found


CURVES = curves()


def pruned(node):
    """Trial → number of the evaluation after which the pruner ended it."""
    study = optuna.create_study(
        direction="maximize", pruner=made(node), sampler=optuna.samplers.RandomSampler(0), study_name="s"
    )
    found = {}
    for curve in CURVES:
        trial = study.ask()
        for step, value in enumerate(curve, 1):
            trial.report(value, step)
            if trial.should_prune():
                found[trial.number] = step
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, curve[-1])
    return found


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


PRUNER_OPTIONS = {
    "median": {"n_startup_trials": 20, "n_warmup_steps": 6, "interval_steps": 5, "n_min_trials": 12},
    "hyperband": {"min_resource": 3, "max_resource": 27, "reduction_factor": 2},
    "asha": {"min_resource": 3, "reduction_factor": 4, "min_early_stopping_rate": 2, "bootstrap_count": 6},
    "patient": {"wrapped_pruner": {"_target_": "optuna.pruners.PercentilePruner", "percentile": 5.0},
                "patience": 4, "min_delta": 0.05},
    "wilcoxon": {"p_threshold": 0.4, "n_startup_steps": 8},
}  # fmt: skip


def test_no_pruner_and_every_pruner_differ():
    found = {name: pruned(node) for name, node in PRUNERS.items()}
    assert found.pop("none") == {}
    assert all(found.values())
    assert len({str(steps) for steps in found.values()}) == len(found) == 5


def test_all_options_of_pruners_are_tried():
    known = {name: set(node) - {"_target_"} for name, node in PRUNERS.items() if name != "none"}
    assert {name: set(options) for name, options in PRUNER_OPTIONS.items()} == known


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, given in PRUNER_OPTIONS.items() for option in given]
)
def test_every_option_of_a_pruner_matters(name, option):
    assert pruned({**PRUNERS[name], option: PRUNER_OPTIONS[name][option]}) != pruned(PRUNERS[name])


def test_the_median_pruner_against_its_definition():
    """A trial ends where its best so far is below the median of the complete trials' values at that step."""
    expected = {}
    for number, curve in enumerate(CURVES):
        for step in range(STEPS):
            others = [CURVES[n][step] for n in range(number) if n not in expected]
            if len(others) < 5:
                continue
            middle = sorted(others)
            half = len(middle) // 2
            median = middle[half] if len(middle) % 2 else (middle[half - 1] + middle[half]) / 2
            if max(curve[: step + 1]) < median:
                expected[number] = step + 1
                break
    assert pruned(PRUNERS["median"]) == expected


# ---------------------------------------------------------------- samplers

SAMPLER_OPTIONS = {
    "tpe": {"seed": 8, "prior_weight": 5.0, "consider_magic_clip": False, "consider_endpoints": True,
            "n_startup_trials": 3, "n_ei_candidates": 4, "multivariate": False, "group": True,
            "constant_liar": False, "warn_independent_sampling": True},
    "random": {"seed": 8},
    "cmaes": {"seed": 8, "x0": {"x": 2.0, "y": 2.0}, "sigma0": 0.01, "n_startup_trials": 5,
              "independent_sampler": {"_target_": "optuna.samplers.QMCSampler", "seed": 1},
              "warn_independent_sampling": False, "consider_pruned_trials": True, "use_separable_cma": True},
    "nsgaii": {"seed": 8, "population_size": 6, "mutation_prob": 1.0, "crossover_prob": 0.0, "swapping_prob": 0.0},
    "motpe": {"seed": 8, "n_startup_trials": 3},
    "gp": {"seed": 8, "n_startup_trials": 3},
    "qmc": {"seed": 8, "scramble": False},
}  # fmt: skip
GONE = {("cmaes", "restart_strategy"), ("cmaes", "inc_popsize"), ("tpe", "consider_prior")}
"""Fields of the old plugin that Optuna itself has taken the effect of: they are accepted and do nothing."""
BASE = {"nsgaii": {"population_size": 8}, "qmc": {"seed": 3}}
"""What an option is compared with, where the default would need too many trials."""


def proposals(node):
    """Parameters of each trial, and what Optuna warned of; every fifth trial is pruned, one stays running."""
    study = optuna.create_study(directions=["minimize"], sampler=sampler_of({"seed": 5, **node}))
    found, told = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(13 if "GP" in node["_target_"] else 24):  # a Gaussian process takes its time
            trial = study.ask()
            x, y = trial.suggest_float("x", -4, 4), trial.suggest_float("y", -4, 4)
            values = [x, y] + ([trial.suggest_float("z", 0, 1)] if number % 2 else [])
            found.append([round(value, 9) for value in values])
            if number == 9:
                continue  # still running: only constant_liar heeds it
            if number % 5 == 4:
                trial.report((x - 1) ** 2 + y**2, 1)
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, (x - 1) ** 2 + y**2)
        told = sorted({str(item.message)[:60] for item in caught})
    return found, told


def settled(name, **more):
    node = {**SAMPLERS[name], **BASE.get(name, {}), **more}
    return {key: value for key, value in node.items() if not (key == "seed" and value is None)}


def test_all_options_of_samplers_are_tried():
    known = {name: set(node) - {"_target_"} for name, node in SAMPLERS.items() if name != "grid"}
    tried = {name: set(given) | {o for n, o in GONE if n == name} for name, given in SAMPLER_OPTIONS.items()}
    assert tried == known


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, given in SAMPLER_OPTIONS.items() for option in given]
)
def test_every_option_of_a_sampler_matters(name, option, caplog):
    with caplog.at_level("WARNING", logger="optuna"):
        optuna.logging.enable_propagation()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        before = (*proposals(settled(name)), len(caplog.records))
        caplog.clear()
        after = (
            *proposals(settled(name, **{option: SAMPLER_OPTIONS[name][option]})),
            len(caplog.records),
        )
    optuna.logging.disable_propagation()
    assert before != after


def test_every_sampler_proposes_its_own():
    first = {name: str(proposals(settled(name))[0]) for name in SAMPLER_OPTIONS}
    assert len(set(first.values())) == len(first) == 7


def test_another_choice_takes_only_its_own_options():
    """A sweep file sets asha's; the command line takes another pruner, or another sampler."""
    left = {"min_resource": 3, "reduction_factor": 3}
    assert pruned({**PRUNERS["none"], **left}) == {}
    assert pruned({**PRUNERS["median"], **left}) == pruned(PRUNERS["median"])
    assert pruned({**PRUNERS["hyperband"], **left}) == pruned({**PRUNERS["hyperband"], "min_resource": 3})
    assert proposals(settled("random", population_size=9)) == proposals(settled("random"))
    with pytest.raises(ConfigError, match="min_resourze"):
        made({**PRUNERS["median"], "min_resourze": 3})
