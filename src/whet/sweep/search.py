"""A sweep from the command line to its results: what Hydra's sweeper plugin calls."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.errors import ConfigError, Interrupted, WhetError
from whet.secrets import mask_text
from whet.storage import aside
from whet.sweep.app import app_of
from whet.sweep.peer import FailuresError, Peer, Search, conditional_space
from whet.sweep.process import run_peers
from whet.sweep.results import Progress, write_results
from whet.sweep.space import Space, as_text, axis, grid, key_of, overrides_of, read_space
from whet.sweep.storage import absolute_url, default_url
from whet.sweep.study import Address, Budgeted

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig
    from optuna.distributions import BaseDistribution

log = logging.getLogger("whet.sweep")
FACTS = "sweep.json"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
AUTO = "auto"


@dataclass
class Settings:
    """The sweeper's node of the config, as Hydra gives it."""

    params: dict[str, Any]
    sampler: dict[str, Any]
    pruner: dict[str, Any] | None
    direction: list[str]
    """maximize or minimize, one for each objective; `auto` asks the app."""
    storage: str | None
    study_name: str | None
    n_trials: int
    n_jobs: int
    max_failure_rate: float | None
    custom_search_space: str | None
    repeats: int = 1
    seed_key: str = "seed"
    enqueue: list[dict[str, Any]] = field(default_factory=list)
    start: bool = False
    more: int = 0
    conditional: list[str] = field(default_factory=list)
    same_failures: int = 3
    isolate: bool = False
    heartbeat: float = 10.0
    grace: float = 60.0


