"""The one protocol of objectives: `objective(forward, batch) -> sum of losses`.

The engine divides by the weight of the whole accumulation window, so an objective returns sums, never means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from whet.data.batch import Batch
    from whet.task.base import Criterion


@dataclass(frozen=True)
class Forward:
    """The model and the task's loss, as an objective sees them."""

    model: nn.Module
    criterion: Criterion

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits [batch, outputs]."""
        logits: torch.Tensor = self.model(**batch.inputs).logits
        return logits

    def losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[batch] weighted losses of the task."""
        return self.criterion.losses(logits, batch.labels)
