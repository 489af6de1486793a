"""Metrics as one JSON object a line: the record that every other tool can read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.storage import Appended, aside
from whet.tracking.base import RunInfo, Sink
from whet.tracking.figures import unseen

if TYPE_CHECKING:
    from whet.evaluation.predictions import Predictions

FILE = "metrics.jsonl"


@dataclass
class Lines:
    """A file of one JSON object a line.

    A run that goes on appends to it: lines of updates after its checkpoint are cut off, since they come
    again, and what was logged of the checkpoint's own update is not written twice.
    """

    path: Path
    _file: Appended | None = field(init=False, repr=False, default=None)
    _there: list[frozenset[str]] = field(init=False, repr=False, default_factory=list)
    """Names in the lines of `_step` that were there before."""
    _step: int = field(init=False, repr=False, default=-1)

    def open(self, resumed_after: int | None) -> list[dict[str, Any]]:
        """Start writing; returns the lines that are kept from before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)
        if resumed_after is not None:
            _drop_later(self.path, resumed_after)
            self._step = resumed_after
        kept = read_metrics(self.path) if self.path.is_file() else []
        self._there = [_names(line) for line in kept if line["step"] == self._step]
        self._file = Appended(self.path)
        return kept

    def write(self, metrics: Mapping[str, float], step: int) -> bool:
        """Append a line; whether there was any need to.

        Raises:
            RuntimeError: the file isn't open.
        """
        if self._file is None:
            raise RuntimeError("start() comes before log()")
        if step == self._step and frozenset(metrics) in self._there:
            return False
        line = {"step": step, "time": time.time()} | {name: _plain(value) for name, value in metrics.items()}
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        return True

    def close(self) -> None:
        """Nothing is written any more."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


@dataclass(kw_only=True)
class Jsonl(Sink):
    """Appends `{"step", "time", metric: value, …}` to `metrics.jsonl` and flushes each line.

    A resumed run appends to the same file. NaN and infinities, which JSON doesn't have, are the strings
    `"nan"`, `"inf"`, `"-inf"`.
    """

    _lines: Lines | None = field(init=False, repr=False, default=None)
    _seen: set[str] = field(init=False, repr=False, default_factory=set)
    _step: int = field(init=False, repr=False, default=0)

    def start(self, run: RunInfo) -> None:
        self._lines = Lines(run.folder / FILE)
        self._lines.open(run.resumed_after)
        self._seen, self._step = set(run.logged), run.resumed_after or 0

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
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _write(self, metrics: Mapping[str, float]) -> None:
        if self._lines is None:
            raise RuntimeError("start() comes before log()")
        self._lines.write(metrics, self._step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of a `metrics.jsonl`, `"nan"` and the infinities as floats; a torn last line is left out.

    Raises:
        ValueError: a line before the last isn't JSON.
    """
    *whole, _torn = path.read_text(encoding="utf-8").split("\n")
    return [{name: _number(value) for name, value in json.loads(line).items()} for line in whole if line]


def _drop_later(path: Path, step: int) -> None:
    """Forget what was logged after the checkpoint that the run goes on from: it will be written again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    with aside(path) as beside:
        beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _names(line: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(line) - {"step", "time"}


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
