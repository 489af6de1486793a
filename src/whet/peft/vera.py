"""VeRA: one pair of random matrices for all layers, and trained vectors between them (Kopiczko et al., 2024).

"VeRA: Vector-based Random Matrix Adaptation", equation 2: W + diag(b) B diag(d) A. A and B follow from a
seed, so only the vectors are saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.peft.base import freeze
from whet.peft.lora import Targets, target_names, transposed
from whet.types import NonNegativeInt, PositiveFloat, PositiveInt, Probability

if TYPE_CHECKING:
    from torch import nn


def vera(
    model: nn.Module,
    *,
    r: PositiveInt = 256,
    d_initial: PositiveFloat = 0.1,
    dropout: Probability = 0.0,
    targets: Targets = "all",
    projection_seed: NonNegativeInt = 0,
) -> nn.Module:
    """Put scaled random maps beside linear layers of the blocks.

    Args:
        r: rank.
        d_initial: what every element of d starts at; b starts at zero.
        dropout: before A.
        targets: every linear layer of the blocks, those of attention, those outside it, or name patterns
            (`*.query`).
        projection_seed: A and B follow from it.

    Raises:
        ModelError: the targets, or one of the patterns, match nothing.
    """
    from peft.tuners.vera import VeraModel

    from peft import VeraConfig

    names = target_names(model, targets)
    freeze(model)
    config = VeraConfig(
        r=r,
        d_initial=d_initial,
        vera_dropout=dropout,
        target_modules=names,
        projection_prng_key=projection_seed,
        save_projection=True,
        fan_in_fan_out=transposed(model, names),
    )
    adapted: nn.Module = VeraModel(model, config, "default").model
    return adapted
