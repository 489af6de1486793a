"""No augmentation: the training texts as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def none(
    texts: list[tuple[str, ...]], labels: list[Any], rng: np.random.Generator
) -> tuple[list[tuple[str, ...]], list[Any]]:
    """Texts and labels unchanged."""
    return texts, labels
