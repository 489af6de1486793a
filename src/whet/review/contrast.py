"""Several runs side by side: what differs in their configs, groups of equal runs but for the seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.config import GROUPS, TARGET, flatten
from whet.engine.run import BYSTANDERS
from whet.evaluation.plots import series
from whet.review.asked import name_of_part
from whet.review.records import RunRecord
from whet.review.style import BLUE, GREY, figure, number, plain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from whet.review.compare import Difference

SEED = "seed"
MISSING = "—"
"""Of a key that a run doesn't have."""


@dataclass(frozen=True)
class Contrast:
    """Runs, and what tells them apart."""

    records: list[RunRecord]
    keys: list[str]
    """Config keys whose values differ; a config group whose choice differs stands for its settings."""
    values: dict[str, list[Any]]
    """By key, the value of each run; `MISSING` where it has none."""

    @property
    def names(self) -> list[str]:
        """Of the runs; with the folder around them where two bear the same."""
        own = [record.name for record in self.records]
        around = [f"{record.folder.parent.name}/{record.folder.name}" for record in self.records]
        return [long if own.count(name) > 1 else name for name, long in zip(own, around, strict=True)]

    @property
    def groups(self) -> list[str]:
        """Of each run: all that tells it apart but the seed."""
        keys = [key for key in self.keys if key != SEED]
        names = [short_names(keys)[key] for key in keys]
        return [
            ", ".join(
                f"{name} {shown(self.values[key][place])}" for name, key in zip(names, keys, strict=True)
            )
            or "all runs"
            for place in range(len(self.records))
        ]

    def by_seed(self, metric: str) -> dict[str, dict[int, float]]:
        """[group][seed] of a figure such as `test/accuracy`; of equal runs the last one counts."""
        found: dict[str, dict[int, float]] = {}
        for record, group in zip(self.records, self.groups, strict=True):
            value = record.record.get("metrics", {}).get(metric)
            if isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(group, {})[int(record.record.get(SEED) or 0)] = float(value)
        return found


def contrast(records: Sequence[RunRecord]) -> Contrast:
    """What differs between the configs of runs."""
    configs = [
        dict(flatten({n: v for n, v in record.config.items() if n not in BYSTANDERS})) for record in records
    ]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differ = [key for key in keys if len({repr(config.get(key, MISSING)) for config in configs}) > 1]
    values = {key: [config.get(key, MISSING) for config in configs] for key in differ}
    for group in GROUPS:
        names = [_choice(record, group) for record in records]
        if len(set(names)) > 1:
            values = {group: names} | {
                key: own for key, own in values.items() if not _implied(key, group, own)
            }
    return Contrast(list(records), list(values), values)


def _choice(record: RunRecord, group: str) -> str:
    node = record.config.get(group)
    return name_of_part(record.config, group) if isinstance(node, dict) and TARGET in node else MISSING


def _implied(key: str, group: str, values: Sequence[Any]) -> bool:
    """Whether a key differs only because the group's choice does.

    Of a task or a model all of it; elsewhere the name of the code, and settings that not every run has.
    """
    if not key.startswith(f"{group}."):
        return False
    return group in ("task", "model") or key.endswith(TARGET) or MISSING in values


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Dotted keys by their last part, where that is enough to tell them apart."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}


def shown(value: Any) -> str:
    """A config value for people."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return number(value) if isinstance(value, (int, float)) else str(value)


def forest(differences: Sequence[Difference], baseline: str, metric: str) -> Figure:
    """Mean paired differences to the baseline with their 95 % intervals (of one pair there is none)."""
    from plotly.graph_objects import Scatter

    names = [plain(each.group, 60) for each in differences]
    dots = Scatter(
        x=[each.mean for each in differences], y=names, mode="markers",
        marker={"color": BLUE, "size": 10},
        error_x={
            "array": [_arm(each.high - each.mean) for each in differences],
            "arrayminus": [_arm(each.mean - each.low) for each in differences],
            "thickness": 2, "width": 6, "color": BLUE,
        },
        customdata=[each.n for each in differences],
        hovertemplate="%{y}<br>%{x:+.4f} over %{customdata} seeds<extra></extra>",
    )  # fmt: skip
    title = f"Difference in {plain(metric)} to: {plain(baseline, 80)}"
    made = figure([dots], title, f"difference in {plain(metric)}", tall=120 + 36 * len(names))
    made.add_vline(x=0, line={"color": GREY, "dash": "dash"})
    made.update_yaxes(type="category", autorange="reversed")
    return made


def _arm(length: float) -> float | None:
    return length if math.isfinite(length) else None


def metrics_of(records: Sequence[RunRecord]) -> list[str]:
    """Names of all final figures."""
    return list(dict.fromkeys(name for record in records for name in record.record.get("metrics", {})))


def primary_of(records: Sequence[RunRecord]) -> str | None:
    """The metric that decides in all of the runs (`accuracy`); None where they don't agree."""
    found = {str((record.record.get("best") or {}).get("metric", "")).partition("/")[2] for record in records}
    found.discard("")
    return found.pop() if len(found) == 1 else None


def tasks_of(records: Sequence[RunRecord]) -> set[str]:
    """Names of the runs' tasks."""
    return {str(record.config["task"].get("name")) for record in records if "task" in record.config}


def curves_of(found: Contrast, metric: str) -> Mapping[str, Sequence[tuple[float, float]]]:
    """(step, value) points of one logged figure, by the runs' names."""
    curves = {
        name: series(record.metrics()).get(metric, [])
        for name, record in zip(found.names, found.records, strict=True)
    }
    return {name: points for name, points in curves.items() if points}
