"""No augmentation: the training texts as they are."""

from __future__ import annotations

from dataclasses import dataclass

from whet.augmentation.batches import OnBatches


@dataclass(kw_only=True)
class NoAugmentation(OnBatches):
    """The training rows unchanged, and the batches too."""
