"""FGSM: adversarial training along the signs of the gradient (Goodfellow et al., 2015, section 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.objective.perturbation import Perturbed, direction, gradient_of
from whet.types import NonNegativeFloat, PositiveFraction

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward


@dataclass(kw_only=True)
class FGSM(Perturbed):
    """Fast gradient sign method: alpha * L(x) + (1 - alpha) * L(x + epsilon * sign(g)).

    Two passes an update; train/loss is the sum that stands above.
    Goodfellow et al., 2015, Explaining and Harnessing Adversarial Examples.
    """

    epsilon: NonNegativeFloat = 0.001
    """How far each number of an embedding moves."""
    alpha: PositiveFraction = 0.5
    """Share of the plain loss."""

    def __call__(self, forward: Forward, batch: Batch) -> Iterator[torch.Tensor]:
        """Plain loss, adversarial loss."""
        by = self.still(forward, batch)
        yield self.alpha * self.loss(forward, batch, by)
        worst = self.epsilon * direction(gradient_of(by), "linf")
        yield (1 - self.alpha) * self.loss(forward, batch, worst)
