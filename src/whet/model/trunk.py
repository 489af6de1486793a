"""Cutting a model above its frozen layers, and running it from there on stored hidden states.

Nothing is known of architectures here. One forward pass shows which blocks depend on no trained parameter and
draw no random numbers; a cut is used only if a model run from the states at that cut gives, on a real batch,
the very loss, gradients and logits of the whole model.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whet.data.states import STATES, Keep

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    Inputs = dict[str, torch.Tensor]
    Mask = NDArray[np.bool_]
    Context = Callable[[], contextlib.AbstractContextManager[None]]

log = logging.getLogger("whet.model")
CANNOT = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What a model may raise when it is run on states that it can't start from."""


class UncuttableError(Exception):
    """This model can't be started above its frozen layers; the message says why."""


@dataclass(frozen=True)
class Cut:
    """Where a model is cut, and what its blocks hand on there."""

    block: int
    """Blocks below, counted from 1."""
    layers: int
    """Blocks of the model."""
    names: tuple[str, ...]
    """Module of each block below, bottom first."""
    calls: int
    """How often the topmost of them runs in one pass."""
    items: int | None
    """Length of the tuple that a block returns; None where it returns the states alone."""
    length_first: bool
    """States are [length, batch, width] instead of [batch, length, width]."""
    width: int
    """Hidden size."""
    dtype: torch.dtype
    keep: Keep = "all"
    alone: bool = False
    """The one kept token of a text is all that the model is given of it."""
    entrance: str | None = None
    """Module that makes what enters the first block, left out too."""
    entrance_width: int = 0

    def told(self) -> str:
        """For a log line."""
        above = "" if self.block < self.layers else ", only the head runs"
        kept = {"all": "every token", "first": "the first token", "last": "the last token"}[self.keep]
        return f"blocks 1 to {self.block} of {self.layers}{above}, {kept} of a text"


# ---------------------------------------------------------------- rest


def extracts_features(model: nn.Module) -> bool:
    """Whether nothing up to the last block trains: the trunk only yields features."""
    from whet.model.layers import anatomy

    parts = anatomy(model)
    return all(
        parts.depth[name] > parts.layers
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    )


