"""A peer: it takes a trial, composes its config, runs it and tells what came out, until the study is done."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.errors import ConfigError, Interrupted, WhetError, one_line
from whet.pending import see_unanswered
from whet.secrets import mask_text
from whet.sweep.app import app_of
from whet.sweep.current import Current, working_on
from whet.sweep.space import Space, as_text, overrides_of, own_ranges, parse
from whet.sweep.space import distribution as distribution_of
from whet.sweep.study import Address, Beat, Budgeted, Watch

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger("whet.sweep")
APART = 7919
"""Between the seeds of two peers' samplers."""
POLL = 0.5
"""Seconds between two looks at what other peers do."""


class FailuresError(WhetError):
    """Too many trials failed for the same reason; the study keeps what there is."""


@dataclass(frozen=True)
class Search:
    """What all peers of a sweep know; goes to other processes."""

    address: Address
    space: Space
    sampler: dict[str, Any] | None
    """Node of the config; None: every point waits in the study already (a grid)."""
    pruner: dict[str, Any] | None
    custom: str | None = None
    """Dotted name of a function (config, trial) that suggests further parameters."""
    conditional: tuple[str, ...] = ()
    repeats: int = 1
    seed_key: str = "seed"
    same_failures: int = 3
    failure_rate: float | None = None
    """Share of failed trials above which the sweep ends."""
    isolate: bool = False
    heartbeat: float = 10.0
    grace: float = 60.0

    def open(self, peer: int = 0) -> Budgeted:
        """The study, with this peer's sampler."""
        study = Budgeted.open(self.address)
        study.sampler = sampler_of(self.sampler, peer, study.begun())
        study.pruner = made(self.pruner)
        return study


def sampler_of(node: dict[str, Any] | None, peer: int = 0, begun: int = 0) -> BaseSampler:
    """A sampler; with a seed, every peer has one of its own, and another one whenever the study goes on."""
    from optuna.samplers import RandomSampler

    if node is None:
        return RandomSampler()
    seed = node.get("seed")
    found: BaseSampler = made(node if seed is None else {**node, "seed": int(seed) + APART * peer + begun})
    return found


