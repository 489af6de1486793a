"""What `whet train` says to a sweep, and a sweep's trial as a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config import Node, build, flatten, to_plain
from whet.errors import ConfigError, Interrupted, PrunedError, RunError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from whet.engine.train import Parts
    from whet.engine.trial import Trial
    from whet.sweep.current import Current

COSTS = {
    "seconds": ("timings", "train_s"),
    "trained_parameters": ("trainable", "trained_parameters"),
    "peak_mb": ("memory", "peak_mb"),
}
"""Objectives that a run's record holds beside its metrics; less is better."""
PRIMARY = "primary"


class Face:
    """`whet.sweep.search.App` for `whet train`."""

    def check(self, config: DictConfig) -> None:
        """Raise a WhetError if a trial can't run with this config."""
        _parts(to_plain(config))

    def objectives(self, config: DictConfig) -> list[str]:
        """Names of what is optimised."""
        return objectives(_parts(to_plain(config)))

    def directions(self, config: DictConfig) -> list[str]:
        """The task's own for metrics; costs are minimised."""
        parts = _parts(to_plain(config))
        known = _metrics(parts)
        return [known.get(name, "minimize") for name in objectives(parts)]

    def meaning(self, config: DictConfig) -> dict[str, Any]:
        """Everything that changes a number, and what the sweep makes of it."""
        from whet.engine.continuing import meaning

        plain = to_plain(config)
        kept = ("objective", "start", "conditional")
        told = {f"sweep.{name}": plain["sweep"][name] for name in kept}
        return {**dict(flatten(meaning(plain))), **told}

    def stopped(self, error: Interrupted) -> None:
        """A signal has stopped a trial, which waits in the study: a scheduler's job may be requeued."""
        from whet.engine.signals import hand_on

        hand_on(error.exit_code - 128)

    def finish(self, config: DictConfig, best: list[Path]) -> str:
        """Test the best run's model, unless the sweep isn't to."""
        plain = to_plain(config)
        told = [f"\nbest run        {folder}" for folder in best]
        if plain["sweep"]["test"] and len(best) == 1:
            told += [tested(run, plain) for run in runs_in(best[0])]
        return "\n".join(told)


SWEEP = Face()


def _parts(config: Node) -> Parts:
    from whet.engine.train import Parts

    parts: Parts = build(config, Parts)()
    return parts


def _metrics(parts: Parts) -> dict[str, str]:
    return {f"validation/{name}": way for name, way in parts.task.directions().items()}


def objectives(parts: Parts) -> list[str]:
    """What a sweep of this experiment optimises.

    Raises:
        ConfigError: no such metric or cost.
    """
    given = parts.sweep.objective or [PRIMARY]
    own = f"validation/{parts.task.primary}"
    found = [own if name == PRIMARY else name for name in given]
    known = [*_metrics(parts), *COSTS]
    for name in found:
        if name not in known:
            raise ConfigError("sweep.objective", f"not a choice; {nearest(name, [PRIMARY, *known])}", name)
    return found


def told_half_way(parts: Parts) -> str | None:
    """The metric of the first objective; None where that is a cost."""
    first = objectives(parts)[0]
    return None if first in COSTS else first.removeprefix("validation/")


def values(record: Node, names: list[str]) -> list[float]:
    """The objectives of a finished run, from its record."""
    found = []
    for name in names:
        if name in COSTS:
            part, key = COSTS[name]
            found.append(float(record[part][key]))
        else:
            found.append(float(record["metrics"][name]))
    return found


def runs_in(place: Path) -> list[Path]:
    """A trial's run, or those of its repeats."""
    if (place / "run.json").is_file():
        return [place]
    return sorted(path.parent for path in place.glob("*/run.json"))


def tested(run: Path, config: Node) -> str:
    """Test a trial's model and write its report, once; returns the report."""
    from whet.engine.load import open_run, split_of
    from whet.engine.run import Run, read_record
    from whet.paths import Paths

    record = read_record(run)
    if any(name.startswith("test/") for name in record.get("metrics", {})):
        return (run / "report" / "test.md").read_text(encoding="utf-8")
    paths = Paths(**{name: value for name, value in config["paths"].items() if not name.startswith("_")})
    finished = open_run(run, paths, config["engine"]["device"])
    judge = finished.judge(split_of(finished, "test", paths))
    predictions = judge.predict(finished.trained.model)
    predictions.save(run / "predictions" / "test.npz")
    metrics = judge.metrics(predictions)
    report = judge.report(predictions, metrics, run / "report", finished.engine.pictures)
    Run(run, record).update(metrics={f"test/{name}": value for name, value in metrics.items()})
    return report.text()


# ---------------------------------------------------------------- one trial


Begin = Callable[["Trial", Path], None]
"""Trains in a folder; raises what it raises."""


def run_trial(current: Current, parts_of: Callable[[], Parts], begin: Begin) -> float | list[float]:
    """One run of a sweep's trial; what it comes to.

    Args:
        current: the trial.
        parts_of: of its config.
        begin: starts the run, or goes on with that of an earlier peer.

    Raises:
        optuna.TrialPruned: the pruner ended it.
    """
    import optuna

    from whet.engine.run import read_record
    from whet.engine.trial import Trial

    folder = current.folder / current.place
    facts = {
        "study": current.study,
        "number": current.number,
        "repeat": current.repeat,
        "params": current.params,
    }
    try:
        if status(folder) != "finished":
            begin(Trial(facts, told_half_way(parts_of()), current.report), folder)
    except PrunedError as pruned:
        raise optuna.TrialPruned(str(pruned)) from None
    finally:
        _count(current, folder)
    found = values(read_record(folder), objectives(parts_of()))
    return found[0] if len(found) == 1 else found


def status(folder: Path) -> str | None:
    """How far the run in a folder has come; None where there is none."""
    from whet.engine.run import read_record

    return str(read_record(folder)["status"]) if (folder / "run.json").is_file() else None


def _count(current: Current, folder: Path) -> None:
    """Add the run's updates to the trial's."""
    from whet.engine.run import read_record

    if status(folder) is None:
        return
    record = read_record(folder)
    for name, key in (("steps", "steps"), ("planned", "planned")):
        if key in record:
            current.facts[name] = current.facts.get(name, 0) + record[key]


def not_alive(folder: Path) -> None:
    """Refuse a run that another process works on.

    Raises:
        RunError: one does.
    """
    from whet.engine.continuing import is_alive
    from whet.engine.run import read_record

    if status(folder) is not None and is_alive(record := read_record(folder)):
        raise RunError(f"{folder}: the run is still running (process {record['pid']})")
