"""Cutoff: parts of the word embeddings erased, the output held to what it was (Shen et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from whet.augmentation.batches import OnBatches
from whet.types import NonNegativeFloat, PositiveFraction

if TYPE_CHECKING:
    from whet.objective.base import Objective


@dataclass(kw_only=True)
class CutoffOfBatches(OnBatches):
    """Adds the loss of the text with a part erased, and the divergence of both outputs."""

    part: Literal["token", "feature", "span"] = "span"
    """Erase single tokens, dimensions of all tokens of a text, or one run of tokens."""
    rate: PositiveFraction = 0.1
    """Share of a text's tokens (of the dimensions) that is erased."""
    alpha: NonNegativeFloat = 1.0
    """Weight of the loss on the cut text."""
    beta: NonNegativeFloat = 1.0
    """Weight of the Jensen-Shannon divergence of both outputs; above 0 it costs one more plain pass."""

    def wrap(self, objective: Any) -> Objective:
        from whet.objective.cut import Cutoff

        return Cutoff(objective, self.part, self.rate, self.alpha, self.beta)
