"""BitFit: only the bias terms train (Ben Zaken et al., 2022).

"BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.peft.base import freeze, nothing_matched

if TYPE_CHECKING:
    from torch import nn


def bitfit(model: nn.Module) -> nn.Module:
    """Train every bias of the trunk (the head trains whole, as in the paper).

    Raises:
        ModelError: the trunk has no biases (ModernBERT's, for one).
    """
    from whet.model.layers import head_parameters

    head = set(head_parameters(model))
    biases = [name for name, _ in model.named_parameters() if name not in head and name.endswith("bias")]
    if not biases:
        raise nothing_matched(
            "peft", "bitfit", model, "its trunk has no bias terms: choose peft=lora or peft=top_layers"
        )
    freeze(model)
    for name in biases:
        model.get_parameter(name).requires_grad_(True)
    return model
