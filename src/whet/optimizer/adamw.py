"""AdamW (Loshchilov & Hutter, 2019): Adam with decoupled weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from whet.optimizer.groups import parameter_groups
from whet.types import Fraction, NonNegativeFloat, PositiveFloat, Probability

if TYPE_CHECKING:
    import torch
    from torch import nn


def adamw(
    model: nn.Module,
    *,
    lr: PositiveFloat = 5e-5,
    weight_decay: NonNegativeFloat = 0.01,
    layer_decay: Fraction = 1.0,
    head_lr: PositiveFloat | None = None,
    betas: tuple[Probability, Probability] = (0.9, 0.999),
    eps: PositiveFloat = 1e-8,
    implementation: Literal["fused", "foreach", "loop"] = "fused",
) -> torch.optim.Optimizer:
    """AdamW over the parameter groups.

    Args:
        lr: learning rate at the schedule's height.
        weight_decay: share of a weight taken off at each update, times the learning rate; none off biases
            and norms.
        layer_decay: each block learns at this share of what stands above it; the head at lr.
        head_lr: learning rate of the head; null: lr itself.
        betas: decay of the running mean and of the running square.
        eps: added to the root of the running square.
        implementation: torch's fused kernel, its grouped one, or one tensor after the other (same update).
    """
    import torch

    groups = parameter_groups(
        model, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay, head_lr=head_lr
    )
    fused, foreach = implementation == "fused", implementation == "foreach"
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused, foreach=foreach)
