"""Gradual unfreezing: blocks thaw from the top while training goes on (Howard & Ruder, 2018, section 3.3).

"Universal Language Model Fine-tuning for Text Classification" (ULMFiT). Their discriminative rates are
`optimizer.layer_decay` (2.6 from layer to layer: 0.385), the slanted triangle is `scheduler=linear`; each
works alone, and a block that thaws joins at the rate that both then give it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whet.peft.base import Companion, accompany
from whet.types import Duration, NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    from torch import nn

HALF = Duration(0.5, "share")


def gradual_unfreezing(
    model: nn.Module, *, thawed: Duration = HALF, layers: NonNegativeInt = 0, blocks: PositiveInt = 1
) -> nn.Module:
    """Train what stands above the blocks at first, then, evenly in time, more and more blocks from the top.

    A frozen block costs no backward pass, and neither optimizer nor weight decay touches it.

    Args:
        thawed: when all of the model trains, the embeddings last (ULMFiT: an epoch for each layer, so 7ep for
            6 blocks).
        layers: blocks that train from the start.
        blocks: so many thaw at a time.
    """
    from whet.model.layers import anatomy
    from whet.peft.none import none

    none(model)
    parts = anatomy(model)
    depths = [(parameter, parts.depth[name]) for name, parameter in model.named_parameters()]
    thaw = Thaw(depths, parts.layers, thawed, layers, blocks)
    model.register_forward_pre_hook(thaw.freeze)
    model.register_forward_hook(thaw.release, always_call=True)
    accompany(model, thaw)
    return model


@dataclass
class Thaw(Companion):
    """Freezes deep parameters for as long as a forward pass in training lasts.

    So autograd leaves them out, and all else (groups, checkpoints, the saved model) sees them as trained.
    What is frozen follows from the step alone.
    """

    depths: list[tuple[nn.Parameter, int]]
    layers: int
    """Blocks of the model."""
    thawed: Duration
    start: int
    """Blocks that train from the start."""
    blocks: int
    """Blocks that thaw at a time."""
    lowest: int = 0
    """Depth from which on parameters train now."""
    _held: list[nn.Parameter] = field(default_factory=list)

    def before_update(self, step: int, total: int, per_epoch: int) -> None:
        self.lowest = self.depth_at(step, self.thawed.steps(per_epoch, total))

    def depth_at(self, step: int, end: int) -> int:
        """Lowest depth that trains at update `step`, if all does from `end` on."""
        first = max(0, self.layers + 1 - self.start)
        stages = -(-first // self.blocks)
        if step >= end:
            return 0
        return first - self.blocks * (step * stages // end)

    def freeze(self, model: nn.Module, *_: Any) -> None:
        """Before a forward pass."""
        if model.training:
            self._held = [p for p, depth in self.depths if depth < self.lowest]
            for parameter in self._held:
                parameter.requires_grad_(False)

    def release(self, *_: Any) -> None:
        """After it."""
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._held = []
