"""P-tuning: soft tokens that a small network makes (Liu et al., 2021, "GPT Understands, Too", section 3).

The network ties the tokens together, which vectors that are trained one by one are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from whet.peft.prompt import insert
from whet.types import PositiveInt

if TYPE_CHECKING:
    from torch import nn


def p_tuning(
    model: nn.Module,
    *,
    tokens: PositiveInt = 20,
    encoder: Literal["lstm", "mlp"] = "lstm",
    hidden: PositiveInt = 128,
) -> nn.Module:
    """Put soft tokens into every text, as peft=prompt does, through an encoder that is trained with them.

    Args:
        tokens: how many; they take positions of the model.
        encoder: lstm: bidirectional, two maps above it (the paper's); mlp: three maps.
        hidden: its width.

    Raises:
        ModelError: as for peft=prompt.
    """
    from peft import PromptEncoder, PromptEncoderConfig
    from whet.peft.modules import Encoded

    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    config = PromptEncoderConfig(
        num_virtual_tokens=tokens,
        num_transformer_submodules=1,
        token_dim=table.embedding_dim,
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=hidden,
    )
    return insert(model, Encoded(PromptEncoder(config), tokens), tokens, "p_tuning")
