"""`whet merge`: a finished run as an ordinary model directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from whet.cli.app import launch, listen
from whet.config import build, to_plain
from whet.paths import Paths
from whet.types import NonNegativeFloat

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(arguments: list[str]) -> int:
    """Merge one run."""
    for text in launch("merge", run, arguments):
        print(text)
    return 0


def run(composed: DictConfig) -> str:
    """The Hydra task."""
    listen()
    return str(build(to_plain(composed), merge)())


def merge(
    *, run: str, output: str, tolerance: NonNegativeFloat = 1e-4, device: str = "auto", paths: Paths
) -> str:
    """Fold the run's PEFT method into the weights, compare, write the model; returns the comparison.

    Raises:
        RunError: not a finished run, or the merged model says something else.
        ModelError: the method can't be folded.
        DataError: the output is there already, or the run's data isn't.
    """
    from whet.engine.load import open_run
    from whet.engine.merge import merge_run
    from whet.engine.run import find_run

    finished = open_run(find_run(run), paths, device, "fp32")
    return merge_run(finished, Path(output).expanduser(), tolerance, paths)
