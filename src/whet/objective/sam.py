"""SAM: the gradient where the loss is highest nearby (Foret et al., 2021); ASAM (Kwon et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whet.objective.base import Objective
from whet.objective.plain import plain
from whet.objective.weights import Detour, total_norm
from whet.types import NonNegativeFloat

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward, Turn

_LEAST = 1e-30
"""Norms below are none."""


@dataclass(kw_only=True)
class SAM(Objective):
    """Sharpness-aware minimisation: the optimizer steps from w with the gradient at w + rho * g / |g|.

    With `adaptive`, at w + rho * T² g / |T g|, T = |w| + eta (ASAM, equation 8): the neighbourhood scales
    with the weights. g is the gradient of the whole update, so accumulation changes nothing. Two passes an
    update; train/loss and the logged norm are those of w and of the moved weights.
    Foret et al., 2021, Sharpness-Aware Minimization, equations 2 and 3; Kwon et al., 2021, ASAM.
    """

    rho: NonNegativeFloat = 0.05
    """How far the weights are moved; ASAM wants about ten times as much."""
    adaptive: bool = False
    """Measure distance relative to each weight."""
    eta: NonNegativeFloat = 0.01
    """Added to |w| where `adaptive`."""

    _moved: Detour = field(init=False, repr=False, compare=False, default_factory=Detour)

    @property
    def rounds(self) -> int:
        return 2

    def __call__(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """The task's losses; `between` decides at which weights."""
        return plain(forward, batch)

    def between(self, turn: Turn) -> None:
        """Climb."""
        scale = self.rho / self._size(turn).clamp(min=_LEAST)

        def climb(weights: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
            along = gradient * (weights.abs() + self.eta).square() if self.adaptive else gradient
            return along * scale

        for parameter in turn.parameters:
            self._moved.move(parameter, climb)

    def restore(self) -> None:
        """Back to the weights that are to be updated."""
        self._moved.back()

    def _size(self, turn: Turn) -> torch.Tensor:
        """|g|, or |T g|."""
        if not self.adaptive:
            return turn.norm()
        held = [(p.detach(), p.grad) for p in turn.parameters]
        return total_norm([g * (w.abs() + self.eta) for w, g in held if g is not None])
