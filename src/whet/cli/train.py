"""`whet train`: the single train entrypoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.cli.app import hush, launch, listen, overrides
from whet.cli.sweeping import SWEEP
from whet.config import Node, build, to_plain
from whet.engine.distributed import World, current
from whet.errors import Interrupted, WhetError, one_line
from whet.sweep.current import Current
from whet.sweep.current import current as current_trial

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from whet.engine.continuing import Job
    from whet.engine.train import Outcome, Parts
    from whet.engine.trial import Trial

__all__ = ["SWEEP", "main", "run"]  # a sweep finds SWEEP beside the function that it calls


def main(arguments: list[str]) -> int:
    """Run one training, or a multirun; returns the exit code."""
    from whet.cli.multirun import closing

    with closing() as summary:
        for outcome in launch("train", run, arguments):
            if outcome is not None:  # of several processes the first one has it
                print(outcome.text)
                print(where(outcome))
    return summary.exit_code


def run(composed: DictConfig) -> Any:
    """One training run from a composed config: the Hydra task.

    Returns:
        The outcome (None where another process has it); in a multirun only the validation metric, which
        sweepers read.
    """
    from whet.engine.continuing import STARTING, recorded
    from whet.pending import see_unanswered

    listen()
    world, job = current(), _job()
    config = world.told(lambda: to_plain(composed))
    if (trial := current_trial()) is not None:
        return _run_trial(config, trial, world)
    try:
        see_unanswered()
    except Interrupted as error:
        _stopped(error)
        raise
    earlier, status = world.told(lambda: _earlier(config, job))
    if earlier is not None and status == "finished":
        outcome = recorded(earlier)
        return outcome if job is None else outcome.primary
    folder = earlier or _place(config, job)
    try:
        if folder is None or status == STARTING:
            done = _train(config, folder, job, world)
        else:
            done = _go_on(config, folder, job, world)
    except WhetError as error:
        if job is not None and folder is not None:
            _record_failure(folder, config, error)
        if isinstance(error, Interrupted):
            _stopped(error)
        raise
    return done if job is None or done is None else done.primary


def _stopped(error: Interrupted) -> None:
    """A signal ends this job: submitit may answer it, and no other job of the multirun begins."""
    from whet.cli.multirun import end_multirun
    from whet.engine.signals import hand_on

    hand_on(error.exit_code - 128)
    end_multirun(error)


def _run_trial(config: Node, trial: Current, world: World) -> float | list[float]:
    """One run of a sweep's trial, or what is missing of it."""
    from whet.cli.sweeping import not_alive, run_trial, status
    from whet.engine.continuing import STARTING, claim
    from whet.engine.warm import keeping_on

    def begin(asked: Trial, folder: Path) -> None:
        job = _job()
        not_alive(folder)
        if status(folder) in (None, STARTING):
            folder.mkdir(parents=True, exist_ok=True)
            claim(folder, config, overrides())
            with _noting_failure(folder, config, asked):
                _train(config, folder, job, world, asked)
        else:
            _go_on(config, folder, job, world, asked)

    hush()
    keeping_on()
    return run_trial(trial, lambda: _parts(config, world), begin)


@contextlib.contextmanager
def _noting_failure(folder: Path, config: Node, asked: Trial) -> Iterator[None]:
    """A trial that fails before it has a run leaves its reason in its folder."""
    from whet.engine.continuing import STARTING
    from whet.engine.run import Run, failed_before_start, read_record

    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if read_record(folder)["status"] == STARTING:
            failed_before_start(folder, config, overrides(), error)
            Run(folder, read_record(folder)).update(trial=asked.facts)
        raise


def _earlier(config: Node, job: Job | None) -> tuple[Path | None, str]:
    """The folder to go on with, if there is one, and how far its run came."""
    from whet.engine.continuing import STARTING, found
    from whet.engine.run import read_record

    folder = found(config, job)
    return folder, STARTING if folder is None else str(read_record(folder)["status"])


def _train(
    config: Node, folder: Path | None, job: Job | None, world: World, trial: Trial | None = None
) -> Outcome | None:
    from whet.engine.continuing import begin
    from whet.engine.run import Run, new_folder
    from whet.engine.train import execute, get_ready, run_name

    parts = _parts(config, world)
    ready = get_ready(parts)
    name = run_name(parts, config)
    place = world.told(lambda: folder or new_folder(parts.paths.outputs() / "runs", name))
    size = world.ranks.size
    run = begin(place, config, overrides(), size) if world.first else Run(place, writes=False)
    return execute(parts, ready, run, config, _group(job), trial=trial)


def _go_on(
    config: Node, folder: Path, job: Job | None, world: World, trial: Trial | None = None
) -> Outcome | None:
    """Complete the run of a folder."""
    from whet.engine.continuing import saved_config
    from whet.engine.run import Run
    from whet.engine.train import execute, get_ready

    told = world.told(lambda: saved_config(folder, config, overrides()))
    parts = _parts(told, world)
    ready = get_ready(parts)
    exact, size = parts.engine.deterministic, world.ranks.size
    run = Run.reopen(folder, exact, size) if world.first else Run(folder, writes=False)
    return execute(parts, ready, run, told, _group(job), resume=True, trial=trial)


def _parts(config: Node, world: World) -> Parts:
    """The parts of the experiment; where another process tells the trackers, they are left out."""
    from whet.engine.train import Parts
    from whet.tracking.base import Tracking

    parts: Parts = build(config, Parts)()
    if not world.first:
        parts.tracking = Tracking(log_every=parts.tracking.log_every)
    if current_trial() is not None:
        parts.tracking.sinks.pop("console", None)  # the sweep tells of its trials
    return parts


def _job() -> Job | None:
    """Which job of a multirun this is; None for a single run."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from whet.engine.continuing import Job

    state = HydraConfig.get()
    return Job(Path(state.sweep.dir), int(state.job.num)) if state.mode == RunMode.MULTIRUN else None


def _group(job: Job | None) -> str | None:
    """What the trackers show together."""
    return None if job is None else job.sweep.name


def _place(config: Node, job: Job | None) -> Path | None:
    """The job's own folder in a multirun; a single run gets its folder once its parts are checked."""
    from whet.engine.continuing import claim
    from whet.engine.run import new_folder

    if job is None:
        return None
    folder = new_folder(job.sweep, job.name)
    claim(folder, config, overrides())
    return folder


def _record_failure(folder: Path, config: Node, error: WhetError) -> None:
    """A multirun's job that failed leaves its reason and doesn't end the others."""
    import sys

    from whet.engine.continuing import STARTING
    from whet.engine.run import failed_before_start, read_record

    if read_record(folder)["status"] == STARTING:
        failed_before_start(folder, config, overrides(), error)
    print(f"whet: {folder.name}: {one_line(error)}", file=sys.stderr)


def where(outcome: Any) -> str:
    """Where everything is, and what to do next."""
    folder = outcome.folder
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    tensorboard = (
        f"  dashboard     tensorboard --logdir {shown}\n" if (folder / "tensorboard").is_dir() else ""
    )
    return (
        f"\nrun folder      {shown}\n"
        f"  model         {shown}/model\n"
        f"  test report   {shown}/report/test.md  (confusion matrix and learning curves as PNG beside it)\n"
        f"  predictions   {shown}/predictions/test.npz\n"
        f"  all figures   {shown}/run.json, {shown}/metrics.jsonl\n"
        f"{tensorboard}"
        f"try it          echo 'a text' | whet predict run={shown} input=-"
    )
