"""Of the last block only what the head reads: in training the first token's state is all that is computed.

A sequence classifier of the BERT kind reads one token of the last block's output. The keys and values of all
tokens are needed for it, but the output projection, the feed-forward layer and their norms are not: they work
token by token (Vaswani et al., 2017, equation 2). Leaving them out changes no number but by rounding, and
dropout draws fewer. Where in the block the states may be cut isn't known by name: every module of the block
that gets whole states is tried, and of those that leave outcome and gradients alone the one is taken that
leaves the fewest products to compute.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from whet.errors import one_line
from whet.model.trunk import CANNOT, hooked, outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import nn

    Inputs = dict[str, torch.Tensor]
    Outcome = list[torch.Tensor | None]
    """Logits, then gradients."""

CLOSE = 1e-3
"""How far an outcome may be from the whole block's, relative to its largest number (fp32)."""
NOISE = 1e-6
"""The same, relative to the largest number of all: a gradient that is zero but for rounding."""


class WholeError(Exception):
    """All of the last block is needed; the message says why."""


def narrow_model(model: nn.Module, place: str) -> None:
    """Let `model` compute only the first token from the module `place` on, in training mode.

    Evaluation stays as it is.
    """
    _hook(model.get_submodule(place), lambda module: module.training)


def place_of(model: nn.Module, inputs: Inputs) -> str:
    """The module of the last block whose inputs are best cut to the first token.

    Args:
        model: on its device, PEFT and kernels applied.
        inputs: a batch [batch, width] of two or more texts of unequal length, not as many as the width.

    Raises:
        WholeError: there is none.
    """
    from whet.model.layers import anatomy

    names = anatomy(model).blocks[-1]
    if len(names) > 1:
        raise WholeError("its blocks aren't one module each")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # no dropout: outcomes can be compared
    try:
        found = _searched(model, names[0], inputs)
        if found is not None and _proven(model, found, inputs):
            return found
    except CANNOT as error:
        raise WholeError(one_line(error)) from None
    finally:
        for module, training in modes:
            module.training = training
    raise WholeError("the head reads more of it than the first token, or its parts can't be told apart")


def _searched(model: nn.Module, block: str, inputs: Inputs) -> str | None:
    """The module inside a block that leaves the logits alone and the fewest products to compute."""
    import torch

    with torch.no_grad():
        candidates = _entered(model, block, inputs)
        with _counted(model.get_submodule(block)) as counted:
            logits = model(**inputs).logits
        least, found = counted[0], None
        for name in candidates:
            work = _work(model, name, block, inputs, logits)
            if work < least:
                least, found = work, name
    return found


def _work(model: nn.Module, name: str, block: str, inputs: Inputs, logits: torch.Tensor) -> float:
    """Products left in the block with that module's inputs cut; infinite where the logits are others."""
    with _cut_at(model.get_submodule(name)), _counted(model.get_submodule(block)) as counted:
        try:
            same = alike([logits], [model(**inputs).logits])
        except CANNOT:  # the parts don't fit together
            return math.inf
    return counted[0] if same else math.inf


def _proven(model: nn.Module, name: str, inputs: Inputs) -> bool:
    """Whether logits and gradients stay with that module's inputs cut."""
    whole = _outcome(model, inputs)
    with _cut_at(model.get_submodule(name)):
        return alike(whole, _outcome(model, inputs))


@contextmanager
def _counted(block: nn.Module) -> Iterator[list[float]]:
    """Multiplications of the block's weight matrices with tokens, in one number."""
    import torch

    counted = [0.0]

    def note(module: nn.Module, _: Any, output: Any) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 2:
            counted[0] += weight.numel() * output.numel() / output.shape[-1]

    with hooked(list(block.modules()), note):
        yield counted


def _entered(model: nn.Module, block: str, inputs: Inputs) -> list[str]:
    """Modules inside a block that get whole states, in the order in which the pass comes to them."""
    shape = tuple(inputs["attention_mask"].shape)
    inner = {module: name for name, module in model.get_submodule(block).named_modules() if name}
    found: dict[str, bool] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        states = list(_states(arguments, named))
        good = bool(states) and all(tuple(each.shape[:2]) == shape for each in states)
        name = inner[module]
        found[name] = good and name not in found  # one that is called twice isn't a place

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in inner]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [f"{block}.{name}" for name, good in found.items() if good]


def _states(arguments: tuple[Any, ...], named: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Tensors [batch, width, hidden] among a module's arguments."""
    import torch

    for each in (*arguments, *named.values()):
        if isinstance(each, torch.Tensor) and each.ndim == 3 and each.is_floating_point():
            yield each


def _outcome(model: nn.Module, inputs: Inputs) -> Outcome:
    """Logits, weighted so that no two terms of their sum can cancel out unseen, and that sum's gradients."""
    import torch

    def weighted(given: Inputs) -> torch.Tensor:
        logits: torch.Tensor = model(**given).logits.float()
        return logits * torch.linspace(1, 2, logits.numel(), device=logits.device).view_as(logits)

    return outcome(model, weighted, inputs)


def alike(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes are the same but for rounding."""
    present = [gradient for gradient in one[1:] if gradient is not None]
    noise = NOISE * max((float(gradient.abs().max()) for gradient in present), default=0.0)
    return all(_close(a, b, noise) for a, b in zip(one, other, strict=True))


def _close(one: torch.Tensor | None, other: torch.Tensor | None, noise: float) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool((one - other).abs().max() <= CLOSE * one.abs().max() + noise)


# ---------------------------------------------------------------- hooks


def _hook(module: nn.Module, when: Callable[[nn.Module], bool]) -> Any:
    """Cut the states that `module` gets to the first token; returns the hook's handle."""
    import torch

    def first(each: Any) -> Any:
        whole = isinstance(each, torch.Tensor) and each.ndim == 3 and each.is_floating_point()
        return each[:, :1] if whole else each

    def cut(
        inner: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not when(inner):
            return None
        return tuple(map(first, arguments)), {name: first(each) for name, each in named.items()}

    return module.register_forward_pre_hook(cut, with_kwargs=True)


@contextmanager
def _cut_at(module: nn.Module) -> Iterator[None]:
    """In any mode, for as long as the context lasts."""
    handle = _hook(module, lambda _: True)
    try:
        yield
    finally:
        handle.remove()
