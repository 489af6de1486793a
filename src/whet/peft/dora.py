"""DoRA: a trained length beside a low-rank direction, m (W + (alpha / r) B A) / ||W + (alpha / r) B A||.

Liu et al., 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5. Norms are those of the rows that
make one output each; as in the paper's section 4.3 no gradient goes through them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.peft.lora import Targets, low_rank
from whet.types import PositiveFloat, PositiveInt, Probability

if TYPE_CHECKING:
    from torch import nn


def dora(
    model: nn.Module,
    *,
    r: PositiveInt = 8,
    alpha: PositiveFloat = 16.0,
    dropout: Probability = 0.05,
    targets: Targets = "all",
) -> nn.Module:
    """Train length and direction of linear layers of the blocks apart.

    Args:
        r: rank of the direction's update.
        alpha: the update is scaled by alpha / r.
        dropout: before A.
        targets: every linear layer of the blocks, those of attention, those outside it, or name patterns
            (`*.query`).

    Raises:
        ModelError: the targets, or one of the patterns, match nothing.
    """
    return low_rank(model, targets, r=r, lora_alpha=alpha, lora_dropout=dropout, use_dora=True)
