"""LoRA: a low-rank update beside frozen weights (Hu et al., 2022, W + (alpha / r) B A, equation 3)."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Literal

from whet.peft.base import freeze, nothing_matched
from whet.types import PositiveFloat, PositiveInt, Probability

if TYPE_CHECKING:
    from torch import nn

Targets = Literal["all", "attention", "feed_forward"] | list[str]


def lora(
    model: nn.Module,
    *,
    r: PositiveInt = 8,
    alpha: PositiveFloat = 16.0,
    dropout: Probability = 0.05,
    targets: Targets = "all",
) -> nn.Module:
    """Put low-rank maps beside linear layers of the blocks, found by looking at the model.

    Args:
        r: rank.
        alpha: the update is scaled by alpha / r.
        dropout: before A.
        targets: every linear layer of the blocks, those of attention, those outside it, or name patterns
            (`*.query`).

    Raises:
        ModelError: the targets, or one of the patterns, match nothing.
    """
    return low_rank(model, targets, r=r, lora_alpha=alpha, lora_dropout=dropout)


def low_rank(model: nn.Module, targets: Targets, **settings: object) -> nn.Module:
    """Freeze `model` and put peft's LoRA layers around its `targets`.

    Args:
        model: changed in place.
        targets: as `lora`'s.
        settings: of peft's LoraConfig.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = target_names(model, targets)
    freeze(model)
    config = LoraConfig(target_modules=names, fan_in_fan_out=transposed(model, names), **settings)
    adapted: nn.Module = inject_adapter_in_model(config, model)
    return adapted


def target_names(model: nn.Module, targets: Targets) -> list[str]:
    """Full module names of the linear layers that `targets` selects."""
    from whet.model.layers import linear_layers

    names = linear_layers(model)
    if isinstance(targets, list):
        matches = {pattern: set(fnmatch.filter(names, pattern)) for pattern in targets}
        idle = [pattern for pattern, matched in matches.items() if not matched]
        chosen = set().union(*matches.values())
        found = [] if idle else [name for name in names if name in chosen]
        targets = idle or targets
    elif targets == "all":
        found = names
    else:
        found = [name for name in names if _in_attention(name) == (targets == "attention")]
    if not found:
        kinds = sorted({name.rpartition(".")[2] for name in names})
        raise nothing_matched(
            "peft.targets", targets, model, f"linear layers in its blocks: {', '.join(kinds) or 'none'}"
        )
    return found


def _in_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.lower().split(".")[-4:])


def transposed(model: nn.Module, names: list[str]) -> bool:
    """Whether linear maps keep their matrix as [in, out] (GPT-2's `Conv1D`)."""
    return any(type(model.get_submodule(name)).__name__ == "Conv1D" for name in names)
