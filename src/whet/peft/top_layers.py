"""Only the last k transformer blocks and what stands above them train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.errors import ModelError
from whet.peft.base import freeze
from whet.types import NonNegativeInt

if TYPE_CHECKING:
    from torch import nn


def top_layers(model: nn.Module, *, layers: NonNegativeInt = 2) -> nn.Module:
    """Freeze embeddings and lower blocks.

    Args:
        layers: blocks that train, counted from the top; 0 trains only what stands above the blocks.

    Raises:
        ModelError: the model has fewer blocks.
    """
    from whet.model.layers import anatomy

    parts = anatomy(model)
    if layers > parts.layers:
        raise ModelError("peft.layers", f"{type(model).__name__} has {parts.layers} blocks", layers)
    freeze(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parts.depth[name] > parts.layers - layers)
    return model
