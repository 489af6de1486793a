"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from whet.errors import ConfigError
from whet.optimizer.groups import parameter_groups
from whet.types import Fraction, NonNegativeFloat, PositiveFloat, Probability

if TYPE_CHECKING:
    import torch
    from torch import nn


def sgd(
    model: nn.Module,
    *,
    lr: PositiveFloat = 1e-2,
    weight_decay: NonNegativeFloat = 0.0,
    layer_decay: Fraction = 1.0,
    head_lr: PositiveFloat | None = None,
    momentum: Probability = 0.9,
    nesterov: bool = False,
    implementation: Literal["fused", "foreach", "loop"] = "fused",
) -> torch.optim.Optimizer:
    """SGD over the parameter groups.

    Args:
        lr: learning rate at the schedule's height.
        weight_decay: L2 penalty added to the gradient; biases and norms get none.
        layer_decay: each block learns at this share of what stands above it; the head at lr.
        head_lr: learning rate of the head; null: lr itself.
        momentum: share of the last update kept.
        nesterov: look ahead (Sutskever et al., 2013).
        implementation: torch's fused kernel, its grouped one, or one tensor after the other (same update).

    Raises:
        ConfigError: nothing trains, or `nesterov` without momentum.
    """
    import torch

    if nesterov and not momentum:
        raise ConfigError("optimizer.nesterov", "looks ahead along optimizer.momentum, which is 0", True)
    groups = parameter_groups(
        model, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay, head_lr=head_lr
    )
    fused, foreach = implementation == "fused", implementation == "foreach"
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused, foreach=foreach)
