"""UniPELT: LoRA, prefix and adapters in every block, each behind a trained gate (Mao et al., 2022).

"UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning". Unlike the paper's, gates here
are not averaged over a text: each token has its own, so that no logit depends on the padding of its batch.
The gate of a prefix multiplies the weights that attention gives it (in the paper, its keys and values).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from whet.peft.base import nothing_matched
from whet.peft.bottleneck import place
from whet.peft.compose import together
from whet.peft.lora import low_rank
from whet.peft.prefix import put_prefix
from whet.types import PositiveFloat, PositiveInt, Probability

if TYPE_CHECKING:
    import torch
    from torch import nn


def unipelt(
    model: nn.Module,
    *,
    r: PositiveInt = 8,
    alpha: PositiveFloat = 16.0,
    dropout: Probability = 0.05,
    tokens: PositiveInt = 10,
    reduction: PositiveInt = 16,
) -> nn.Module:
    """Put gated LoRA on queries and values, a gated prefix and gated adapters after feed-forward.

    Args:
        r: rank of LoRA.
        alpha: its update is scaled by alpha / r.
        dropout: before its A.
        tokens: length of the prefix.
        reduction: the adapters' bottleneck is that many times narrower than the hidden states.

    Raises:
        ModelError: the architecture has no place for one of the three.
    """
    names = _queries_and_values(model)
    parts = [
        functools.partial(_gated_lora, names=names, r=r, lora_alpha=alpha, lora_dropout=dropout),
        functools.partial(_gated_adapters, reduction=reduction),
        functools.partial(put_prefix, tokens=tokens, init="words", projection=None, gated=True),
    ]
    return together(model, parts)


def _queries_and_values(model: nn.Module) -> list[str]:
    from whet.model.sublayers import sublayers

    found = sublayers(model)
    starts = [name for sublayer in found.of("attention") for name in sublayer.starts]
    names = [name for name in starts if name in found.values or name not in found.keys]
    if not names:
        raise nothing_matched("peft", "unipelt", model, "its attention has no linear maps: choose peft=lora")
    return names


def _gated_lora(model: nn.Module, names: list[str], **settings: Any) -> nn.Module:
    from whet.peft.modules import Gate

    adapted = low_rank(model, names, **settings)
    for name in names:
        layer: Any = adapted.get_submodule(name)
        gate_update(layer, Gate(layer.in_features))
    return adapted


def gate_update(layer: Any, gate: nn.Module) -> None:
    """Weigh what a LoRA layer adds for each token with a gate that reads the layer's input."""
    layer.gate = gate
    held: list[torch.Tensor] = []

    def note(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        held[:] = arguments[:1]

    layer.register_forward_pre_hook(note)
    layer.lora_B["default"].register_forward_hook(lambda _, __, update: layer.gate(held.pop()) * update)


def _gated_adapters(model: nn.Module, reduction: int) -> nn.Module:
    from torch import nn

    from whet.peft.modules import Adapter, Gate, silent

    def make(hidden: int) -> nn.Module:
        narrow = max(1, hidden // reduction)
        up = silent(nn.Linear(narrow, hidden))
        return Adapter(nn.Linear(hidden, narrow), up, "relu", 1.0, Gate(hidden))

    return place(model, "pfeiffer", "bottleneck", make)
