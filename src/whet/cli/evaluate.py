"""`whet evaluate`: test a finished run on a split or a labelled file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from whet.cli.app import launch, listen
from whet.config import build, to_plain
from whet.paths import Paths

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from whet.data.batch import Examples
    from whet.engine.load import Finished


def main(arguments: list[str]) -> int:
    """Evaluate one run."""
    for text in launch("evaluate", run, arguments):
        print(text)
    return 0


def run(composed: DictConfig) -> str:
    """The Hydra task."""
    listen()
    return str(build(to_plain(composed), evaluate)())


def evaluate(
    *,
    run: str,
    split: str = "test",
    input: str | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    paths: Paths,
) -> str:
    """Predictions, metrics and report of one split or file; returns the report's text.

    Raises:
        RunError: not a finished run.
        DataError: the data isn't there or doesn't fit the model.
    """
    from whet.engine.load import open_run, rows_of, split_of
    from whet.engine.run import find_run, new_folder, stamp

    finished = open_run(find_run(run), paths, device, precision)
    examples = rows_of(finished, input, paths) if input else split_of(finished, split, paths)
    folder = new_folder(finished.folder / "evaluations", f"{stamp()}-{Path(input).stem if input else split}")
    text = _report(finished, examples, folder)
    return f"{text}\n\nreport and predictions  {folder}"


def _report(finished: Finished, examples: Examples, folder: Path) -> str:
    judge = finished.judge(examples)
    predictions = judge.predict(finished.trained.model)
    predictions.save(folder / f"{examples.split}.npz")
    return judge.report(predictions, judge.metrics(predictions), folder).text()