def resting(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """Modules of the trunk that lie below the trained layers: their output depends on no trained parameter.

    What belongs to a block that trains isn't among them, even where it comes before all that trains in it
    (the dropout before LoRA's A).

    Args:
        model: any model of transformers.
        inputs: a batch.
    """
    import torch

    graded: dict[nn.Module, bool] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        graded[module] = graded.get(module, False) or any(t.requires_grad for t in tensors_of(output))

    with hooked(_outside_trained_blocks(model), note), torch.enable_grad():
        model(**inputs)
    still = [m for m, moves in graded.items() if not moves and not trains(m)]
    return list(dict.fromkeys(inner for module in still for inner in module.modules()))


def _outside_trained_blocks(model: nn.Module) -> list[nn.Module]:
    """Modules of the trunk."""
    from whet.model.layers import anatomy, trunk_prefix

    blocks = [model.get_submodule(name) for names in anatomy(model).blocks for name in names]
    inside = {inner for block in blocks if trains(block) for inner in block.modules()}
    prefix = trunk_prefix(model)
    named = [(f"{name}.", module) for name, module in model.named_modules() if module is not model]
    return [module for name, module in named if name.startswith(prefix) and module not in inside]


def keep_at_rest(model: nn.Module, modules: list[nn.Module]) -> Any:
    """Let `modules` stay in evaluation mode while `model` trains; returns the hook's handle."""

    def calm(*_: Any) -> None:
        if model.training:
            for module in modules:
                if module.training:
                    module.training = False

    return model.register_forward_pre_hook(calm)


def trains(module: nn.Module) -> bool:
    """Whether any parameter of it does."""
    return any(parameter.requires_grad for parameter in module.parameters())


# ---------------------------------------------------------------- looking


@dataclass
class Seen:
    """What one pass in training mode shows of a block."""

    output: Any = None
    calls: int = 0
    graded: bool = False
    drawn: bool = False
    """Random numbers were drawn before it was done."""


@dataclass
class Trace:
    """What one pass shows of a model."""

    names: list[str]
    seen: dict[str, Seen] = field(default_factory=dict)
    entrance: str | None = None
    entrance_width: int = 0

    def highest(self) -> int:
        """Blocks from the bottom that depend on no trained parameter."""
        found = 0
        for name in self.names:
            if name not in self.seen or self.seen[name].graded:
                break
            found += 1
        return found


def trace(model: nn.Module, inputs: Inputs) -> Trace:
    """Watch one pass in training mode.

    Raises:
        UncuttableError: a block isn't one module.
    """
    import torch

    from whet.model.layers import anatomy

    blocks = anatomy(model).blocks
    if any(len(names) > 1 for names in blocks):
        raise UncuttableError("its blocks aren't one module each")
    found = Trace([names[0] for names in blocks])
    modules = {model.get_submodule(name): name for name in found.names}
    before = generators()
    model.train()

    def note(module: nn.Module, _: Any, output: Any) -> None:
        seen = found.seen.setdefault(modules[module], Seen())
        seen.output, seen.calls = output, seen.calls + 1
        seen.graded |= any(tensor.requires_grad for tensor in tensors_of(output))
        seen.drawn |= generators() != before

    with hooked(list(modules), note), _watched_entrance(model, found), torch.enable_grad():
        model(**inputs)
    return found


@contextlib.contextmanager
def _watched_entrance(model: nn.Module, found: Trace) -> Iterator[None]:
    """Find the module whose output is the very tensor that enters the first block."""
    import torch

    made: dict[int, tuple[str, torch.Tensor]] = {}
    names = {m: name for name, m in model.named_modules() if not name.startswith(tuple(found.names))}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 3:
            made[id(output)] = names[module], output  # of a module and its last part, the module comes later

    def enter(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = arguments[0] if arguments else named.get("hidden_states")
        if found.entrance is None and id(hidden) in made:
            found.entrance, tensor = made[id(hidden)]
            found.entrance_width = tensor.shape[-1]

    handle = model.get_submodule(found.names[0]).register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with hooked(list(names), note):
            yield
    finally:
        handle.remove()


def generators() -> tuple[bytes, ...]:
    """States of the global random generators, to see whether anything was drawn."""
    import numpy as np
    import torch

    _, keys, place, *_ = np.random.get_state(legacy=True)
    states = [torch.get_rng_state().numpy().tobytes(), np.asarray(keys).tobytes(), str(place).encode()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state().numpy().tobytes())
    return (*states, repr(hash(random.getstate())).encode())


@contextlib.contextmanager
def hooked(modules: list[nn.Module], note: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    """Call `note(module, arguments, output)` after every forward pass of `modules`."""
    handles = [module.register_forward_hook(note) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors_of(thing: Any) -> list[torch.Tensor]:
    """Every tensor in an output: tuples, lists and model outputs are opened."""
    import torch

    if isinstance(thing, torch.Tensor):
        return [thing]
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


# ---------------------------------------------------------------- cutting


def find_cut(
    model: nn.Module, inputs: Inputs, loss: Callable[[Inputs], torch.Tensor], autocast: Context, exact: bool
) -> Cut:
    """The highest cut from which the model gives what the whole model gives.

    Args:
        model: with its PEFT method applied, and with what rests at rest.
        inputs: a batch of at least three texts of unequal length, not as many texts as tokens.
        loss: of inputs (STATES among them or not), a scalar, as training computes it.
        autocast: makes the context of a forward pass.
        exact: the same to the bit; else closely (a device whose kernels add in any order).

    Raises:
        UncuttableError: there is none; the message says why.
    """
    with autocast():
        seen = trace(model, inputs)
    highest = seen.highest()
    if not highest:
        raise UncuttableError("the first block trains, or something below it")
    drawn = [seen.seen[name].drawn for name in seen.names[:highest]]
    if drawn[0]:
        raise UncuttableError(f"random numbers are drawn in the frozen layers ({_dropouts(model, seen)})")
    for block in range(drawn.index(True) if True in drawn else highest, 0, -1):
        for cut in _candidates(model, seen, block, inputs):
            if is_faithful(model, cut, inputs, loss, autocast, exact):
                return cut
    raise UncuttableError(
        f"{type(model).__name__} doesn't give the same from the states of any block as from the texts"
    )


def _candidates(model: nn.Module, seen: Trace, block: int, inputs: Inputs) -> Iterator[Cut]:
    """Ways to cut above `block`, the quickest first."""
    import torch

    last = seen.seen[seen.names[block - 1]]
    items = len(last.output) if isinstance(last.output, (tuple, list)) else None
    states = last.output if items is None else last.output[0] if items else None
    batch, length = inputs["attention_mask"].shape
    if not isinstance(states, torch.Tensor) or states.ndim != 3:
        return
    rows_first = states.shape[0] == batch
    if not rows_first and tuple(states.shape[:2]) != (length, batch):
        return
    pooled = rows_first and states.shape[1] != length
    keeps: tuple[Keep, ...] = ("first", "last", "all") if block == len(seen.names) else ("all",)
    for keep in keeps[:1] if pooled else keeps:
        ways = itertools.product((True, False) if keep != "all" else (False,), (seen.entrance, None))
        for alone, entrance in dict.fromkeys(ways):
            yield Cut(
                block=block, layers=len(seen.names), names=tuple(seen.names[:block]), calls=last.calls,
                items=items, length_first=not rows_first, width=states.shape[2], dtype=states.dtype,
                keep=keep, alone=alone, entrance=entrance, entrance_width=seen.entrance_width,
            )  # fmt: skip


def _dropouts(model: nn.Module, seen: Trace) -> str:
    """The first active dropout of the trunk, that a reader can look for."""
    from whet.model.layers import trunk_prefix

    for name, module in model.named_modules():
        rate = getattr(module, "p", None)
        inside = name.startswith(trunk_prefix(model)) and module.training
        if inside and isinstance(rate, float) and rate > 0:
            return f"{name}, p={rate:g}"
    return f"{seen.names[0]} or before it"


def is_faithful(
    model: nn.Module,
    cut: Cut,
    inputs: Inputs,
    loss: Callable[[Inputs], torch.Tensor],
    autocast: Context,
    exact: bool,
) -> bool:
    """Whether loss and gradients in training, and logits in evaluation, are those of the whole model.

    Args: as `find_cut`'s.
    """

    def logits(given: Inputs) -> torch.Tensor:
        with autocast():
            found: torch.Tensor = model(**given).logits
        return found

    try:
        model.eval()
        states = restricted(states_at(model, cut, inputs, autocast), cut, inputs)
        for training, output in ((True, loss), (False, logits)):
            model.train(training)
            plain = outcome(model, output, inputs)
            with started_above(model, cut):
                above = outcome(model, output, given(cut, inputs, states))
            if not _alike(plain, above, exact):
                log.debug("%s: another outcome (training %s)", cut, training)
                return False
    except CANNOT as error:
        log.debug("%s: %s", cut, error)
        return False
    finally:
        model.train()
    return True


def restricted(states: torch.Tensor, cut: Cut, inputs: Inputs) -> torch.Tensor:
    """States [batch, length, width] as they come back from the store: zero where nothing is kept."""
    import torch

    from whet.data.states import spans

    mask = inputs["attention_mask"].bool().cpu().numpy()
    kept = torch.zeros(*mask.shape, states.shape[2], dtype=states.dtype, device=states.device)
    for row, (start, end) in enumerate(spans(mask, cut.keep)):
        kept[row, start:end] = states[row, start:end]
    return kept


def given(cut: Cut, inputs: Inputs, states: torch.Tensor) -> Inputs:
    """What the model gets of a batch [batch, length] in place of what it gets without the cut."""
    import torch

    from whet.data.states import spans

    whole = {**inputs, STATES: states}
    if not cut.alone:
        return whole
    starts = [start for start, _ in spans(inputs["attention_mask"].bool().cpu().numpy(), cut.keep)]
    places = torch.tensor(starts, device=states.device)
    rows = torch.arange(len(starts), device=states.device)
    return {name: tensor[rows, places][:, None] for name, tensor in whole.items()}


def outcome(
    model: nn.Module, output: Callable[[Inputs], torch.Tensor], inputs: Inputs
) -> list[torch.Tensor | None]:
    """The output and its gradients, the random numbers being those of seed 0."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = [inputs["attention_mask"].device] if inputs["attention_mask"].is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(0)
        found = output(inputs)
        gradients = torch.autograd.grad(found.float().sum(), trained, allow_unused=True)
    return [found.detach(), *gradients]


def _alike(one: list[torch.Tensor | None], other: list[torch.Tensor | None], exact: bool) -> bool:
    return all(_equal(a, b, exact) for a, b in zip(one, other, strict=True))


def _equal(one: torch.Tensor | None, other: torch.Tensor | None, exact: bool) -> bool:
    """The same to the bit, or within a thousandth of the largest number."""
    import torch

    if one is None or other is None:
        return one is other
    if exact:
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=0, atol=1e-3 * float(one.abs().max()))


# ---------------------------------------------------------------- running


class _ReachedError(Exception):
    """The states are there; the layers above needn't run."""


def states_at(model: nn.Module, cut: Cut, inputs: Inputs, autocast: Context) -> torch.Tensor:
    """[batch, length, width] states at the cut; nothing above it runs."""
    import torch

    found: list[Any] = []

    def note(_module: nn.Module, _arguments: Any, output: Any) -> None:
        found.append(output if cut.items is None else output[0])
        if len(found) == cut.calls:
            raise _ReachedError

    last = model.get_submodule(cut.names[-1])
    with torch.no_grad(), hooked([last], note), autocast(), contextlib.suppress(_ReachedError):
        model(**inputs)
    states: torch.Tensor = found[-1]
    return states.transpose(0, 1) if cut.length_first else states


@contextlib.contextmanager
def started_above(model: nn.Module, cut: Cut) -> Iterator[None]:
    """`start_above` for as long as the context lasts."""
    remove = start_above(model, cut)
    try:
        yield
    finally:
        remove()


def start_above(model: nn.Module, cut: Cut) -> Callable[[], None]:
    """Let `model` take states (STATES among its arguments) and start above the cut.

    While such a pass runs, stand-ins take the places of the frozen layers; nothing else of the model changes.
    Without states it runs whole.

    Returns:
        What undoes it.
    """
    given: list[torch.Tensor] = []
    places = _stand_ins(model, cut, given)

    def before(_: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        states = named.pop(STATES, None)
        if states is None:
            return None
        given.append(states)
        for place in places:
            place.siblings[place.name] = place.stand_in
        return arguments, named

    def after(*_: Any) -> None:
        if given:
            given.clear()
            for place in places:
                place.siblings[place.name] = place.original

    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, always_call=True),
    ]

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


@dataclass
class _Place:
    """Where a module stands, and what may stand for it."""

    siblings: dict[str, nn.Module | None]
    """The parent's modules; written to directly, for every pass does, and setattr takes its time."""
    name: str
    original: nn.Module
    stand_in: nn.Module


def _stand_ins(model: nn.Module, cut: Cut, given: list[torch.Tensor]) -> list[_Place]:
    """Stand-ins for all frozen layers; they find the stored states in `given`."""
    from torch import nn

    class StandIn(nn.Module):
        """Gives the stored states, whatever comes in; looks like the module that it stands for."""

        def __init__(self, original: nn.Module) -> None:
            super().__init__()
            self.__dict__["original"] = original  # not a part of this module

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.__dict__["original"], name)

        def forward(self, *_: Any, **__: Any) -> Any:
            states = given[0].transpose(0, 1) if cut.length_first else given[0]
            return states if cut.items is None else (states, *[None] * (cut.items - 1))

    class Entrance(StandIn):
        """Gives zeros in the shape that the first block would get."""

        def forward(self, *_: Any, **__: Any) -> Any:
            batch, length = given[0].shape[:2]
            shape = (length, batch) if cut.length_first else (batch, length)
            return given[0].new_zeros(()).expand(*shape, cut.entrance_width)

    kinds: dict[str, type[StandIn]] = dict.fromkeys(cut.names, StandIn)
    if cut.entrance is not None:
        kinds[cut.entrance] = Entrance
    places = []
    for path, kind in kinds.items():
        parent, _, name = path.rpartition(".")
        original = model.get_submodule(path)
        places.append(_Place(model.get_submodule(parent)._modules, name, original, kind(original)))
    return places


# ---------------------------------------------------------------- key


def fingerprint(model: nn.Module, cut: Cut) -> str:
    """SHA-256 over all in a model that states at the cut depend on: tensors, settings, kinds of modules.

    Covered are all frozen parameters and buffers but those of the blocks above; dropout rates and label names
    aren't, since nothing random runs below the cut and the head is above it.
    """
    from whet.model.layers import anatomy, trunk_prefix

    names = [name for block in anatomy(model).blocks[cut.block :] for name in block]
    above, prefix = tuple(f"{name}." for name in names), trunk_prefix(model)
    digest = hashlib.sha256(json.dumps(_settings(model), sort_keys=True, default=str).encode())
    for name, module in model.named_modules():
        if name.startswith(prefix) and not f"{name}.".startswith(above):
            digest.update(f"{name}:{type(module).__module__}.{type(module).__qualname__};".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.requires_grad and not name.startswith(above):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


_IRRELEVANT = ("drop", "label", "problem_type", "_name_or_path", "architectures", "version")


def _settings(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    known = {} if config is None else config.to_dict()
    kept = {name: value for name, value in known.items() if not any(word in name for word in _IRRELEVANT)}
    return {**kept, "attention": getattr(config, "_attn_implementation", None), "class": type(model).__name__}


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
