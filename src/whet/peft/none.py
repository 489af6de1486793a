"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def none(model: nn.Module) -> nn.Module:
    """Every parameter trains."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model
