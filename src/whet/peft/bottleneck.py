"""Bottleneck adapters: small trained layers between frozen ones (Houlsby et al., 2019).

"Parameter-Efficient Transfer Learning for NLP". Of the placements, `pfeiffer` has half as many (Pfeiffer et
al., 2021, "AdapterFusion", section 3.3), `parallel` reads what the feed-forward layer reads (He et al., 2022,
"Towards a Unified View of Parameter-Efficient Transfer Learning", table 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from whet.peft.base import freeze, nothing_matched
from whet.types import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from torch import nn

Placement = Literal["houlsby", "pfeiffer", "parallel"]
Activation = Literal["relu", "gelu", "silu", "tanh"]
_HINT = "set peft.placement=pfeiffer or choose peft=lora"


def bottleneck(
    model: nn.Module,
    *,
    placement: Placement = "pfeiffer",
    reduction: PositiveInt = 16,
    width: PositiveInt | None = None,
    activation: Activation = "relu",
    scale: PositiveFloat = 1.0,
) -> nn.Module:
    """Put h + s U f(D h) into every block; U starts at zero, so training starts from the pretrained model.

    Args:
        placement: houlsby: after attention and after feed-forward; pfeiffer: after feed-forward alone;
            parallel: beside feed-forward. Each before the residual is added.
        reduction: the bottleneck is that many times narrower than the hidden states.
        width: of the bottleneck, in place of `reduction`.
        activation: f.
        scale: s.

    Raises:
        ModelError: the blocks' sublayers don't end in linear maps.
    """
    from torch import nn

    from whet.peft.modules import Adapter, silent

    def make(hidden: int) -> nn.Module:
        narrow = width or max(1, hidden // reduction)
        return Adapter(nn.Linear(hidden, narrow), silent(nn.Linear(narrow, hidden)), activation, scale)

    return place(model, placement, "bottleneck", make)


def place(model: nn.Module, placement: Placement, name: str, make: Callable[[int], nn.Module]) -> nn.Module:
    """Freeze `model` and put adapters into its blocks.

    Args:
        model: changed in place.
        placement: as `bottleneck`'s.
        name: under which each adapter hangs below the linear map that ends the sublayer.
        make: an adapter for hidden states of a given width.

    Raises:
        ModelError: no sublayer ends in a linear map.
    """
    from whet.model.sublayers import sublayers
    from whet.peft.modules import outputs_of, put_after, put_beside

    found = sublayers(model)
    chosen = found.found if placement == "houlsby" else found.of("feed_forward")
    if not chosen or (placement == "houlsby" and not found.of("attention")):
        raise nothing_matched("peft.placement", placement, model, f"no linear map ends a sublayer; {_HINT}")
    freeze(model)
    for sublayer in chosen:
        end = model.get_submodule(sublayer.end)
        adapter = make(outputs_of(end))
        if placement == "parallel":
            put_beside(model.get_submodule(sublayer.starts[0]), end, name, adapter)
        else:
            put_after(end, name, adapter)
    return model
