"""Prompt tuning: trained vectors among the word vectors of every text (Lester et al., 2021).

"The Power of Scale for Parameter-Efficient Prompt Tuning". In encoders they come after the first token,
which a head may read; in decoders before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from whet.errors import ModelError
from whet.peft.base import freeze
from whet.types import PositiveInt

if TYPE_CHECKING:
    from torch import nn


def prompt(
    model: nn.Module, *, tokens: PositiveInt = 20, init: Literal["words", "random"] = "words"
) -> nn.Module:
    """Put soft tokens into every text; they take positions of the model.

    Args:
        tokens: how many.
        init: words: vectors of random words (the paper's best but class labels); random: uniform in ±0.5.

    Raises:
        ModelError: an encoder-decoder reads its text twice; or no room is left for a text.
    """
    import torch

    from whet.peft.modules import Words

    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    if init == "words":
        chosen = torch.randint(0, table.num_embeddings, (tokens,), device=table.weight.device)
        start = table.weight.detach()[chosen]
    else:
        start = torch.rand(tokens, table.embedding_dim) - 0.5
    return insert(model, Words(start), tokens, "prompt")


def insert(model: Any, soft: nn.Module, tokens: int, method: str) -> nn.Module:
    """Freeze `model` and let it read `soft` with every text.

    Args:
        model: changed in place.
        soft: gives [tokens, width of the input embedding].
        tokens: how many.
        method: its name, for an error.

    Raises:
        ModelError: as `prompt`.
    """
    from whet.model.layers import positions
    from whet.peft.modules import Inserted

    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        problem = f"{config.model_type} reads a text in encoder and decoder; choose peft=prefix or peft=lora"
        raise ModelError("peft", problem, method)
    room = positions(config)
    if room is not None and tokens + 3 > room:
        raise ModelError("peft.tokens", f"{config.model_type} has {room} positions in all", tokens)
    freeze(model)
    first = any(getattr(module, "is_causal", False) is True for module in model.modules())
    Inserted(model, soft, tokens, _filler(config), first, room)
    return model  # type: ignore[no-any-return]


def soft_tokens(model: Any) -> int:
    """Soft tokens that the model reads with every text."""
    part = getattr(model.get_input_embeddings(), "prompt", None)
    return int(part.tokens) if part is not None else 0


def _filler(config: Any) -> int:
    """An id that means nothing special to the model."""
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "cls", "sep")}
    return next(number for number in range(len(special) + 1) if number not in special)
