"""Which linear map of a block does what, found by watching one pass: no table of names.

Every tensor is followed from the linear maps that it comes from. What enters a block is its residual stream;
a linear map that isn't fed from the stream ends a sublayer (its output is what the stream gets), and what
goes into attention's two products are keys and values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whet.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

STREAM = ""
"""Stands for the residual stream among the names of linear maps."""
WEIGHTS = "softmax"
"""Stands for attention's weights."""
_PRODUCTS = ("matmul", "bmm", "einsum", "__matmul__", "baddbmm")


@dataclass(frozen=True)
class Sublayer:
    """Attention or feed-forward of one block; linear maps by their module names."""

    kind: str
    """`attention` or `feed_forward`."""
    starts: tuple[str, ...]
    """Maps that feed it from the residual stream, in the order of their calls."""
    end: str
    """The map whose output is added to the residual stream."""


@dataclass(frozen=True)
class Sublayers:
    """What linear maps do in all blocks of a model."""

    found: tuple[Sublayer, ...]
    """In the order of their calls."""
    keys: tuple[str, ...]
    """Maps that make attention's keys (one map may make queries, keys and values)."""
    values: tuple[str, ...]

    def of(self, kind: str) -> tuple[Sublayer, ...]:
        """Those of one kind."""
        return tuple(sublayer for sublayer in self.found if sublayer.kind == kind)


def sublayers(model: nn.Module) -> Sublayers:
    """Watch `model` read a few tokens.

    Raises:
        ModelError: it has no blocks, or can't be run on tokens alone.
    """
    import torch

    from whet.model.packing import in_mode

    watch = _Watch()
    with in_mode(model, False), torch.no_grad(), _followed(model, watch), _mode(watch):
        run_trunk(model, _probe(model))
    return watch.told()