@dataclass
class Sweeping:
    """One call of the sweeper."""

    settings: Settings
    context: HydraContext
    config: DictConfig
    task: TaskFunction

    def __post_init__(self) -> None:
        self.app = app_of(self.task)
        self.folder = Path(str(self.config.hydra.sweep.dir)).absolute()

    def run(self, arguments: Sequence[str]) -> list[float] | None:
        """Search; returns the best value or values.

        Raises:
            WhetError: bad input (before any trial), or a sweep that came to nothing.
        """
        search, points = self._search(arguments)
        self._check(search.space)
        study = search.open()
        study.keep_to(self._meaning(search))
        self._not_anothers(study)
        total = study.fill(self._total(points), self.settings.more, points)
        self._record(search, arguments, total, status="running", ended=None)
        self.folder.mkdir(parents=True, exist_ok=True)
        status = "stopped"
        try:
            self._work(search, study)
            status = "finished"
        finally:
            status = status if not study.is_open() else "stopped"
            self._record(search, arguments, total, status=status, ended=_now())
            best = write_results(self.folder, study.study, self._objectives())
        if self.app is not None and best:
            print(self.app.finish(self.config, best))
        return list(study.study.best_trial.values) if len(search.address.directions) == 1 and best else None

    # ------------------------------------------------------------ what is searched

    def _search(self, arguments: Sequence[str]) -> tuple[Search, list[dict[str, Any]]]:
        """What peers need to know, and the points that come first."""
        settings, space = self.settings, read_space(self.settings.params, arguments)
        grids = str(settings.sampler.get("_target_", "")).endswith(".GridSampler")
        name = settings.study_name or self.folder.name
        url = absolute_url(settings.storage) if settings.storage else default_url(self.folder)
        search = Search(
            address=Address(name, url, self.folder, tuple(self._directions())),
            space=space,
            sampler=None if grids else settings.sampler,
            pruner=settings.pruner,
            custom=settings.custom_search_space,
            conditional=tuple(settings.conditional),
            repeats=settings.repeats,
            seed_key=settings.seed_key,
            same_failures=settings.same_failures,
            failure_rate=settings.max_failure_rate,
            isolate=settings.isolate,
            heartbeat=settings.heartbeat,
            grace=settings.grace,
        )
        self._prunable(search)
        if not (space.searched or search.custom or search.conditional):
            raise ConfigError(
                "hydra.sweeper.params", "nothing is searched: give ranges, optimizer.lr=interval(…)"
            )
        return search, grid(space.searched) if grids else self._points(space)

    def _prunable(self, search: Search) -> None:
        target = str((search.pruner or {}).get("_target_", ""))
        if len(search.address.directions) > 1 and target and not target.endswith(".NopPruner"):
            problem = "several objectives can't be compared half-way: take hydra/sweeper/pruner=none"
            raise ConfigError("hydra/sweeper/pruner", problem, target.rpartition(".")[2])

    def _points(self, space: Space) -> list[dict[str, Any]]:
        """The experiment's own values, then those that were asked for."""
        points = [self._own(space)] if self.settings.start and space.searched else []
        return points + [self._known(space, point) for point in self.settings.enqueue]

    def _known(self, space: Space, point: Mapping[str, Any]) -> dict[str, Any]:
        """A point that was asked for, with what its choices bring by full names (`lora:optimizer.lr`).

        Raises:
            ConfigError: one of its keys isn't searched, or its value isn't one of the choices.
        """
        from whet.errors import nearest

        chosen = {key: value for key, value in point.items() if key in space.searched}
        config = self._compose([*space.fixed, *overrides_of(chosen)])
        known = {**conditional_space(config, self.settings.conditional), **space.searched}
        names = {key_of(name): name for name in known} | {name: name for name in known}
        found = {}
        for key, value in point.items():
            if key not in names:
                raise ConfigError("sweep.enqueue", f"isn't searched; {nearest(key, names)}", key)
            found[names[key]] = fit = _fit(known[names[key]], value)
            if fit is None:
                problem = f"{as_text(value)} isn't among what {key} is searched in"
                raise ConfigError("sweep.enqueue", problem, f"{key}={as_text(value)}")
        return found

    def _own(self, space: Space) -> dict[str, Any]:
        """What the config says of the parameters that are searched, where that lies in their ranges."""
        from omegaconf import OmegaConf

        config = self._compose(space.fixed)
        choices = {str(name): str(value) for name, value in config.hydra.runtime.choices.items()}
        found = {}
        for key, each in space.searched.items():
            name = key.lstrip("+")
            value = choices[name] if name in choices else OmegaConf.select(config, name)
            value = _fit(each, value)
            if _holds(each, value):
                found[key] = value
        return found

    # ------------------------------------------------------------ checks

    def _check(self, space: Space) -> None:
        """Compose a trial's config at every choice and at both ends of every range, before any trial runs.

        Raises:
            WhetError: one of them is no config, or the app can't run it.
        """
        first = {key: _ends(each)[0] for key, each in space.searched.items()}
        points = [first]
        for key, each in space.searched.items():
            points += [{**first, key: value} for value in _ends(each)[1:]]
        for point in points:
            config = self._compose([*space.fixed, *overrides_of(point)])
            self._check_conditional(config, space, point)
            if self.app is not None:
                self.app.check(config)

    def _check_conditional(self, config: DictConfig, space: Space, point: Mapping[str, Any]) -> None:
        """The same for the ranges that the point's choices bring."""
        own = conditional_space(config, self.settings.conditional)
        for place in (0, -1) if own else ():
            ends = {name: _ends(each)[place] for name, each in own.items()}
            inner = self._compose([*space.fixed, *overrides_of({**point, **ends})])
            if self.app is not None:
                self.app.check(inner)

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        return self.context.config_loader.load_sweep_config(self.config, list(overrides))

    def _not_anothers(self, study: Budgeted) -> None:
        """Refuse to write into folders that trials of another study have made."""
        if self.app is None or study.trials():  # other apps choose their folders as they like
            return
        if there := sorted(self.folder.glob("[0-9]*")):
            problem = (
                f"{there[0]} holds trials of a study that isn't in this storage; move them away, or choose"
            )
            raise ConfigError("hydra.sweeper.study_name", f"{problem} another name", study.address.name)

    # ------------------------------------------------------------ what the study is about

    def _directions(self) -> list[str]:
        told = self.settings.direction
        if AUTO not in told:
            return told
        if self.app is None:
            raise ConfigError(
                "hydra.sweeper.direction", "choices: maximize, minimize, or a list of them", AUTO
            )
        return self.app.directions(self.config)

    def _objectives(self) -> list[str]:
        if self.app is None:
            return [f"value {n}" for n in range(len(self._directions()))]
        return self.app.objectives(self.config)

    def _meaning(self, search: Search) -> dict[str, Any]:
        """What may not change while the study goes on; apps that don't say may change everything."""
        if self.app is None:
            return {}
        config = self._compose([*search.space.fixed])
        searched = {key.lstrip("+") for key in search.space.searched}
        kept = {
            key: value
            for key, value in self.app.meaning(config).items()
            if not any(key == name or key.startswith(f"{name}.") for name in searched)
        }
        ranges = {f"range of {key}": text for key, text in search.space.written.items()}
        return json.loads(json.dumps({**kept, **ranges, "repeats": search.repeats}, default=str))  # type: ignore[no-any-return]

    def _total(self, points: list[dict[str, Any]]) -> int:
        """Trials of the study: all points of a grid, else as many as were asked for."""
        grids = str(self.settings.sampler.get("_target_", "")).endswith(".GridSampler")
        return len(points) if grids else self.settings.n_trials

    def _record(self, search: Search, arguments: Sequence[str], total: int, **facts: Any) -> None:
        """`sweep.json`, for people and for `whet runs` and `whet report`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / FACTS
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        told = {
            "study": search.address.name,
            "storage": mask_text(search.address.url),
            "objectives": self._objectives(),
            "directions": list(search.address.directions),
            "space": dict(search.space.written),
            "fixed": [mask_text(item) for item in search.space.fixed],
            "overrides": [mask_text(item) for item in arguments],
            "n_trials": total,
            "repeats": search.repeats,
            "sampler": _short(self.settings.sampler),
            "pruner": _short(self.settings.pruner),
            "command": mask_text(f"{sys.argv[0]} {shlex.join(sys.argv[1:])}"),
            "pid": os.getpid(),
            "started": before.get("started") or _now(),
            **facts,
        }
        with aside(path) as beside:
            beside.write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")

    # ------------------------------------------------------------ work

    def _work(self, search: Search, study: Budgeted) -> None:
        """Let the peers work: in this process, in processes of their own, or as jobs of a launcher."""
        peer = Peer(search, self.context, self.config, self.task)
        jobs = max(1, self.settings.n_jobs)
        progress = Progress(study, self._objectives())
        if str(self.config.hydra.launcher.get("_target_")) != BASIC:
            self._launch(peer, jobs)
        elif jobs == 1:
            with progress.watched():
                peer.work(progress.tell)
        else:
            with progress.live():
                ended = run_peers([replace(peer, number=n) for n in range(jobs)], progress.tick)
            _raise_first([end for end in ended if end.kind != "done"])

    def _launch(self, peer: Peer, jobs: int) -> None:
        """Every peer is a job of Hydra's launcher."""
        from hydra.core.plugins import Plugins

        from whet.sweep.jobs import PeerJob

        launcher = Plugins.instance().instantiate_launcher(
            config=self.config, hydra_context=self.context, task_function=PeerJob(peer)
        )
        quiet = ["hydra.sweep.subdir=.peers/${hydra.job.num}", "hydra.output_subdir=null"]
        told = [[*peer.search.space.fixed, *quiet] for _ in range(jobs)]
        for done in launcher.launch(told, initial_job_idx=0):
            _ = done.return_value  # raises what the peer raised


