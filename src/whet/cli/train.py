"""`whet train`: the single train entrypoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.cli.app import launch, listen, overrides
from whet.config import Node, build, to_plain
from whet.errors import ConfigError, WhetError, one_line

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(arguments: list[str]) -> int:
    """Run one training, or a multirun; returns the exit code."""
    from whet.cli.multirun import closing

    with closing() as summary:
        for outcome in launch("train", run, arguments):
            print(outcome.text)
            print(where(outcome))
    return summary.exit_code


def run(composed: DictConfig) -> Any:
    """One training run from a composed config: the Hydra task.

    Returns:
        The outcome; in a multirun only the validation metric, which sweepers read.
    """
    listen()
    config = to_plain(composed)
    resumed = _resume(config)
    if resumed is not None:
        return resumed
    folder, group = _place()
    try:
        return _train(config, folder, group)
    except WhetError as error:
        if folder is not None:
            _record_failure(folder, config, error)
        raise


def _train(config: Node, folder: Path | None, group: str | None) -> Any:
    from whet.engine.run import Run, new_folder
    from whet.engine.train import Parts, execute, get_ready, run_name

    parts = build(config, Parts)()
    ready = get_ready(parts)
    place = folder or new_folder(parts.paths.outputs() / "runs", run_name(parts, config))
    outcome = execute(parts, ready, Run.create(place, config, overrides()), config, group)
    return outcome if folder is None else outcome.primary


def _resume(config: Node) -> Any:
    """Go on with the run that `resume` names; None where it names none.

    Raises:
        ConfigError: in a multirun.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from whet.engine.continuing import found, saved_config
    from whet.engine.run import Run
    from whet.engine.train import Parts, execute, get_ready

    if config["resume"] is not None and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError("resume", "one run at a time: leave out -m", config["resume"])
    folder = found(config)
    if folder is None:
        return None
    told = saved_config(folder, config, overrides())
    parts = build(told, Parts)()
    ready = get_ready(parts)
    run = Run.reopen(folder, exact=parts.engine.deterministic)
    return execute(parts, ready, run, told, resume=True)


def _place() -> tuple[Path | None, str | None]:
    """The job's own folder in a multirun; a single run gets its folder once its parts are checked."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from whet.engine.run import new_folder

    state = HydraConfig.get()
    if state.mode != RunMode.MULTIRUN:
        return None, None
    sweep = Path(state.sweep.dir)
    return new_folder(sweep, f"{state.job.num:04d}"), sweep.name


def _record_failure(folder: Path, config: Node, error: WhetError) -> None:
    """A multirun's job that failed leaves its reason and doesn't end the others."""
    import sys

    from whet.engine.run import failed_before_start

    if not (folder / "run.json").is_file():
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
