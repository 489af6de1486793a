"""Parameter groups: which learning rate and weight decay each tensor gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whet.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float, head_lr: float | None
) -> list[dict[str, Any]]:
    """Groups of the tensors that train.

    A tensor at depth d of L blocks learns at `lr * layer_decay ** (L + 1 - d)` (Clark et al., 2020, ELECTRA,
    appendix; ULMFiT's discriminative rates), the head at `head_lr` where given. Biases and norms (every
    one-dimensional tensor, and what is named bias) aren't decayed.

    Raises:
        ConfigError: nothing trains.
    """
    from whet.model.layers import anatomy

    parts = anatomy(model)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_head = name in parts.head and head_lr is not None
        rate = (
            head_lr
            if in_head and head_lr is not None
            else lr * layer_decay ** (parts.layers + 1 - parts.depth[name])
        )
        decay = 0.0 if parameter.ndim < 2 or name.endswith("bias") else weight_decay
        group = groups.setdefault(
            (rate, decay), {"params": [], "names": [], "lr": rate, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ConfigError("peft", "nothing is left to train")
    for group in groups.values():
        group["base_lr"] = group["lr"]
        group["param_names"] = group.pop("names")
    return list(groups.values())
