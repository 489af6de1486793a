"""Rows of facts, sorted, grouped and averaged."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from whet.config import GROUPS
from whet.engine.run import BYSTANDERS
from whet.errors import ConfigError
from whet.review.facts import STATES, Facts, check_keys, keys_of, number

RUN_COLUMNS = ("name", "status", "task", "model", "peft", "seed")
SWEEP_COLUMNS = ("name", "status", "trials", *STATES, "objectives", "best", "age")
APART = ("task", "metric")
"""Figures of runs that differ here are never averaged."""
DIFFERING = 6
"""Keys that a warning lists."""


def default_columns(rows: Sequence[Facts]) -> list[str]:
    """What a table of runs shows: the primary metric by its name where they have but one."""
    return [*RUN_COLUMNS, *metric_columns(rows), "age"]


def metric_columns(rows: Sequence[Facts]) -> list[str]:
    """Primary metric on validation and test, time of training."""
    metrics = {row["metric"] for row in rows if row.get("metric")}
    if len(metrics) != 1:
        return [*(["metric"] if metrics else []), "validation", "test", "time"]
    (metric,) = metrics
    return [f"validation/{metric}", f"test/{metric}", "time"]


def pick(rows: Sequence[Facts], columns: Sequence[str]) -> list[Facts]:
    """These columns of every row; None where it lacks one."""
    return [{key: row.get(key) for key in columns} for row in rows]


def arrange(rows: Sequence[Facts], sort: Sequence[str], limit: int | None = None) -> list[Facts]:
    """Sorted by several keys, the first one counts most.

    Args:
        rows: to be sorted; their order decides ties.
        sort: keys; `-key` puts the largest first. Rows without a value (or with NaN) come last.
        limit: rows kept.

    Raises:
        ConfigError: a key that no row has.
    """
    check_keys("sort", [key.removeprefix("-") for key in sort], rows)
    found = list(rows)
    for key in reversed(sort):
        name = key.removeprefix("-")
        there = [(rank, row) for row in found if (rank := _rank(row.get(name))) is not None]
        gone = [row for row in found if _rank(row.get(name)) is None]
        there.sort(key=lambda item: item[0], reverse=key.startswith("-"))
        found = [*(row for _, row in there), *gone]
    return found[:limit]


def _rank(value: Any) -> tuple[int, float, str] | None:
    """Numbers by size, before texts by letters; None for what is missing."""
    size = number(value)
    if size is not None:
        return 0, size, ""
    if value is None or isinstance(value, float):
        return None
    return 1, 0.0, value if isinstance(value, str) else json.dumps(value, default=str)


# ---------------------------------------------------------------- groups


@dataclass(frozen=True)
class Mean:
    """One figure over the runs of a group."""

    n: int
    """Runs that have it."""
    mean: float | None
    std: float | None
    """Over n - 1; None with less than two."""


@dataclass(frozen=True)
class Group:
    """Runs that agree in what they were grouped by."""

    keys: Facts
    runs: list[Facts]
    means: dict[str, Mean]

    def flat(self) -> Facts:
        """One row: keys, `runs`, and of each figure the mean under its name, `.std` and `.n`."""
        figures: Facts = {}
        for name, one in self.means.items():
            figures |= {name: one.mean, f"{name}.std": one.std, f"{name}.n": one.n}
        return {**self.keys, "runs": len(self.runs), **figures}


def group(rows: Sequence[Facts], by: Sequence[str], columns: Sequence[str] | None = None) -> list[Group]:
    """One group for every combination of values, in the order of their first runs.

    Runs of different tasks or primary metrics are never averaged: where they differ, `task` and `metric` are
    grouped by, too.

    Args:
        rows: runs.
        by: keys; a missing value is a value, too.
        columns: figures to average; by default the primary metric and the time of training.

    Raises:
        ConfigError: a key that no run has, or a column that isn't a number.
    """
    check_keys("group", by, rows)
    rows = _with_metric(rows)
    apart = [key for key in APART if key not in by and len({row.get(key) for row in rows}) > 1]
    keys = [*apart, *by]
    check_keys("columns", columns or (), rows)
    there = set(keys_of(rows)) if columns is None else set(columns)
    wanted = [name for name in columns or metric_columns(rows) if name not in keys and name in there]
    for name in wanted:
        _only_numbers(name, rows)
    found: dict[str, list[Facts]] = {}
    for row in rows:
        found.setdefault(json.dumps([row.get(key) for key in keys], default=str), []).append(row)
    return [
        Group(
            pick(runs[:1], keys)[0], runs, {name: average(run.get(name) for run in runs) for name in wanted}
        )
        for runs in found.values()
    ]


def average(values: Iterable[Any]) -> Mean:
    """Mean and standard deviation of what is there; NaN counts as missing."""
    there = [size for size in map(number, values) if size is not None]
    mean = statistics.fmean(there) if there else None
    return Mean(len(there), mean, statistics.stdev(there) if len(there) > 1 else None)


def _with_metric(rows: Sequence[Facts]) -> list[Facts]:
    """A run that ended before it had a figure takes its task's metric, if the others agree on one."""
    metrics: dict[Any, set[str]] = {}
    for row in rows:
        if row.get("metric"):
            metrics.setdefault(row.get("task"), set()).add(row["metric"])

    def metric(row: Facts) -> str | None:
        known = metrics.get(row.get("task"), set())
        return row.get("metric") or (next(iter(known)) if len(known) == 1 else None)

    return [{**row, "metric": metric(row)} for row in rows]


