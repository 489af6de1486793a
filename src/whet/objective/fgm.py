"""FGM: adversarial training along the gradient (Miyato et al., 2017, equations 2 to 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.objective.perturbation import Perturbed, direction, gradient_of
from whet.types import NonNegativeFloat

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward


@dataclass(kw_only=True)
class FGM(Perturbed):
    """Fast gradient method: L(x) + weight * L(x + epsilon * g / |g|), g the gradient of L by x's embeddings.

    Two passes an update; train/loss is the sum that stands above. |g| is the L2 norm over a whole text.
    Miyato et al., 2017, Adversarial Training Methods for Semi-Supervised Text Classification.
    """

    epsilon: NonNegativeFloat = 0.1
    """L2 norm of the perturbation of a text (a word's vector has about 1: BERT, MiniLM)."""
    weight: NonNegativeFloat = 1.0
    """Of the adversarial loss beside the plain one."""

    def __call__(self, forward: Forward, batch: Batch) -> Iterator[torch.Tensor]:
        """Plain loss, adversarial loss."""
        by = self.still(forward, batch)
        yield self.loss(forward, batch, by)
        worst = self.epsilon * direction(gradient_of(by), "l2")
        yield self.weight * self.loss(forward, batch, worst)
