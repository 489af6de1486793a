"""`whet evaluate`: test a finished run, or several as one ensemble, on a split or a labelled file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from whet.cli.app import launch, listen
from whet.config import build, to_plain
from whet.errors import ConfigError
from whet.paths import Paths

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from whet.data.batch import Examples
    from whet.engine.evaluate import Evaluator
    from whet.engine.load import Finished
    from whet.evaluation.predictions import Predictions


def main(arguments: list[str]) -> int:
    """Evaluate once."""
    for text in launch("evaluate", run, [_listed(item) for item in arguments]):
        print(text)
    return 0


def _listed(argument: str) -> str:
    """`run=A,B` as Hydra's `run=[A,B]`: here it is never a sweep."""
    key, _, value = argument.partition("=")
    plain = key == "run" and "," in value and value[0] not in "['\""
    return f"run=[{value}]" if plain else argument


def run(composed: DictConfig) -> str:
    """The Hydra task."""
    listen()
    return str(build(to_plain(composed), evaluate)())


def evaluate(
    *,
    run: str | list[str],
    split: str = "test",
    input: str | None = None,
    average: Literal["probability", "logit"] = "probability",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    paths: Paths,
) -> str:
    """Predictions, metrics and report of one split or file; returns the report's text.

    Several runs are one ensemble: `average` says what of theirs is averaged.

    Raises:
        RunError: not a finished run, or runs that don't judge the same rows.
        DataError: the data isn't there or doesn't fit the model.
    """
    from whet.engine.load import open_run
    from whet.engine.run import find_run, new_folder, stamp
    from whet.evaluation.ensemble import combine

    folders = [find_run(item) for item in ([run] if isinstance(run, str) else run)]
    if not folders:
        raise ConfigError("run", "name a run folder, or several", run)
    name = f"{stamp()}-{Path(input).stem if input else split}"
    finished = open_run(folders[0], paths, device, precision)
    examples = _rows(finished, split, input, paths)
    if len(folders) == 1:
        folder = new_folder(finished.folder / "evaluations", name)
        judge = finished.judge(examples)
        text = _report(judge, judge.predict(finished.trained.model), folder)
        return f"{text}\n\nreport and predictions  {folder}"
    found = {str(folders[0]): _said(finished, examples)}
    for place in folders[1:]:
        other = open_run(place, paths, device, precision)
        found[str(place)] = _said(other, _rows(other, split, input, paths))
    both = combine(list(found.values()), list(found), finished.trained.task.kind, average)
    folder = new_folder(paths.outputs() / "ensembles", name)
    text = _ensemble(finished.judge(examples), found, both, average, folder)
    return f"{text}\n\nreport and predictions  {folder}"


def _rows(finished: Finished, split: str, input: str | None, paths: Paths) -> Examples:
    from whet.engine.load import rows_of, split_of

    return rows_of(finished, input, paths) if input else split_of(finished, split, paths)


def _said(finished: Finished, examples: Examples) -> Predictions:
    return finished.judge(examples).predict(finished.trained.model)


def _report(judge: Evaluator, predictions: Predictions, folder: Path) -> str:
    predictions.save(folder / f"{predictions.split}.npz")
    return judge.report(predictions, judge.metrics(predictions), folder).text()


def _ensemble(
    judge: Evaluator, found: dict[str, Predictions], both: Predictions, average: str, folder: Path
) -> str:
    """Report of the ensemble, and how each of its members fares alone."""
    from whet.storage import aside

    alone = {name: judge.metrics(predictions) for name, predictions in found.items()}
    facts = {"average": average, "members": alone, "ensemble": judge.metrics(both)}
    with aside(folder / "ensemble.json") as beside:
        beside.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    primary = str(judge.task.primary)
    lines = [f"  {metrics[primary]:.4f}  {name}" for name, metrics in alone.items()]
    return "\n".join([f"{primary} of each run alone:", *lines, "", _report(judge, both, folder)])
