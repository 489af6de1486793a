"""AWP: the gradient at adversarially moved weights, layer by layer (Wu et al., 2020, equations 8 and 10)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whet.objective.base import Objective
from whet.objective.plain import plain
from whet.objective.weights import Detour, total_norm
from whet.types import Fraction, NonNegativeFloat

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward, Turn

_LEAST = 1e-30
"""Norms below are none."""


@dataclass(kw_only=True)
class AWP(Objective):
    """Adversarial weight perturbation: the optimizer steps from w with the gradient at w + v.

    In each matrix v = gamma * |w| * g / |g|, one step of ascent to the border of the neighbourhood; biases
    and norms stay, and so do the texts. g is the gradient of the whole update, so accumulation changes
    nothing. Two passes an update once it has begun; train/loss is that of w, the logged norm that of the
    moved weights.
    Wu et al., 2020, Adversarial Weight Perturbation Helps Robust Generalization.
    """

    gamma: NonNegativeFloat = 0.005
    """How far a matrix moves, as a share of its norm."""
    start: Fraction = 0.0
    """Share of the run that trains plainly before."""

    _moved: Detour = field(init=False, repr=False, compare=False, default_factory=Detour)
    _begun: bool = field(init=False, repr=False, compare=False, default=True)

    @property
    def rounds(self) -> int:
        return 2 if self._begun else 1

    def __call__(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """The task's losses; `between` decides at which weights."""
        self._begun = forward.step >= self.start * forward.total
        return plain(forward, batch)

    def between(self, turn: Turn) -> None:
        """Climb."""
        for parameter in turn.parameters:
            if parameter.grad is not None and parameter.ndim > 1:
                height = total_norm([parameter.detach()]) / total_norm([parameter.grad]).clamp(min=_LEAST)
                self._climb(parameter, self.gamma * height)

    def _climb(self, parameter: torch.nn.Parameter, scale: torch.Tensor) -> None:
        self._moved.move(parameter, lambda _, gradient: gradient * scale)

    def restore(self) -> None:
        """Back to the weights that are to be updated."""
        self._moved.back()
