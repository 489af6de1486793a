"""What every method shares: `apply(model, …) -> model` decides what trains; new tensors always do.

A method that has something to do while training goes on gives the model a `Companion`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from whet.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from whet.model.encoder import Loaded

    Method = Callable[[nn.Module], nn.Module]


class Companion:
    """What a method does at each update; does nothing at every hook.

    Steps are counted as in `whet.engine.plan`: a resumed run goes on with the step that comes next.
    """

    def before_update(self, step: int, total: int, per_epoch: int) -> None:
        """Before the gradient of update `step` (from 0) of `total` is computed."""

    def after_gradient(self) -> None:
        """Before gradients are clipped; they are those of the whole update, unscaled."""

    def after_update(self, step: int) -> None:
        """After an update was made, its gradients still there; not after one that was left out."""

    def state(self) -> dict[str, torch.Tensor]:
        """What a resumed run needs."""
        return {}

    def load_state(self, saved: dict[str, torch.Tensor]) -> None:
        """Take back what `state` gave."""


_COMPANIONS = "whet_companions"
INSERTED = "whet_inserted"
"""Attribute of an input embedding whose method puts soft tokens into texts: a list that during a forward pass
holds the longer ids [batch, length] that the model got, and where soft tokens stand."""


def accompany(model: nn.Module, companion: Companion) -> None:
    """Let the engine call `companion` while it trains `model`."""
    setattr(model, _COMPANIONS, [*companions(model), companion])


def companions(model: nn.Module) -> list[Companion]:
    """Those that go along with the training of `model`, in the order of their methods."""
    return list(getattr(model, _COMPANIONS, []))


def apply(method: Method, loaded: Loaded) -> nn.Module:
    """Apply `method`, then let the head and every newly initialised tensor train.

    Libraries that freeze by name lose poolers and heads that loading had to initialise at random; here they
    are followed as objects, whatever the method renames.

    Raises:
        ModelError: the method matches nothing in this model.
    """
    from whet.model.layers import head_parameters

    always = loaded.new | set(head_parameters(loaded.model))
    tensors = [parameter for name, parameter in loaded.model.named_parameters() if name in always]
    model = method(loaded.model)
    for tensor in tensors:
        tensor.requires_grad_(True)
    return model


def freeze(model: nn.Module) -> None:
    """No parameter trains."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def trained_names(model: nn.Module) -> list[str]:
    """Parameters that train."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def nothing_matched(key: str, value: object, model: nn.Module, hint: str) -> ModelError:
    """The error of a selector that selects nothing."""
    return ModelError(key, f"matches nothing in {type(model).__name__}; {hint}", value)
