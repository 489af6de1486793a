"""Compacter: adapters whose matrices are sums of Kronecker products (Karimi Mahabadi et al., 2021).

"Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", equations 4 and 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.errors import ModelError
from whet.peft.bottleneck import Activation, Placement, place
from whet.types import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from torch import nn


def compacter(
    model: nn.Module,
    *,
    n: PositiveInt = 4,
    rank: PositiveInt = 1,
    placement: Placement = "houlsby",
    reduction: PositiveInt = 16,
    width: PositiveInt | None = None,
    activation: Activation = "gelu",
    scale: PositiveFloat = 1.0,
) -> nn.Module:
    """Put h + s U f(D h) into every block, with D and U = sum_i A_i ⊗ (s_i t_i); all blocks share the A_i.

    The t_i of U start at zero, so training starts from the pretrained model.

    Args:
        n: number and size of the A_i; hidden width and bottleneck must be multiples of it.
        rank: of each s_i t_i.
        placement: as for peft=bottleneck.
        reduction: the bottleneck is that many times narrower than the hidden states.
        width: of the bottleneck, in place of `reduction`.
        activation: f.
        scale: s.

    Raises:
        ModelError: the widths aren't multiples of `n`, or the blocks' sublayers don't end in linear maps.
    """
    import torch
    from torch import nn

    from whet.peft.modules import Adapter, Kronecker

    rules = nn.Parameter(torch.empty(n, n, n).normal_(std=n**-0.5))

    def make(hidden: int) -> nn.Module:
        narrow = width or max(n, hidden // reduction)
        if hidden % n or narrow % n:
            problem = f"hidden states are {hidden} wide and the bottleneck {narrow}: both must be multiples"
            raise ModelError("peft.n", problem, n)
        down = Kronecker(rules, hidden, narrow, rank, zero=False)
        return Adapter(down, Kronecker(rules, narrow, hidden, rank, zero=True), activation, scale)

    return place(model, placement, "compacter", make)
