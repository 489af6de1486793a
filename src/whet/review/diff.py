"""What sets runs apart: settings, results, versions and data."""

from __future__ import annotations

import json
import string
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.config import flatten
from whet.errors import RunError
from whet.review.facts import Facts, keys_of, number
from whet.review.layout import aligned, brief, cell
from whet.review.records import RunRecord

RESULTS = ("steps", "planned", "best.step", "timings.train_s", "timings.total_s", "memory.peak_mb")
"""Figures of `run.json` that are compared beside the metrics."""
AROUND = ("versions", "git", "hardware", "hashes", "processes", "precision")
"""Parts of `run.json` that tell what the run was made with."""
MINUS = "−"


@dataclass(frozen=True)
class Diff:
    """Differences among runs; a value that a run lacks is None."""

    runs: list[str]
    """Names, the one that the others are held against first."""
    config: dict[str, list[Any]] = field(default_factory=dict)
    """Config keys that differ → one value a run."""
    results: dict[str, list[Any]] = field(default_factory=dict)
    """Metrics and other figures, equal ones too → one value a run."""
    around: dict[str, list[Any]] = field(default_factory=dict)
    """Versions, git state, hardware and hashes that differ → one value a run."""

    def changes(self) -> dict[str, list[float | None]]:
        """Each result of the second and further runs minus that of the first; None where one lacks it."""
        return {key: [_minus(one, values[0]) for one in values[1:]] for key, values in self.results.items()}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "changes": self.changes()}

    def text(self, wide: int | None = None) -> str:
        """Aligned tables, runs as A, B, …"""
        letters = list(string.ascii_uppercase[: len(self.runs)])
        names = [f"{letter}  {name}" for letter, name in zip(letters, self.runs, strict=True)]
        changes = self.changes()
        rows = [
            {
                "figure": key,
                **{each: cell(key, value) for each, value in zip(letters, values, strict=True)},
                **{
                    f"{each} {MINUS} A": _change(key, one)
                    for each, one in zip(letters[1:], changes[key], strict=True)
                },
            }
            for key, values in self.results.items()
        ]
        figures = set(keys_of(rows)) - {"figure"}
        parts = [
            "\n".join(names),
            _titled("settings that differ", _rows("key", self.config, letters), wide) or "the same settings",
            _titled("results", rows, wide, figures),
            _titled("made with", _rows("what", self.around, letters), wide),
        ]
        return "\n\n".join(part for part in parts if part)


def diff(runs: Sequence[RunRecord]) -> Diff:
    """What sets runs apart.

    Raises:
        RunError: less than two runs, or more than letters.
    """
    if not 2 <= len(runs) <= len(string.ascii_uppercase):
        raise RunError("two runs or more are compared: whet runs diff A B")
    configs = [dict(flatten(run.config)) for run in runs]
    around = [dict(flatten({part: run.record.get(part) for part in AROUND})) for run in runs]
    results = [_results(run) for run in runs]
    return Diff(
        [run.name for run in runs],
        _unequal(configs),
        {key: [each.get(key) for each in results] for key in keys_of(results)},
        {key: values for key, values in _unequal(around).items() if _telling(key)},
    )


def _results(run: RunRecord) -> Facts:
    told = dict(flatten(run.record))
    metrics = run.record.get("metrics") or {}
    return {**metrics, **{key: told[key] for key in RESULTS if key in told}}


def _unequal(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Keys whose values differ, in the order of their first appearance."""
    rows = {
        key: [each.get(key) for each in found] for key in dict.fromkeys(key for each in found for key in each)
    }
    return {key: values for key, values in rows.items() if len({_text(value) for value in values}) > 1}


def _telling(key: str) -> bool:
    """The config's hash says nothing new, nor do those of what only a resume needs."""
    return key != "hashes.config" and not key.startswith(("hashes.final.training", "hashes.final.state"))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _minus(one: Any, other: Any) -> float | None:
    mine, first = number(one), number(other)
    return None if mine is None or first is None else mine - first


def _change(key: str, value: float | None) -> str:
    if value is None:
        return ""
    size = cell(key, abs(value))
    return f"{'+' if value > 0 else MINUS if value < 0 else ''}{size}"


def _rows(head: str, found: Mapping[str, Sequence[Any]], letters: Sequence[str]) -> list[Facts]:
    return [
        {head: key, **{each: brief(value) for each, value in zip(letters, values, strict=True)}}
        for key, values in found.items()
    ]


def _titled(title: str, rows: Sequence[Facts], wide: int | None, figures: set[str] | None = None) -> str:
    room = None if wide is None else wide - 2
    table = aligned(rows, keys_of(rows), room, figures or ())
    return f"{title}\n{textwrap.indent(table, '  ')}" if rows else ""
