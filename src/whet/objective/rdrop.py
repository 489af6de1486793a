"""R-Drop: two passes with different dropout should agree (Liang et al., 2021, equation 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whet.errors import ConfigError
from whet.objective.base import Objective, need_kind
from whet.objective.divergence import KINDS, symmetric
from whet.types import NonNegativeFloat

if TYPE_CHECKING:
    import torch
    from torch import nn

    from whet.data.batch import Batch
    from whet.objective.base import Forward, Setting
    from whet.task.base import Task


@dataclass(kw_only=True)
class RDrop(Objective):
    """Regularised dropout: L(z1) + L(z2) + alpha / 2 * (KL(z1 || z2) + KL(z2 || z1)), z1 and z2 two passes.

    For a regression the squared difference stands for the two divergences. Both passes are in memory at once;
    train/loss is the whole sum: without dropout, twice that of plain.
    Liang et al., 2021, R-Drop: Regularized Dropout for Neural Networks.
    """

    alpha: NonNegativeFloat = 1.0
    """Weight of the divergence; 1 to 5 in the paper."""

    _kind: str = field(init=False, repr=False, default="")

    def check(self, task: Task) -> None:
        need_kind(task, KINDS, "R-Drop compares outputs of whole texts")
        self._kind = task.kind

    def prepare(self, setting: Setting) -> None:
        if not drops(setting.model):
            problem = "nothing is dropped in this model, so both passes are one: set model.dropout"
            raise ConfigError("alpha", problem, self.alpha)

    def __call__(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """The losses of both passes and what they differ by."""
        one, other = forward(batch), forward(batch)
        apart = symmetric(self._kind)(one, other) * forward.weights(batch)
        losses = forward.losses(one, batch) + forward.losses(other, batch)
        return (losses + self.alpha / 2 * apart).sum()


def drops(model: nn.Module) -> bool:
    """Whether any dropout is at work in training, be it a module's or, by the config, an attention's own."""
    from torch import nn

    from whet.model.encoder import dropout_keys

    config = getattr(model, "config", None)
    rates = [getattr(config, key) for key in dropout_keys(config)] if config is not None else []
    rates += [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any(rate for rate in rates)
