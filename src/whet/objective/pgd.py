"""PGD: adversarial training by projected gradient ascent (Madry et al., 2018, section 2.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.objective.perturbation import Norm, Perturbed, ascent, direction, gradient_of, leaf, project
from whet.types import NonNegativeFloat, PositiveInt

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward


@dataclass(kw_only=True)
class PGD(Perturbed):
    """Projected gradient descent: L(x) + weight * L(x + r_K), r_t+1 = project(r_t + alpha * g_t / |g_t|).

    r_0 is zero. Only the plain pass and the last one give the parameters a gradient, as usual for text; those
    between only move the embeddings. K + 1 passes an update; train/loss is the sum that stands above.
    Madry et al., 2018, Towards Deep Learning Models Resistant to Adversarial Attacks.
    """

    steps: PositiveInt = 3
    """K."""
    alpha: NonNegativeFloat = 0.05
    """Length of each step."""
    epsilon: NonNegativeFloat = 0.1
    """Largest size of the perturbation of a text."""
    norm: Norm = "l2"
    """What size means: l2 over a whole text, or linf, its largest number (steps along the signs of g)."""
    weight: NonNegativeFloat = 1.0
    """Of the adversarial loss beside the plain one."""

    def __call__(self, forward: Forward, batch: Batch) -> Iterator[torch.Tensor]:
        """Plain loss, adversarial loss."""
        by = self.still(forward, batch)
        yield self.loss(forward, batch, by)
        by = self._step(by, gradient_of(by))
        for _ in range(self.steps - 1):
            by = self._step(by, ascent(self.loss(forward, batch, by), by))
        yield self.weight * self.loss(forward, batch, by.detach())

    def _step(self, by: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        along = self.alpha * direction(gradient, self.norm)
        return leaf(project(by.detach() + along, self.epsilon, self.norm))
