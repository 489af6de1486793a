"""Several methods in one model: each puts in its own parts, and all of those train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from whet.config import Method
from whet.errors import ConfigError
from whet.peft.base import freeze

if TYPE_CHECKING:
    from torch import nn


def compose(model: nn.Module, *, parts: list[Method]) -> nn.Module:
    """Apply methods one after the other; what any of them trains is trained.

    Args:
        parts: nodes of config, each with the `_target_` of a method and its settings.

    Raises:
        ConfigError: no parts, or one that isn't a method.
        ModelError: of a part.
    """
    if not parts:
        raise ConfigError("peft.parts", "lists no method; write [{_target_: whet.peft.lora.lora}, …]", parts)
    for place, part in enumerate(parts):
        module = str(getattr(getattr(part, "func", part), "__module__", ""))
        if module.startswith("whet.") and not module.startswith("whet.peft."):
            raise ConfigError(f"peft.parts.{place}", "a part is built by whet.peft.…", module)
    return together(model, parts)


def together(model: nn.Module, parts: Sequence[Callable[[nn.Module], nn.Module]]) -> nn.Module:
    """`model` with all parts in it; each may freeze what the ones before it train."""
    trained: list[nn.Parameter] = []
    for part in parts:
        model = part(model)
        trained += [parameter for parameter in model.parameters() if parameter.requires_grad]
    freeze(model)
    for parameter in trained:
        parameter.requires_grad_(True)
    return model
