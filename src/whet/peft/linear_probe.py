"""Linear probe: only the head trains, on features of the pretrained trunk (Alain & Bengio, 2016).

"Understanding intermediate layers using linear classifier probes". The head is the architecture's own: some
(RoBERTa's, for one) have a hidden layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.peft.base import freeze, nothing_matched

if TYPE_CHECKING:
    from torch import nn


def linear_probe(model: nn.Module) -> nn.Module:
    """Freeze the trunk.

    Raises:
        ModelError: the model has no head of its own.
    """
    from whet.model.layers import head_parameters

    head = head_parameters(model)
    if not head:
        raise nothing_matched("peft", "linear_probe", model, "it has no head beside its trunk")
    freeze(model)
    for name in head:
        model.get_parameter(name).requires_grad_(True)
    return model
