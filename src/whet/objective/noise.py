"""NEFTune: uniform noise on the word embeddings (Jain et al., 2024, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.objective.perturbation import Perturbed
from whet.types import NonNegativeFloat

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward


@dataclass(kw_only=True)
class Noise(Perturbed):
    """Noisy embeddings: the loss where each number is moved by up to alpha / sqrt(L d), uniformly.

    L are the real tokens of a text, d the numbers of an embedding. One pass; train/loss is the noisy loss.
    Jain et al., 2024, NEFTune: Noisy Embeddings Improve Instruction Finetuning.
    """

    alpha: NonNegativeFloat = 5.0
    """Size of the noise (its L2 norm over a text is about 0.6 of it)."""

    def __call__(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """The losses of noisy texts."""
        numbers = self.drawn(forward, batch, lambda empty: empty.uniform_(-1.0, 1.0))
        tokens = batch.inputs["attention_mask"].sum(1)[:, None, None]
        return self.loss(forward, batch, numbers * self.alpha / (tokens * numbers.shape[-1]).sqrt())