def _raise_first(ended: list[Any]) -> None:
    for end in ended:
        if end.kind == "interrupted":
            raise Interrupted(end.exit_code - 128, end.told)
    if ended:
        raise FailuresError(ended[0].told) if "trials failed" in ended[0].told else WhetError(ended[0].told)


def _ends(each: BaseDistribution) -> list[Any]:
    """Every choice, or both ends of a range."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(each, CategoricalDistribution):
        return axis("", each)
    low, high = getattr(each, "low", None), getattr(each, "high", None)
    return [low] if low == high else [low, high]


def _fit(each: BaseDistribution | None, value: Any) -> Any:
    """A value in the form that the distribution gives."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(each, CategoricalDistribution):
        return next((choice for choice in each.choices if as_text(choice) == as_text(value)), None)
    if isinstance(each, FloatDistribution):
        try:
            return float(value)
        except (TypeError, ValueError):
            return None
    return value


def _holds(each: BaseDistribution, value: Any) -> bool:
    """Whether a value lies in a distribution."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(each, CategoricalDistribution):
        return value in each.choices
    kind = int if isinstance(each, IntDistribution) else float
    right = isinstance(value, kind) and not isinstance(value, bool)
    return right and getattr(each, "low", value) <= value <= getattr(each, "high", value)


def _short(node: Mapping[str, Any] | None) -> str:
    return "none" if node is None else str(node.get("_target_", "none")).rpartition(".")[2]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
