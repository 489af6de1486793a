"""What every method shares: `apply(model, …) -> model` decides what trains; new tensors always do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from whet.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from whet.model.encoder import Loaded

    Method = Callable[[nn.Module], nn.Module]


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
