"""Adafactor (Shazeer & Stern, 2018): second moments kept as row and column sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from whet.optimizer.groups import parameter_groups
from whet.types import Fraction, NonNegativeFloat, PositiveFloat

if TYPE_CHECKING:
    import torch
    from torch import nn

NonPositiveFloat = Annotated[float, Field(le=0)]
AtLeastOne = Annotated[float, Field(ge=1)]


def adafactor(
    model: nn.Module,
    *,
    lr: PositiveFloat = 1e-3,
    weight_decay: NonNegativeFloat = 0.0,
    layer_decay: Fraction = 1.0,
    head_lr: PositiveFloat | None = None,
    beta2_decay: NonPositiveFloat = -0.8,
    clip: AtLeastOne = 1.0,
) -> torch.optim.Optimizer:
    """Adafactor over the parameter groups.

    Args:
        lr: learning rate at the schedule's height.
        weight_decay: share of a weight taken off at each update, times the learning rate; none off biases
            and norms.
        layer_decay: each block learns at this share of what stands above it; the head at lr.
        head_lr: learning rate of the head; null: lr itself.
        beta2_decay: after t updates the older second moments count 1 - t ** beta2_decay.
        clip: largest root mean square of an update (the paper's d).
    """
    import torch

    groups = parameter_groups(
        model, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay, head_lr=head_lr
    )
    return torch.optim.Adafactor(groups, lr=lr, beta2_decay=beta2_decay, d=clip)