def _only_numbers(name: str, rows: Sequence[Facts]) -> None:
    for row in rows:
        value = row.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ConfigError("columns", f"can't be averaged ({value!r}): put it into group", name)


def doubts(groups: Sequence[Group]) -> list[str]:
    """What a reader of means must know: runs of a group that differ in more than the seed, or in nothing."""
    mixed = sorted({key for one in groups for key in differing(one.runs)})
    told = []
    if mixed:
        shown = ", ".join(mixed[:DIFFERING]) + (", …" if len(mixed) > DIFFERING else "")
        told.append(f"averaged runs differ in more than the seed ({shown}): group by it, or choose by where")
    twins = sum(len(one.runs) - len({_computed(run) for run in one.runs}) for one in groups)
    if twins:
        told.append(f"{twins} of the averaged runs repeat another one's config and seed: they count twice")
    return told


def by_seed(rows: Sequence[Facts], key: str, figure: str) -> dict[str, dict[int, float]]:
    """A figure by group and seed, for `whet.review.compare.paired`.

    Args:
        rows: runs; those without the figure or a seed are left out.
        key: what makes the groups, as `peft`.
        figure: as `test/accuracy`.

    Raises:
        ConfigError: a key that no run has, or two runs of one group and seed; names what sets them apart.
    """
    check_keys("key", [key], rows)
    check_keys("figure", [figure], rows)
    first: dict[tuple[str, int], Facts] = {}
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        size, seed = number(row.get(figure)), row.get("seed")
        if size is None or seed is None:
            continue
        twin = first.setdefault((str(row.get(key)), seed), row)
        if twin is not row:
            apart = ", ".join(differing([twin, row])[:DIFFERING]) or "nothing"
            told = f"{twin['name']} and {row['name']} are both {row.get(key)} with seed {seed}"
            raise ConfigError("where", f"choose among runs: {told} (they differ in {apart})")
        found.setdefault(str(row.get(key)), {})[seed] = size
    return found


def differing(rows: Sequence[Facts]) -> list[str]:
    """Config keys, and hashes of data, in which runs differ; seed and whereabouts are left aside."""
    keys = [key for key in keys_of(rows) if _matters(key)]
    return [key for key in keys if len({json.dumps(row.get(key), default=str) for row in rows}) > 1]


def _matters(key: str) -> bool:
    part, dot, _ = key.partition(".")
    return (bool(dot) and part in GROUPS and part not in BYSTANDERS) or key.startswith("hashes.data.")


def _computed(run: Facts) -> str:
    """Equal for runs that compute the same."""
    return str(run.get("hashes.config") or run["folder"])
