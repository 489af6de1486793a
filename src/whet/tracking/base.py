"""What a run tells the world: one small protocol, one file per sink."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config import Component, Node, flatten
from whet.secrets import mask

if TYPE_CHECKING:
    from whet.evaluation.predictions import Predictions


@dataclass(frozen=True)
class RunInfo:
    """What a sink may know of a run when it starts."""

    folder: Path
    """The run folder; a sink writes nowhere else."""
    name: str
    config: Mapping[str, Any]
    """Resolved config, secrets masked."""
    group: str | None = None
    """The sweep or multirun this run belongs to."""
    job_type: str = "train"
    tags: tuple[str, ...] = ()
    total_steps: int = 0
    """Optimizer updates planned (0: unknown); progress and ETA count against it."""
    resumed_after: int | None = None
    """Updates that were done when an interrupted run goes on; later lines of its logs are to be dropped."""
    logged: frozenset[str] = frozenset()
    """Names of the metrics that such a run logged before: its last evaluation isn't told twice."""
    directions: Mapping[str, str] = field(default_factory=dict)
    """Metric name → `maximize` or `minimize`, as the task declares it."""
    trial: Mapping[str, Any] | None = None
    """Of a sweep's run: study, number, repeat, params."""

    def settings(self) -> dict[str, Any]:
        """Leaves of config and trial by dotted key (`trial.params.optimizer.lr`), secrets masked."""
        trial = {} if self.trial is None else {"trial": self.trial}
        return dict(flatten(mask({**self.config, **trial})))


def shown_as(folder: Path, name: str | None, multirun: str | None, trial: Mapping[str, Any] | None) -> Node:
    """What trackers call a run: its `name`, `group` and `job_type`, as `RunInfo` has them.

    A trial belongs to its study and bears its name and number, since every trial has the config's `name`.

    Args:
        folder: of the run.
        name: what the config calls it.
        multirun: the multirun that it is a job of.
        trial: the trial that it belongs to.
    """
    if trial is None:
        return {"name": name or folder.name, "group": multirun, "job_type": "train"}
    place = f"{trial['study']}/{trial['number']:04d}"
    repeat = "" if place.endswith(f"/{folder.name}") else f"/{folder.name}"
    return {"name": place + repeat, "group": str(trial["study"]), "job_type": "trial"}


class Sink(Component, ABC):
    """Receives a run's numbers. Metric names carry their split: `train/loss`, `validation/accuracy`."""

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """Called once, before the first step."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers that belong to one optimizer update (`step` counts finished updates)."""

    @abstractmethod
    def report(
        self, predictions: Predictions, label_names: list[str] | None, metrics: Mapping[str, float]
    ) -> None:
        """Final predictions and metrics of one split (`predictions.split`)."""

    @abstractmethod
    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Called once: `finished`, `pruned`, `failed` or `interrupted`, with the run's final figures."""


@dataclass(kw_only=True)
class Tracking(Component):
    """All sinks of a run behind the face of one; with no sinks it is the null sink."""

    sinks: dict[str, Sink] = field(default_factory=dict)
    """By name, so that the command line can address one: `tracking.sinks.wandb.project=mine`."""
    log_every: int = 10
    """Training metrics are logged every so many updates (and at every evaluation)."""

    def start(self, run: RunInfo) -> None:
        for sink in self.sinks.values():
            sink.start(run)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for sink in self.sinks.values():
            sink.log(metrics, step)

    def report(
        self, predictions: Predictions, label_names: list[str] | None, metrics: Mapping[str, float]
    ) -> None:
        for sink in self.sinks.values():
            sink.report(predictions, label_names, metrics)

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        for sink in self.sinks.values():
            sink.finish(status, summary)
