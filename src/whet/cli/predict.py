"""`whet predict`: label texts with a finished run."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from whet.cli.app import launch, listen
from whet.config import build, to_plain
from whet.errors import DataError
from whet.paths import Paths
from whet.storage import aside
from whet.types import PositiveInt

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from whet.data.rows import Row
    from whet.engine.load import Finished

CHUNK = 4096
"""Rows read, labelled and written at a time."""


def main(arguments: list[str]) -> int:
    """Predict once."""
    launch("predict", run, arguments)
    return 0


def run(composed: DictConfig) -> None:
    """The Hydra task."""
    listen()
    build(to_plain(composed), predict)()


def predict(
    *,
    run: str,
    input: str = "-",
    output: str = "-",
    text: str | list[str] | None = None,
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet", "txt"] = "auto",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    batch: PositiveInt = 128,
    paths: Paths,
) -> None:
    """One JSON line a row: its number, id if the task has one, text, and label with probabilities (or value).

    Raises:
        RunError: not a finished run.
        DataError: input missing, malformed, or without the text column.
    """
    from whet.data.rows import chunks, read_rows
    from whet.engine.load import open_run
    from whet.engine.run import find_run

    finished = open_run(find_run(run), paths, device, precision)
    finished.engine.batching.size, finished.engine.batching.evaluation_factor = batch, 1
    task = finished.trained.task
    columns = [text] if isinstance(text, str) else text or task.columns
    if len(columns) != len(task.columns):
        raise DataError("text", f"the model reads {len(task.columns)} column(s)", columns)
    rows = read_rows(input, columns, task.id, format, paths)
    with _opened(output) as file:
        for chunk in chunks(rows, CHUNK):
            _write(file, finished, chunk)


def _write(file: IO[str], finished: Finished, rows: list[Row]) -> None:
    task, names = finished.trained.task, finished.trained.label_names
    logits = finished.logits([row.texts for row in rows], "predicting")
    for row, told in zip(rows, task.describe(task.probabilities(logits), names), strict=True):
        known: dict[str, Any] = {"row": row.number, **({"id": row.id} if row.id is not None else {})}
        shown = row.texts[0] if len(row.texts) == 1 else list(row.texts)
        file.write(json.dumps({**known, "text": shown, **told}, ensure_ascii=False) + "\n")
    file.flush()


@contextlib.contextmanager
def _opened(output: str) -> Iterator[IO[str]]:
    """Standard output, or a file that appears whole or not at all."""
    if output == "-":
        yield sys.stdout
        return
    path = Path(output).expanduser()
    if not path.parent.is_dir():
        raise DataError("output", f"no such folder: {path.parent}", output)
    with aside(path) as beside, beside.open("w", encoding="utf-8") as file:
        yield file
