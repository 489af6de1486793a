"""LN-tuning: only gain and bias of the layer norms train (Qi et al., 2022).

"Parameter-Efficient Tuning on Layer Normalization for Pre-trained Language Models".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.peft.base import freeze, nothing_matched

if TYPE_CHECKING:
    from torch import nn


def layer_norm(model: nn.Module) -> nn.Module:
    """Train every norm of the trunk (the head trains whole).

    Raises:
        ModelError: the trunk has no norm with something to learn.
    """
    from whet.model.layers import head_parameters, is_norm

    head = set(head_parameters(model))
    norms = [(f"{name}.", module) for name, module in model.named_modules() if is_norm(module)]
    found = [
        parameter
        for prefix, norm in norms
        for name, parameter in norm.named_parameters(recurse=False)
        if prefix + name not in head
    ]
    if not found:
        raise nothing_matched(
            "peft", "layer_norm", model, "its trunk has no norms: choose peft=lora or peft=top_layers"
        )
    freeze(model)
    for parameter in found:
        parameter.requires_grad_(True)
    return model
