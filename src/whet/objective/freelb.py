"""FreeLB: several steps of ascent whose gradients are averaged (Zhu et al., 2020, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.objective.perturbation import (
    Norm,
    Perturbed,
    Rewind,
    direction,
    gradient_of,
    leaf,
    project,
)
from whet.types import NonNegativeFloat, PositiveInt

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward


@dataclass(kw_only=True)
class FreeLB(Perturbed):
    """Free large-batch adversarial training: the mean of the losses at r_0 … r_K-1.

    r_0 is uniform in ±init / sqrt(numbers in it); r_t+1 = project(r_t + step_size * g_t / |g_t|). All K
    passes give the parameters a gradient; train/loss is their mean loss.
    Zhu et al., 2020, FreeLB: Enhanced Adversarial Training for Natural Language Understanding.
    """

    steps: PositiveInt = 3
    """K, the passes of an update."""
    step_size: NonNegativeFloat = 0.05
    """Length of each step."""
    epsilon: NonNegativeFloat = 0.1
    """Largest size of the perturbation of a text."""
    init: NonNegativeFloat = 0.1
    """Size of the first perturbation (its L2 norm is about 0.6 of it)."""
    norm: Norm = "l2"
    """What size means: l2 over a whole text, or linf, its largest number."""
    same_dropout: bool = True
    """All passes drop the same elements (section 3.3)."""

    def __call__(self, forward: Forward, batch: Batch) -> Iterator[torch.Tensor]:
        """One loss a step."""
        by = leaf(project(self.scattered(forward, batch, self.init), self.epsilon, self.norm))
        again = Rewind(by.device)
        for step in range(self.steps):
            if step:
                along = self.step_size * direction(gradient_of(by), self.norm)
                by = leaf(project(by.detach() + along, self.epsilon, self.norm))
                if self.same_dropout:
                    again()
            yield self.loss(forward, batch, by) / self.steps
