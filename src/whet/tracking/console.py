"""Live progress of a run on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whet.tracking.base import RunInfo, Sink
from whet.tracking.progress import Choice, Row, open_row
from whet.types import NonNegativeFloat

if TYPE_CHECKING:
    from whet.evaluation.predictions import Predictions

_SHOWN = 2
"""So many validation metrics fit beside the bar."""


@dataclass(kw_only=True)
class Console(Sink):
    """Percent, step, ETA, loss, learning rate, tokens per second and the last validation figures.

    A bar where stderr is a terminal, plain lines where it isn't; nothing goes to stdout.
    """

    progress: Choice = "auto"
    """`bar`, `lines`, `off`, or `auto`: a bar where stderr is a terminal."""
    every_seconds: NonNegativeFloat = 10.0
    """At most one plain line in so many seconds, and one for each evaluation."""
    _row: Row | None = field(init=False, repr=False, default=None)
    _directions: tuple[str, ...] = field(init=False, repr=False, default=())
    _latest: dict[str, float] = field(init=False, repr=False, default_factory=dict)

    def start(self, run: RunInfo) -> None:
        self._directions = tuple(run.directions)
        self._row = open_row(run.name, run.total_steps, "steps", self.progress, self.every_seconds)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._latest.update(metrics)
        evaluated = any(_split(name) in ("validation", "test") for name in metrics)
        if self._row is not None:
            self._row.update(step, describe(self._latest, self._directions), always=evaluated)

    def report(
        self, predictions: Predictions, label_names: list[str] | None, metrics: Mapping[str, float]
    ) -> None:
        shown = ", ".join(f"{_leaf(name)} {value:.4g}" for name, value in metrics.items())
        if self._row is not None:
            self._row.say(f"{predictions.split} ({len(predictions):,} rows): {shown}")

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        if self._row is not None:
            self._row.close()
            self._row.say(f"{self._row.title}: {status}")
            self._row = None


_RATES = ("lr", "learning_rate")


def describe(latest: Mapping[str, float], directions: tuple[str, ...] = ()) -> str:
    """`loss 0.512 lr 2e-05 8,123 tokens/s validation/accuracy 0.91`; what isn't known is left out."""
    parts = [f"loss {latest['train/loss']:.4g}"] if "train/loss" in latest else []
    parts += [f"lr {value:.3g}" for name, value in latest.items() if _leaf(name) in _RATES][:1]
    if "train/tokens_per_second" in latest:
        parts.append(f"{latest['train/tokens_per_second']:,.0f} tokens/s")
    return " ".join(parts + [f"{name} {latest[name]:.4g}" for name in _primary(latest, directions)])


def _primary(latest: Mapping[str, float], directions: tuple[str, ...]) -> list[str]:
    """The validation metrics that the task declares, in its order; without a declaration, the first ones."""
    measured = [name for name in latest if _split(name) == "validation"]
    declared = [name for key in directions for name in measured if name in (key, f"validation/{key}")]
    return (declared or measured)[:_SHOWN]


def _split(name: str) -> str:
    return name.rpartition("/")[0]


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]
