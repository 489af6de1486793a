"""Faster or smaller steps that compute the same: packing, recomputation, compilation."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any, Literal

from whet.engine.warm import once
from whet.errors import ConfigError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from whet.data.batch import Collator
    from whet.engine.precision import Amp

log = logging.getLogger("whet.engine")
Packing = Literal["auto", "on", "off"]
LastBlock = Literal["auto", "whole"]
Compile = bool | Literal["reduce-overhead", "max-autotune"]
PAYS = 0.2
"""Share of padding from which packing is clearly faster (MiniLM on a CPU; it breaks even at about 0.15)."""
GRAPHS = 8
"""Graphs that are compiled of one function at most; further kinds of batches run uncompiled."""


# ---------------------------------------------------------------- packing


def use_packing(
    choice: Packing, model: nn.Module, collator: Collator, amp: Amp, padding: float, blocked: str = ""
) -> dict[str, Any]:
    """Let `model` train on packed rows, if that is wanted and gives what padded batches give.

    Args:
        choice: `auto` packs where the padding is worth it and the model can, `on` always, `off` never.
        model: on its device, PEFT and kernels applied; it gets hooks.
        collator: of the training rows.
        amp: device and number format.
        padding: share of padding in the run's batches.
        blocked: a reason from elsewhere against packing.

    Returns:
        Facts for the run's record.

    Raises:
        ConfigError: `on`, and the model can't.
    """
    from whet.model.packing import UnpackableError, pack_model

    if choice == "off":
        return {"packing": "off"}
    reason = blocked or (_too_little(padding) if choice == "auto" else "")
    try:
        if reason:
            raise UnpackableError(reason)
        inputs = collator(probe(collator.tokens.lengths), amp.device).inputs
        pack_model(model, inputs, amp.autocast)
    except UnpackableError as error:
        if choice == "on":
            problem = f"{_kind(model)} can't be packed: {one_line(error)}"
            raise ConfigError("engine.packing", problem, choice) from None
        log.info("packing off: %s", error)
        return {"packing": "off", "because": one_line(error)}
    log.info("packing on: %.1f%% of the batches is padding that the blocks don't compute", 100 * padding)
    return {"packing": "on"}


def _kind(model: nn.Module) -> str:
    """The architecture's name in transformers."""
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def _too_little(padding: float) -> str:
    if padding >= PAYS:
        return ""
    return f"only {padding:.1%} of the batches is padding, packing pays from {PAYS:.0%} on"


def probe(lengths: NDArray[np.int64], most: int = 8) -> NDArray[np.int64]:
    """Up to `most` rows, evenly from the shortest to the longest, in no order of length."""
    import numpy as np

    order = lengths.argsort(kind="stable")
    rows = order[np.unique(np.linspace(0, len(order) - 1, most).round().astype(int))]
    return np.concatenate([rows[::2], rows[1::2]])


# ---------------------------------------------------------------- the last block


def use_narrow(
    choice: LastBlock,
    model: nn.Module,
    inputs: Callable[[], dict[str, torch.Tensor]],
    key: str,
    blocked: str = "",
) -> dict[str, Any]:
    """Let `model` leave out of its last block, in training, what its head doesn't read.

    Args:
        choice: `auto` or `whole`.
        model: on its device, PEFT and kernels applied; it gets a hook.
        inputs: makes a batch of texts of unequal length, not as many as the longest has tokens.
        key: all that the choice depends on, for `whet.engine.warm.once`.
        blocked: a reason from elsewhere against it.

    Returns:
        Facts for the run's record.
    """
    from whet.model.narrow import narrow_model
    from whet.model.trunk import extracts_features

    if choice == "whole":
        return {"last_block": "whole"}
    if extracts_features(model):
        blocked = "nothing below the head trains"
    place, reason = ("", blocked) if blocked else once(key, "last block", lambda: _place(model, inputs()))
    if not place:
        log.info("last block: computed whole (%s)", reason)
        return {"last_block": "whole", "because": reason}
    narrow_model(model, place)
    log.info("last block: training computes only the first token behind its attention (from %s on)", place)
    return {"last_block": "first token", "from": place}


def _place(model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[str, str]:
    """Where it may be cut, or why not."""
    from whet.model.narrow import WholeError, place_of

    try:
        return place_of(model, inputs), ""
    except WholeError as error:
        return "", str(error)


# ---------------------------------------------------------------- recomputation


def checkpoint_gradients(model: nn.Module) -> None:
    """Keep only what enters each block, and compute the rest again in the backward pass.

    Chen et al., 2016 (Training Deep Nets with Sublinear Memory Cost). The same random numbers come again,
    so no bit of a gradient changes. What lies below the lowest trained parameter isn't computed twice.

    Raises:
        ConfigError: transformers hasn't got it for this architecture.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        problem = (
            f"transformers hasn't got it for {_kind(model)}; leave it false and set a smaller batching.size"
        )
        raise ConfigError("engine.gradient_checkpointing", problem, True)
    named = "activation_checkpointing_enable"  # earlier releases of transformers have only the other name
    enable: Any = getattr(model, named, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    forget: Any = model.disable_input_require_grads
    forget()  # only the reentrant kind needs embeddings that ask for gradients


# ---------------------------------------------------------------- compilation


def need_compiler(device: torch.device) -> None:
    """Look for what torch.compile needs on `device`.

    Raises:
        ConfigError: it isn't there.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ConfigError("engine.compile", "needs the package triton on a GPU; leave it false", True)
        return
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        problem = f"needs a C++ compiler, and there is no {compiler}: install one, set CXX, or leave it false"
        raise ConfigError("engine.compile", problem, True)


def compile_model(model: nn.Module, choice: Compile, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile `model` in place: the first steps take long, names of parameters stay.

    Numbers of rows and tokens are symbols in the compiled code, so there are few graphs: one for a single row
    and one for more. Quick kernels that torch.compile can't follow give way to torch's own.

    Args:
        model: with all hooks that it is to have.
        choice: True or a mode of torch.compile; False leaves the model alone.
        backend: of torch.compile.
    """
    if choice is False:
        return
    import torch._dynamo

    make_traceable(model)
    torch._dynamo.config.recompile_limit = GRAPHS
    model.compile(dynamic=True, backend=backend, mode=None if choice is True else choice)


def make_traceable(model: nn.Module) -> None:
    """Undo what `quicken` put in and torch.compile can't follow; in evaluation both are equal to the bit."""
    from torch import nn

    from whet.model.kernels import ATTENTION, QuickDropout, RowEmbedding

    plain: dict[type[nn.Module], type[nn.Module]] = {QuickDropout: nn.Dropout, RowEmbedding: nn.Embedding}
    for module in model.modules():
        if type(module) in plain:
            module.__class__ = plain[type(module)]
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) == ATTENTION:
        config._attn_implementation = "sdpa"


def uncompiled() -> contextlib.AbstractContextManager[None]:
    """While it lasts, compiled models run as if they weren't: so evaluation is that of the exported model."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    import torch

    stance: Callable[[str], contextlib.AbstractContextManager[None]] = torch.compiler.set_stance
    return stance("force_eager")
