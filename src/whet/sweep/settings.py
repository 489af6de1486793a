"""Settings of a sweep, whatever it searches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from whet.config import Component
from whet.types import NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(kw_only=True)
class Sweep(Component):
    """How `whet train -m sweep=NAME` searches; a single run doesn't look at it."""

    objective: list[str] = field(default_factory=list)
    """What is optimised: metrics (`validation/accuracy`), `seconds`, `trained_parameters`, `peak_mb`; by
    default the task's primary metric on validation."""
    start: bool = True
    """Trial 0 is the experiment as it stands."""
    enqueue: list[dict[str, Any]] = field(default_factory=list)
    """Points that are tried first: [{optimizer.lr: 2e-5}]."""
    repeats: PositiveInt = 1
    """Runs of a trial under seeds that follow each other; their mean is its value."""
    more: NonNegativeInt = 0
    """Trials added to those that the study has."""
    conditional: list[str] = field(default_factory=list)
    """Config groups whose choices bring ranges of their own (`_space_` in their YAML)."""
    same_failures: PositiveInt = 3
    """The sweep ends when so many trials in a row fail for the same reason."""
    isolate: bool = False
    """Each trial in a process of its own: slower to start; a crash takes nothing else along."""
    heartbeat: PositiveFloat = 10.0
    """Seconds between two signs of life of a trial."""
    grace: PositiveFloat = 60.0
    """A trial without a sign of life for so many seconds is taken over by another peer."""
    test: bool = True
    """Test the best trial's model when the sweep is over; trials never see the test split."""
