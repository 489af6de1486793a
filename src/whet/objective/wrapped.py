"""Objectives around an objective: how an augmentation acts on batches rather than on texts.

An augmentation that does so wraps the run's objective: the inner one still says what is minimised and how
many passes it takes, and sees the model through a `Forward` that changes what comes out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from whet.objective.base import Forward, Objective

if TYPE_CHECKING:
    import torch
    from torch import nn

    from whet.data.batch import Batch
    from whet.objective.base import Result, Setting, Turn
    from whet.task.base import Task

    Inner = Objective | Callable[[Forward, Batch], Result]


class Just(Objective):
    """A function as an objective."""

    def __init__(self, function: Callable[[Forward, Batch], Result]) -> None:
        self._function = function

    def __call__(self, forward: Forward, batch: Batch) -> Result:
        """What the function gives."""
        return self._function(forward, batch)


class Wrapped(Objective):
    """All that an objective is, from the one inside; what derives from it changes the call."""

    def __init__(self, inner: Inner) -> None:
        self.inner: Objective = inner if isinstance(inner, Objective) else Just(inner)

    @property
    def rounds(self) -> int:
        return self.inner.rounds

    @property
    def moves_words(self) -> bool:
        return self.inner.moves_words

    @property
    def reads_states(self) -> bool:
        return self.inner.reads_states

    @property
    def reads_labels(self) -> bool:
        return self.inner.reads_labels

    @property
    def settles(self) -> bool:
        return self.inner.settles

    @property
    def needs_head(self) -> str | None:
        return self.inner.needs_head

    def check(self, task: Task) -> None:
        self.inner.check(task)

    def prepare(self, setting: Setting) -> None:
        self.inner.prepare(setting)

    def __call__(self, forward: Forward, batch: Batch) -> Result:
        """What the one inside gives."""
        return self.inner(forward, batch)

    def between(self, turn: Turn) -> None:
        self.inner.between(turn)

    def restore(self) -> None:
        self.inner.restore()

    def after(self, forward: Forward) -> None:
        self.inner.after(forward)

    def before_judging(self, forward: Forward) -> None:
        self.inner.before_judging(forward)

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.inner.parameters()

    def tensors(self) -> dict[str, torch.Tensor]:
        return self.inner.tensors()

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.inner.load_tensors(tensors)

    def facts(self) -> dict[str, Any]:
        return self.inner.facts()
