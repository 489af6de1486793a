"""Metrics as one JSON object a line: the record that every other tool can read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from whet.storage import aside
from whet.tracking.base import RunInfo, Sink
from whet.tracking.figures import unseen

if TYPE_CHECKING:
    from whet.evaluation.predictions import Predictions

FILE = "metrics.jsonl"


@dataclass(kw_only=True)
class Jsonl(Sink):
    """Appends `{"step", "time", metric: value, …}` to `metrics.jsonl` and flushes each line.

    A resumed run appends to the same file. NaN and infinities, which JSON doesn't have, are the strings
    `"nan"`, `"inf"`, `"-inf"`.
    """

    _stream: IO[str] | None = field(init=False, repr=False, default=None)
    _seen: set[str] = field(init=False, repr=False, default_factory=set)
    _step: int = field(init=False, repr=False, default=0)

    def start(self, run: RunInfo) -> None:
        path = run.folder / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        if run.resumed_after is not None:
            _drop_later(path, run.resumed_after)
        self._seen, self._step = set(run.logged), run.resumed_after or 0
        self._stream = path.open("a", encoding="utf-8")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._seen.update(metrics)
        self._step = step
        self._write(metrics)

    def report(
        self, predictions: Predictions, label_names: list[str] | None, metrics: Mapping[str, float]
    ) -> None:
        if new := unseen(metrics, predictions.split, self._seen):
            self._write(new)

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _write(self, metrics: Mapping[str, float]) -> None:
        if self._stream is None:
            raise RuntimeError("start() comes before log()")
        line = {"step": self._step, "time": time.time()} | {
            name: _plain(value) for name, value in metrics.items()
        }
        self._stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._stream.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of a `metrics.jsonl`, `"nan"` and the infinities as floats; a torn last line is left out.

    Raises:
        ValueError: a line before the last isn't JSON.
    """
    *whole, _torn = path.read_text(encoding="utf-8").split("\n")
    return [{name: _number(value) for name, value in json.loads(line).items()} for line in whole if line]


def _drop_later(path: Path, step: int) -> None:
    """Forget what was logged after the checkpoint that the run goes on from, and a final report that was cut
    short: they will be written again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= step and '"test/' not in line]
    with aside(path) as beside:
        beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _plain(value: float) -> int | float | str:
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed run left of its last line."""
    if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)
