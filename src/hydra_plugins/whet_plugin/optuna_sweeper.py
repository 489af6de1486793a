"""`hydra/sweeper=optuna` for any Hydra app, with the fields of Hydra's own Optuna plugin and some more.

Hydra runs this file before it is a module: a dataclass here can't have its annotations as text.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig, OmegaConf


class Direction(Enum):
    """Of an objective; `auto`: the app knows."""

    minimize = 1
    maximize = 2
    auto = 3


@dataclass
class OptunaSweeperConf:
    """Node `hydra.sweeper`."""

    _target_: str = "hydra_plugins.whet_plugin.optuna_sweeper.OptunaSweeper"
    _recursive_: bool = False
    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "tpe"}, {"pruner": "none"}])
    sampler: Any = MISSING
    pruner: Any = MISSING
    direction: Any = "minimize"
    storage: Any = None
    study_name: Any = None
    n_trials: Any = 20
    n_jobs: Any = 1
    max_failure_rate: Any = None
    search_space: Any = None
    params: Any = None
    custom_search_space: Any = None
    repeats: Any = 1
    seed_key: str = "seed"
    enqueue: Any = field(default_factory=list)
    start: Any = False
    more: Any = 0
    conditional: Any = field(default_factory=list)
    same_failures: Any = 3
    isolate: Any = False
    heartbeat: Any = 10.0
    grace: Any = 60.0


class OptunaSweeper(Sweeper):
    """Hands everything to `whet.sweep`."""

    def __init__(self, **settings: Any) -> None:
        self.given = settings
        self.work: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from whet.sweep.given import settings_of
        from whet.sweep.search import Sweeping

        given = {name: _plain(value) for name, value in self.given.items()}
        self.work = Sweeping(settings_of(given), hydra_context, config, task_function)

    def sweep(self, arguments: list[str]) -> Any:
        return self.work.run(arguments)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {
        "_target_": "optuna.samplers.TPESampler", "seed": None, "consider_prior": None, "prior_weight": None,
        "consider_magic_clip": None, "consider_endpoints": None, "n_startup_trials": 10,
        "n_ei_candidates": 24, "multivariate": None, "group": False, "constant_liar": True,
        "warn_independent_sampling": None,
    },
    "random": {"_target_": "optuna.samplers.RandomSampler", "seed": None},
    "cmaes": {
        "_target_": "optuna.samplers.CmaEsSampler", "seed": None, "x0": None, "sigma0": None,
        "n_startup_trials": 1, "independent_sampler": None, "warn_independent_sampling": True,
        "consider_pruned_trials": False, "restart_strategy": None, "inc_popsize": -1,
        "use_separable_cma": False,
    },
    "nsgaii": {
        "_target_": "optuna.samplers.NSGAIISampler", "seed": None, "population_size": 50,
        "mutation_prob": None, "crossover_prob": 0.9, "swapping_prob": 0.5,
    },
    "motpe": {"_target_": "optuna.samplers.TPESampler", "seed": None, "n_startup_trials": 11},
    "grid": {"_target_": "optuna.samplers.GridSampler", "_partial_": True},
    "gp": {"_target_": "optuna.samplers.GPSampler", "seed": None, "n_startup_trials": 10},
    "qmc": {"_target_": "optuna.samplers.QMCSampler", "seed": None, "scramble": True},
}  # fmt: skip
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {"_target_": "optuna.pruners.NopPruner"},
    "median": {
        "_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 5, "n_warmup_steps": 0,
        "interval_steps": 1, "n_min_trials": 1,
    },
    "hyperband": {
        "_target_": "optuna.pruners.HyperbandPruner", "min_resource": 1, "max_resource": "auto",
        "reduction_factor": 3,
    },
    "asha": {
        "_target_": "optuna.pruners.SuccessiveHalvingPruner", "min_resource": 1, "reduction_factor": 2,
        "min_early_stopping_rate": 0, "bootstrap_count": 0,
    },
    "patient": {
        "_target_": "optuna.pruners.PatientPruner",
        "wrapped_pruner": {"_target_": "optuna.pruners.MedianPruner"}, "patience": 1, "min_delta": 0.0,
    },
    "wilcoxon": {"_target_": "optuna.pruners.WilcoxonPruner", "p_threshold": 0.1, "n_startup_steps": 2},
}  # fmt: skip


def _store() -> None:
    store = ConfigStore.instance()
    store.store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="whet")
    for group, nodes in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        for name, node in nodes.items():
            store.store(group=f"hydra/sweeper/{group}", name=name, node=node, provider="whet")


_store()