def made(node: dict[str, Any] | None) -> Any:
    """The object that a config node describes."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if node is None:
        return None
    given = {name: value for name, value in node.items() if value is not None or name == "wrapped_pruner"}
    for name in others_options(given):
        del given[name]
    try:
        return instantiate(given)
    except InstantiationException as error:
        cause = one_line(error.__cause__ or error)
        raise ConfigError("hydra.sweeper", f"can't be made: {cause}", node.get("_target_")) from None


def others_options(node: Mapping[str, Any]) -> set[str]:
    """Settings of a node that belong to another choice: a sweep file set them, the command line chose anew.

    What no choice knows isn't among them: it is a mistake, and making the object says so.
    """
    from hydra.utils import get_class

    from hydra_plugins.whet_plugin.optuna_sweeper import PRUNERS, SAMPLERS

    kinds = [PRUNERS, SAMPLERS]
    known = next((kind for kind in kinds if node["_target_"] in {n["_target_"] for n in kind.values()}), {})
    if not known:
        return set()
    own = set(inspect.signature(get_class(str(node["_target_"]))).parameters)
    return {name for each in known.values() for name in each if name in node and name[0] != "_"} - own


@dataclass
class Peer:
    """One worker on the study."""

    search: Search
    context: HydraContext
    config: DictConfig
    """Of the multirun."""
    task: TaskFunction
    number: int = 0
    beat: Beat = field(default_factory=Beat)

    def work(self, after: Callable[[], None] | None = None) -> None:
        """Take trials until the study has none that waits or runs.

        Args:
            after: called after each of them.

        Raises:
            FailuresError: too many failed for the same reason.
            Interrupted: a signal asked for the end; the trial at hand waits in the study.
        """
        self.beat = Beat()  # of the process that works
        study, watch = self.search.open(self.number), Watch(self.search.grace)
        study.revive(watch)
        while study.is_open():
            trial = study.take(self.beat)
            if trial is None:
                if not study.revive(watch):
                    time.sleep(POLL)
                continue
            self._try(study, trial)
            if after is not None:
                after()
            self._see_signals()
            self._see_failures(study)

    def _see_signals(self) -> None:
        """Stop if a signal came when the trial at hand was about to end by itself."""
        try:
            see_unanswered()
        except Interrupted as error:
            self._stopped(error)
            raise

    def _stopped(self, error: Interrupted) -> None:
        if (app := app_of(self.task)) is not None:
            app.stopped(error)

    def _try(self, study: Budgeted, trial: Trial) -> None:
        """One trial, whatever happens in it."""
        import optuna
        from optuna.trial import TrialState

        started = time.perf_counter()
        found = Current(
            trial, study.address.name, study.address.folder, {}, repeats=self.search.repeats,
            prunable=len(study.address.directions) == 1,
            told=frozenset(study.trials()[trial.number].intermediate_values),
        )  # fmt: skip
        try:
            with beating(study, trial.number, self.beat, self.search.heartbeat), working_on(found):
                values = self._run(study, found)
        except optuna.TrialPruned as pruned:
            self._note(found, started, reason=one_line(pruned))
            trial.study.tell(trial, state=TrialState.PRUNED)
        except Interrupted as error:
            study.give_back(trial.number)
            self._stopped(error)
            raise
        except Exception as error:  # noqa: BLE001  a trial that fails, in whatever way, doesn't end the others
            self._fail(found, error, started)
        except BaseException:
            study.give_back(trial.number)
            raise
        else:
            self._note(found, started)
            trial.study.tell(trial, values)

    def _run(self, study: Budgeted, found: Current) -> list[float]:
        """The trial's values: those of an equal one, or means over its repeats."""
        found.params = self._suggest(found.trial)
        twin = self._twin(study, found)
        if twin is not None:
            return reused(found.trial, twin)
        results = [self._repeat(found, repeat) for repeat in range(self.search.repeats)]
        means = [statistics.fmean(values) for values in zip(*results, strict=True)]
        if len(results) > 1:
            found.trial.set_user_attr("values", [values[0] for values in results])
            found.trial.set_user_attr("std", statistics.stdev(values[0] for values in results))
        return means

    def _repeat(self, found: Current, repeat: int) -> list[float]:
        """One run of the trial; raises what it raises."""
        import optuna

        found.repeat, found.seed = repeat, None
        config = self._compose(found)
        if found.repeats > 1:
            found.seed = int(config[self.search.seed_key]) + repeat
            config = self._compose(found)
        values = as_values(self._job(config, found), len(self.search.address.directions))
        if found.repeats > 1 and found.prunable:
            found.trial.report(values[0], repeat + 1)
            if repeat + 1 < found.repeats and found.trial.should_prune():
                raise optuna.TrialPruned(f"pruned after {repeat + 1} of {found.repeats} repeats")
        return values

    # ------------------------------------------------------------ parameters

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        for name, each in self.search.space.searched.items():
            suggest(trial, name, each)
        if self.search.conditional:
            config = self.compose(overrides_of(trial.params))
            for name, each in conditional_space(config, self.search.conditional).items():
                suggest(trial, name, each)
        if self.search.custom is not None:
            self._custom(trial)
        return dict(trial.params)

    def _custom(self, trial: Trial) -> None:
        """The user's own search space."""
        extend(str(self.search.custom))(self.config, trial)
        fixed = {item.partition("=")[0] for item in self.search.space.fixed}
        if both := sorted(fixed & set(trial.params)):
            raise ConfigError(both[0], "is given on the command line and by custom_search_space")

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config of a run with the sweep's fixed overrides and these."""
        # a name with the time or a choice in it would be another one in each trial
        place = str(self.search.address.folder).replace("'", "\\'")
        told = [*self.search.space.fixed, *overrides, f"hydra.sweep.dir='{place}'"]
        return self.context.config_loader.load_sweep_config(self.config, told)

    def _compose(self, found: Current) -> DictConfig:
        from omegaconf import open_dict

        seed = [] if found.seed is None else [f"{self.search.seed_key}={found.seed}"]
        config = self.compose([*overrides_of(found.params), *seed])
        with open_dict(config):
            config.hydra.job.id = found.number
            config.hydra.job.num = found.number
        return config

    def _job(self, config: DictConfig, found: Current) -> Any:
        """What the app returns; raises what it raises."""
        if self.search.isolate:
            from whet.sweep.process import call_apart

            return call_apart(self, config, found)
        return returned(self.job(config))

    def job(self, config: DictConfig) -> JobReturn:
        """Run the app's function on a trial's config, as Hydra's launchers do."""
        from hydra.core.utils import run_job

        return run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    # ------------------------------------------------------------ others' results

    def _twin(self, study: Budgeted, found: Current) -> FrozenTrial | None:
        """A trial with the same parameters that is done; an earlier one that runs is waited for."""
        from optuna.trial import TrialState

        watch = Watch(self.search.grace)
        while True:
            same = [
                trial
                for trial in study.trials()
                if trial.number != found.number and trial.params == found.params and trial.params
            ]
            done = [trial for trial in same if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
            if done:
                return done[0]
            running = [
                trial
                for trial in same
                if trial.state == TrialState.RUNNING
                and trial.number < found.number
                and not watch.is_dead(trial)
            ]
            if not running:
                return None
            time.sleep(POLL)

    # ------------------------------------------------------------ notes

    def _note(self, found: Current, started: float, **facts: Any) -> None:
        told = {"run": found.place, "seconds": round(time.perf_counter() - started, 3)}
        for name, value in {**told, **found.facts, **facts}.items():
            found.trial.set_user_attr(name, value)

    def _fail(self, found: Current, error: Exception, started: float) -> None:
        from optuna.trial import TrialState

        reason = mask_text(one_line(f"{type(error).__name__}: {error}"))
        log.warning("trial %d failed: %s", found.number, reason)
        folder = found.folder / found.place
        folder.mkdir(parents=True, exist_ok=True)
        told = mask_text("".join(traceback.format_exception(error)))
        (folder / "traceback.txt").write_text(told, encoding="utf-8")
        self._note(found, started, reason=reason)
        found.trial.study.tell(found.trial, state=TrialState.FAIL)

    def _see_failures(self, study: Budgeted) -> None:
        """End where going on makes no sense."""
        from optuna.trial import TrialState

        done = [trial for trial in study.trials() if trial.state.is_finished()]
        failed = [trial for trial in done if trial.state == TrialState.FAIL]
        rate = self.search.failure_rate
        if rate is not None and len(failed) > rate * len(done):
            raise FailuresError(f"{len(failed)} of {len(done)} trials failed: max_failure_rate={rate:g}")
        last = sorted(done, key=lambda trial: trial.datetime_complete or 0)[-self.search.same_failures :]
        reasons = {str(trial.user_attrs.get("reason")) for trial in last}
        alike = all(trial.state == TrialState.FAIL for trial in last) and len(reasons) == 1
        if alike and len(last) == self.search.same_failures:
            raise FailuresError(f"the last {len(last)} trials failed alike: {reasons.pop()}")


def returned(done: JobReturn) -> Any:
    """What the app returned; raises what it raised (Hydra's own property prints it, too)."""
    if isinstance(done._return_value, Exception):
        raise done._return_value
    return done._return_value


def reused(trial: Trial, twin: FrozenTrial) -> list[float]:
    """The values of an equal trial.

    Raises:
        optuna.TrialPruned: it was pruned.
    """
    import optuna
    from optuna.trial import TrialState

    trial.set_user_attr("reused_from", twin.number)
    for name in ("values", "std"):
        if name in twin.user_attrs:
            trial.set_user_attr(name, twin.user_attrs[name])
    for step, value in sorted(twin.intermediate_values.items()):
        trial.report(value, step)
    if twin.state == TrialState.PRUNED:
        raise optuna.TrialPruned(f"as trial {twin.number}, which has the same parameters")
    return list(twin.values)


def suggest(trial: Trial, name: str, each: BaseDistribution) -> Any:
    """A value of a distribution, by Optuna's public calls."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(each, FloatDistribution):
        return trial.suggest_float(name, each.low, each.high, step=each.step, log=each.log)
    if isinstance(each, IntDistribution):
        return trial.suggest_int(name, each.low, each.high, step=each.step, log=each.log)
    if isinstance(each, CategoricalDistribution):
        return trial.suggest_categorical(name, each.choices)
    raise ConfigError(name, "not a distribution that can be searched", each)


def conditional_space(config: DictConfig, groups: Sequence[str]) -> dict[str, BaseDistribution]:
    """Distributions that the choices in a composed config bring, by parameter name."""
    choices = {str(group): str(choice) for group, choice in config.hydra.runtime.choices.items()}
    return {
        name: distribution_of(parse([f"{key}={text}"])[0])
        for name, (key, text) in own_ranges(config, groups, choices).items()
    }


def extend(name: str) -> Any:
    """The function of a dotted name.

    Raises:
        ConfigError: there is none.
    """
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError, AttributeError) as error:
        problem = f"can't be found ({one_line(error)}); write package.module.function"
        raise ConfigError("hydra.sweeper.custom_search_space", problem, name) from None


def as_values(returned: Any, count: int) -> list[float]:
    """What the app returned, as one number for each objective.

    Raises:
        WhetError: it isn't.
    """
    values = list(returned) if isinstance(returned, (list, tuple)) else [returned]
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise WhetError(f"the app returned {as_text(returned)}, not a number to optimise") from None
    if len(numbers) != count:
        raise WhetError(f"the app returned {len(numbers)} values for {count} objectives (direction)")
    return numbers


@contextlib.contextmanager
def beating(study: Budgeted, number: int, beat: Beat, every: float) -> Iterator[None]:
    """Give signs of life of a trial while this lasts."""
    from whet.sweep.study import PEER

    done = threading.Event()
    place = study.place(number)

    def go_on() -> None:
        while not done.wait(every):
            try:
                study.storage.set_trial_user_attr(place, PEER, beat.next())
            except Exception as error:  # noqa: BLE001  whatever the storage raises, training goes on
                log.warning("no sign of life of trial %d could be given: %s", number, one_line(error))

    thread = threading.Thread(target=go_on, name="whet-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def place_of(folder: Path, trial: FrozenTrial) -> Path:
    """Folder of a trial's run."""
    return folder / str(trial.user_attrs.get("run", f"{trial.number:04d}"))


def best_of(study: Study) -> list[FrozenTrial]:
    """The best trial, or with several objectives those on the Pareto front; none before one is complete."""
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    return [study.best_trial] if len(study.directions) == 1 else list(study.best_trials)
