"""Folding: what a method adds beside the weights goes into them, and an ordinary model is left."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from whet.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def fold(model: Any, method: str) -> int:
    """Fold every layer that the peft library put in, in place.

    Args:
        model: PEFT applied and trained, in fp32.
        method: its name, for an error.

    Returns:
        How many layers were folded.

    Raises:
        ModelError: a part computes something that no weight can hold.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    left = sorted(_without(model, layers) - plain_names(model))
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        problem = (
            f"can't be folded into the weights ({left[0]}{more} work on what comes in): use the run itself"
        )
        raise ModelError("peft", problem, method)
    for name, layer in layers.items():
        _merge(layer)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return len(layers)


def _without(model: nn.Module, layers: dict[str, Any]) -> set[str]:
    """Names of parameters as they will be once `layers` are folded."""
    found = set()
    for name, _ in model.named_parameters():
        layer = next((prefix for prefix in layers if name.startswith(f"{prefix}.")), None)
        if layer is None:
            found.add(name)
            continue
        part, _, rest = name.removeprefix(f"{layer}.").partition(".")
        own = (*layers[layer].adapter_layer_names, *layers[layer].other_param_names)
        if part == "base_layer":
            found.add(f"{layer}.{rest}")
        elif part not in own:  # an adapter or a gate that hangs there
            found.add(name)
    return found


def plain_names(model: Any) -> set[str]:
    """Parameter names of the architecture as transformers makes it."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        plain = type(model)(copy.deepcopy(model.config))
    return {name for name, _ in plain.named_parameters(remove_duplicate=False)}


def _merge(layer: Any) -> None:
    """Put a layer's update into its weight."""
    import torch
    from transformers.pytorch_utils import Conv1D

    base = layer.get_base_layer()
    if not (hasattr(layer, "lora_E") and isinstance(base, Conv1D)):
        layer.merge()
        return
    with torch.no_grad():  # peft reshapes this one where it should transpose it
        update = layer.lora_B["default"] @ (layer.lora_A["default"] * layer.lora_E["default"])
        base.weight += (update * layer.scaling["default"] / (layer.ranknum["default"] + 1e-5)).T
