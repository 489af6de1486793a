"""A second value for every trained parameter, which a model may put on for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from whet.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn


class Shadow:
    """Starts as a copy of the parameters that train.

    Args:
        model: whose they are.
        key: config key of what wants it, for the error.

    Raises:
        ConfigError: each process holds only a part of every parameter.
    """

    def __init__(self, model: nn.Module, key: str) -> None:
        self._own = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        if any(hasattr(tensor, "full_tensor") for tensor in self._own.values()):
            raise ConfigError("engine.parallel", f"not together with {key}: take ddp", "fsdp")
        self.values = {name: tensor.detach().clone() for name, tensor in self._own.items()}

    def move(self, share: float) -> None:
        """Go this share of the way from here to the model's weights: 0 stays, 1 arrives."""
        import torch

        with torch.no_grad():
            towards = [tensor.detach() for tensor in self._own.values()]
            torch._foreach_lerp_(list(self.values.values()), towards, share)

    @contextlib.contextmanager
    def worn(self) -> Iterator[None]:
        """While it lasts the model has these values; its own are untouched and come back."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's own values, by name."""
        return {name: tensor.detach() for name, tensor in self._own.items()}

    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take other values, of the same names and shapes."""
        for name, tensor in self.values.items():
            tensor.copy_(values[name])

    def give(self, values: Mapping[str, torch.Tensor]) -> None:
        """Put other values into the model."""
        for name, tensor in self._own.items():
            tensor.data.copy_(values[name])

    def _exchange(self) -> None:
        """Storages change places: nothing is copied."""
        for name, tensor in self._own.items():
            tensor.data, self.values[name] = self.values[name], tensor.data
