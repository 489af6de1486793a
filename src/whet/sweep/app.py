"""What a sweep may ask of the app whose function it calls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from hydra.types import TaskFunction
    from omegaconf import DictConfig

    from whet.errors import Interrupted


class App(Protocol):
    """What a sweep may ask of an app: an object `SWEEP` in the module of its function, if there is one."""

    def check(self, config: DictConfig) -> None:
        """Raise a WhetError if a trial can't run with this config."""

    def objectives(self, config: DictConfig) -> list[str]:
        """Names of what its function returns in a sweep."""

    def directions(self, config: DictConfig) -> list[str]:
        """`maximize` or `minimize` for each."""

    def meaning(self, config: DictConfig) -> dict[str, Any]:
        """What of a config may not change while a study goes on, by key."""

    def stopped(self, error: Interrupted) -> None:
        """A signal has stopped a trial; it waits in the study."""

    def finish(self, config: DictConfig, best: list[Path]) -> str:
        """The sweep is over: deal with the runs of the best trials; returns what to tell."""


def app_of(task: TaskFunction) -> App | None:
    """What the app of a function says about sweeps."""
    return getattr(sys.modules.get(str(getattr(task, "__module__", ""))), "SWEEP", None)
