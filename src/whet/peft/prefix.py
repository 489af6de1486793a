"""Prefix tuning: trained keys and values before those of the text, in every layer (Li & Liang, 2021).

"Prefix-Tuning: Optimizing Continuous Prompts for Generation"; for classification in every layer of an encoder
P-Tuning v2 (Liu et al., 2022). The prefix enters through transformers' attention interface, so a text keeps
its positions and its length.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

from whet.errors import ModelError
from whet.peft.base import freeze
from whet.types import PositiveInt

if TYPE_CHECKING:
    import torch
    from torch import nn

PREFIX = "prefix_"
"""Start of the names under which transformers finds attention with a prefix; the model's own follows."""
_RECORDING = "recording_prefix"


def prefix(
    model: nn.Module,
    *,
    tokens: PositiveInt = 16,
    init: Literal["words", "random"] = "words",
    projection: PositiveInt | None = None,
) -> nn.Module:
    """Let every attention layer see trained keys and values before the text.

    Args:
        tokens: length of the prefix.
        init: words: keys and values that the model itself makes of random words; random: small numbers.
        projection: width of a hidden layer through which each layer's prefix is trained, which steadies large
            learning rates (the paper's section 4.3); null: the numbers themselves are trained.

    Raises:
        ModelError: the model's attention can't be reached through transformers' interface.
    """
    return put_prefix(model, tokens, init, projection, gated=False)


def put_prefix(
    model: nn.Module, tokens: int, init: Literal["words", "random"], projection: int | None, gated: bool
) -> nn.Module:
    """`prefix`, with a gate for each token if wanted."""
    import torch

    from whet.peft.modules import Prefix

    own = _reachable(model)
    made = _keys_and_values(model, tokens)
    freeze(model)
    for module, (query, key, value) in made.items():
        if init == "random":
            key, value = (torch.randn_like(part) * 0.02 for part in (key, value))
        width = query.shape[0] * query.shape[2] if gated else None
        module.add_module("prefix", Prefix(key, value, projection, width))
    _use(model, own)
    return model


def _reachable(model: Any) -> str:
    """Name of the model's attention.

    Raises:
        ModelError: it isn't one that can be exchanged.
    """
    own = str(model.config._attn_implementation)
    if own == "sdpa":
        return own
    if own == "eager" and getattr(model, "_supports_sdpa", False):
        problem = "is eager, and a prefix needs sdpa: set model.attention=auto"
        raise ModelError("model.attention", problem, own)
    raise _out_of_reach(model)


def _out_of_reach(model: Any) -> ModelError:
    kind = model.config.model_type
    problem = f"transformers keeps the attention of {kind} out of reach; choose peft=prompt or peft=lora"
    return ModelError("peft", problem, "prefix")


def _keys_and_values(
    model: Any, tokens: int
) -> dict[nn.Module, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Query, key and value, [heads, tokens, dim] each, of every attention layer on some random words."""
    import torch
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as ATTENTIONS

    from whet.model.packing import in_mode
    from whet.model.sublayers import run_trunk

    found: dict[nn.Module, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    own = model.config._attn_implementation

    def record(module: nn.Module, *parts: Any, **others: Any) -> Any:
        if module not in found:  # ALBERT's layers share one module, and so one prefix
            query, key, value = (part[0].detach().clone() for part in parts[:3])
            found[module] = query, key, value
        return ATTENTIONS[own](module, *parts, **others)

    ids = torch.randint(0, model.get_input_embeddings().num_embeddings, (1, tokens))
    inputs = {"input_ids": ids.to(model.device), "attention_mask": torch.ones_like(ids).to(model.device)}
    ATTENTIONS.register(_RECORDING, record)
    MASKS.register(_RECORDING, MASKS[own])
    model.config._attn_implementation = _RECORDING
    try:
        with in_mode(model, False), torch.no_grad():
            run_trunk(model, inputs)
    finally:
        model.config._attn_implementation = own
    if not found:
        raise _out_of_reach(model)
    return found


def _use(model: Any, own: str) -> None:
    """Let `model` attend with prefixes."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as ATTENTIONS

    from whet.peft.modules import attend

    ATTENTIONS.register(PREFIX + own, functools.partial(attend, ATTENTIONS[own]))
    MASKS.register(PREFIX + own, MASKS[own])
    model.config._attn_implementation = PREFIX + own
