"""The task's own loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward


def plain(forward: Forward, batch: Batch) -> torch.Tensor:
    """Sum of the task's losses over the batch."""
    return forward.losses(forward(batch), batch).sum()
