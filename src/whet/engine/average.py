"""Averaged weights beside those that train: judged and saved as the model, never trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whet.averaging.base import Averaging
from whet.averaging.shadow import Shadow
from whet.engine.callbacks import Callback, State

if TYPE_CHECKING:
    import torch
    from torch import nn

    from whet.engine.step import StepResult


@dataclass
class Average(Callback):
    """Follows the weights; a checkpoint holds the average as its model, and the weights beside it."""

    model: nn.Module
    averaging: Averaging
    per_epoch: int
    """Updates of an epoch."""
    _shadow: Shadow | None = field(init=False, repr=False, default=None)

    @property
    def shadow(self) -> Shadow:
        """The average; it starts as the weights of this moment."""
        if self._shadow is None:
            self._shadow = Shadow(self.model, "averaging")
        return self._shadow

    def worn(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts the model is the average."""
        return self.shadow.worn()

    def on_start(self, state: State) -> None:
        """The average of nothing is what training starts from."""
        _ = self.shadow

    def on_update(self, state: State, result: StepResult) -> None:
        share = self.averaging(state.step - 1, state.total, self.per_epoch)
        if share is not None:
            self.shadow.move(share)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights that train."""
        return self.shadow.weights()

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The model was just loaded with the average: keep that, then go on with the weights."""
        self.shadow.load(self.shadow.weights())
        self.shadow.give(tensors)