def run_trunk(model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """Run what transformers calls the base model on a batch of tokens.

    Raises:
        ModelError: it needs more than tokens.
    """
    trunk = getattr(model, "base_model", model)
    try:
        trunk(**inputs)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        problem = f"{type(model).__name__} doesn't run on tokens alone ({error})"
        raise ModelError("model.weights", problem) from error


def _probe(model: nn.Module) -> dict[str, torch.Tensor]:
    """Two rows of five tokens, none of them padding or the end of a text."""
    import torch

    config: Any = model.config
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "cls", "sep")}
    plain = [number for number in range(3 + len(special)) if number not in special][:3]
    ids = torch.tensor([[plain[n % 3] for n in range(5)], [plain[n % 2] for n in range(5)]])
    ids = ids.to(next(model.parameters()).device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


# ---------------------------------------------------------------- following tensors


@dataclass
class _Call:
    """One call of a linear map."""

    name: str
    sources: frozenset[str]


@dataclass
class _Watch:
    """Sources of every tensor, and what was seen of linear maps and attention."""

    sources: dict[int, frozenset[str]] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)
    """Keeps tensors, so that no two have one id."""
    calls: list[_Call] = field(default_factory=list)
    products: dict[str, frozenset[str]] = field(default_factory=dict)
    """Sources of the second factor of each product, by the product's mark, in their order."""
    keys: dict[str, None] = field(default_factory=dict)
    values: dict[str, None] = field(default_factory=dict)

    def of(self, things: Any) -> frozenset[str]:
        """Sources of every tensor among arguments."""
        from whet.model.trunk import tensors_of

        return frozenset().union(*(self.sources.get(id(t), frozenset()) for t in tensors_of(things)))

    def mark(self, things: Any, sources: frozenset[str]) -> None:
        """Say where tensors come from."""
        from whet.model.trunk import tensors_of

        for tensor in tensors_of(things):
            self.sources[id(tensor)] = sources
            self.alive.append(tensor)

    def told(self) -> Sublayers:
        """What was seen, as names."""
        found: dict[str, Sublayer] = {}
        fed = {call.name for call in self.calls if STREAM in call.sources}
        order = {call.name: place for place, call in reversed(list(enumerate(self.calls)))}
        for call in self.calls:
            maps = {name for name in call.sources if not _is_mark(name)}
            if call.name in fed or not maps or call.name in found:
                continue
            kind = "attention" if any(_is_mark(name) and name for name in call.sources) else "feed_forward"
            found[call.name] = Sublayer(kind, tuple(sorted(maps & fed, key=order.__getitem__)), call.name)
        return Sublayers(tuple(found.values()), tuple(self.keys), tuple(self.values))

    def see(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        """Note one call of a torch function."""
        sources = self.of([*arguments])
        if name == "scaled_dot_product_attention":
            self._note(self.keys, self.of(arguments[1]))
            self._note(self.values, self.of(arguments[2]))
            sources |= {WEIGHTS}
        elif name == "softmax":
            self._weigh(sources)
            sources |= {WEIGHTS}
        elif name in _PRODUCTS:
            sources |= self._multiply([a for a in arguments if not isinstance(a, str)])
        self.mark(result, sources)

    def _multiply(self, factors: list[Any]) -> frozenset[str]:
        """Note a product, of which the first factor may be attention's weights; returns its own mark."""
        first, second = (self.of(factors[place : place + 1]) for place in (0, 1))
        if WEIGHTS in first and WEIGHTS not in second:
            self._note(self.values, second)
        mark = f"{WEIGHTS} {len(self.products)}"
        self.products[mark] = second
        return frozenset({mark})

    def _weigh(self, sources: frozenset[str]) -> None:
        """Of the products that lead to the weights the first is that of queries and keys."""
        first = next((mark for mark in self.products if mark in sources), None)
        if first is not None:
            self._note(self.keys, self.products[first])

    @staticmethod
    def _note(found: dict[str, None], sources: frozenset[str]) -> None:
        found |= dict.fromkeys(sorted(name for name in sources if not _is_mark(name)))


def _is_mark(name: str) -> bool:
    return name == STREAM or name.split()[0] == WEIGHTS


def _mode(watch: _Watch) -> contextlib.AbstractContextManager[Any]:
    """Tell `watch` of every torch function."""
    from torch.overrides import TorchFunctionMode

    class Following(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            named = kwargs or {}
            result = func(*args, **named)
            watch.see(getattr(func, "__name__", ""), (*args, *named.values()), result)
            return result

    return Following()


@contextlib.contextmanager
def _followed(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Mark the stream at the entrance of blocks, and outputs of linear maps with their names."""
    from whet.model.layers import anatomy

    names = [name for block in anatomy(model).blocks for name in block]
    blocks = [model.get_submodule(name) for name in names]
    maps = {model.get_submodule(name): name for name in _maps(model, tuple(f"{name}." for name in names))}

    def enter(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden, *others = _floats([*arguments, *named.values()])
        like = [t for t in others if t.ndim == hidden.ndim and _outline(t) == _outline(hidden)]
        watch.mark([hidden, *like], frozenset({STREAM}))

    def leave(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        watch.calls.append(_Call(maps[module], watch.of([*arguments])))
        watch.mark(output, frozenset({maps[module]}))

    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    handles += [module.register_forward_hook(leave) for module in maps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _maps(model: nn.Module, prefixes: tuple[str, ...]) -> list[str]:
    """Linear maps below `prefixes`; what wraps one, or hangs below one, is that one."""
    from whet.model.layers import is_linear

    found: list[str] = []
    for name, module in model.named_modules():
        inside = bool(found) and name.startswith(f"{found[-1]}.")
        if name.startswith(prefixes) and not inside and is_linear(getattr(module, "base_layer", module)):
            found.append(name)
    return found


def _floats(things: list[Any]) -> list[torch.Tensor]:
    from whet.model.trunk import tensors_of

    return [tensor for tensor in tensors_of(things) if tensor.is_floating_point()]


def _outline(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.shape[0], tensor.shape[-1]
