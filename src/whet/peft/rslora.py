"""Rank-stabilised LoRA: W + (alpha / sqrt(r)) B A (Kalajdzievski, 2023, theorem 3.2).

"A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA": with alpha / r, larger ranks learn no faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.peft.lora import Targets, low_rank
from whet.types import PositiveFloat, PositiveInt, Probability

if TYPE_CHECKING:
    from torch import nn


def rslora(
    model: nn.Module,
    *,
    r: PositiveInt = 16,
    alpha: PositiveFloat = 16.0,
    dropout: Probability = 0.05,
    targets: Targets = "all",
) -> nn.Module:
    """Put low-rank maps beside linear layers of the blocks, at a scale that suits every rank.

    Args:
        r: rank.
        alpha: the update is scaled by alpha / sqrt(r).
        dropout: before A.
        targets: every linear layer of the blocks, those of attention, those outside it, or name patterns
            (`*.query`).

    Raises:
        ModelError: the targets, or one of the patterns, match nothing.
    """
    return low_rank(model, targets, r=r, lora_alpha=alpha, lora_dropout=dropout, use_rslora=True)
