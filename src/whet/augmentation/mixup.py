"""Mixup: texts and labels of a batch mixed two by two (Zhang et al., 2018; of words: Guo et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.augmentation.batches import OnBatches
from whet.types import NonNegativeInt, PositiveFloat

if TYPE_CHECKING:
    from whet.objective.base import Objective


@dataclass(kw_only=True)
class MixupOfBatches(OnBatches):
    """Trains on blends of two texts with the blend of their losses."""

    alpha: PositiveFloat = 0.2
    """Of Beta(alpha, alpha), from which the shares come: the smaller, the less is mixed."""
    layer: NonNegativeInt = 0
    """Block behind which states are mixed, from 1; 0 mixes word embeddings."""

    def wrap(self, objective: Any) -> Objective:
        from whet.objective.mixed import Mixup

        return Mixup(objective, self.alpha, self.layer)
