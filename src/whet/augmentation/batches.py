"""Augmentations that act on batches rather than on texts: they wrap the run's objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from whet.augmentation.base import Augmentation, Surroundings, Training

if TYPE_CHECKING:
    from whet.data.batch import Examples


class OnBatches(Augmentation):
    """Training rows stay as they are; the model sees them changed."""

    @property
    def by_epoch(self) -> bool:
        return False

    def training(
        self, train: Examples, around: Surroundings, seed: int, epochs: Callable[[int], int]
    ) -> Training:
        return Training(train)
