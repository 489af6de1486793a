"""IA3: trained factors on keys, values and what is between the feed-forward maps (Liu et al., 2022).

"Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", section 3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from whet.peft.base import freeze, nothing_matched

if TYPE_CHECKING:
    from torch import nn


def ia3(model: nn.Module, *, targets: Literal["all", "attention", "feed_forward"] = "all") -> nn.Module:
    """Scale each element of keys, values and inner feed-forward activations by a factor that starts at one.

    Where one linear map makes queries, keys and values (GPT-2, ModernBERT), its whole output is scaled.

    Args:
        targets: both, keys and values alone, or feed-forward alone.

    Raises:
        ModelError: the blocks have no such linear maps.
    """
    from peft import IA3Config, inject_adapter_in_model
    from whet.model.sublayers import sublayers
    from whet.peft.lora import transposed

    found = sublayers(model)
    attention = [] if targets == "feed_forward" else list(dict.fromkeys([*found.keys, *found.values]))
    inner = [] if targets == "attention" else [sublayer.end for sublayer in found.of("feed_forward")]
    if not attention and targets != "feed_forward":
        hint = "its attention has no linear maps: set peft.targets=feed_forward, or choose peft=bitfit"
        raise nothing_matched("peft.targets", targets, model, hint)
    if not inner and targets != "attention":
        raise nothing_matched("peft.targets", targets, model, "its blocks have no feed-forward layer")
    freeze(model)
    names = [*attention, *inner]
    config = IA3Config(
        target_modules=names, feedforward_modules=inner, fan_in_fan_out=transposed(model, names)
    )
    adapted: nn.Module = inject_adapter_in_model(config, model)
    return adapted
