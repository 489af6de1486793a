"""What a transformer is made of, found by looking at it: no table of model names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Anatomy:
    """Parameter names of a model by where they stand.

    Depth 0 are the embeddings, 1 … L the transformer blocks from the bottom (an encoder-decoder counts its
    encoder's blocks first), L + 1 whatever comes after them: final norms, poolers, the head.
    """

    depth: dict[str, int]
    """Depth of every parameter."""
    blocks: tuple[tuple[str, ...], ...]
    """Module name prefixes of each block."""
    head: frozenset[str]
    """Parameters outside the pretrained trunk."""

    @property
    def layers(self) -> int:
        """L, the number of blocks."""
        return len(self.blocks)


def anatomy(model: nn.Module) -> Anatomy:
    """Take `model` apart.

    Raises:
        ModelError: no list of transformer blocks in it.
    """
    blocks = _blocks(model)
    if not blocks:
        raise ModelError("model.weights", f"no list of transformer blocks found in {type(model).__name__}")
    place = {prefix: number for number, names in enumerate(blocks, 1) for prefix in names}
    embeddings = _embedding_modules(model)
    head = frozenset(head_parameters(model))
    depth: dict[str, int] = {}
    last, seen = len(blocks) + 1, False
    for name, _ in model.named_parameters():
        depth[name] = last if name in head else _depth(name, place, embeddings, seen, last)
        seen = seen or 0 < depth[name] < last
    return Anatomy(depth, tuple(tuple(names) for names in blocks), head)


def head_parameters(model: nn.Module) -> list[str]:
    """Parameters outside the trunk."""
    return [name for name, _ in model.named_parameters() if not name.startswith(trunk_prefix(model))]


def trunk_prefix(model: nn.Module) -> str:
    """Start of every name inside the trunk that transformers calls `base_model`; empty where all is trunk."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""


def block_modules(model: nn.Module) -> list[list[nn.Module]]:
    """The modules of each transformer block, bottom first; empty where there are none."""
    return [[model.get_submodule(name) for name in names] for names in _blocks(model)]


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear maps inside the blocks (GPT-2's transposed `Conv1D` among them)."""
    prefixes = tuple(f"{prefix}." for names in _blocks(model) for prefix in names)
    return [name for name, module in model.named_modules() if name.startswith(prefixes) and is_linear(module)]


_OFFSET_POSITIONS = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "longformer",
    "xlm-roberta-xl",
    "data2vec-text",
)
"""Architectures whose position ids start after the padding id."""


def positions(config: Any) -> int | None:
    """Tokens that a model of this config has positions for; None where it has no table of them."""
    known = getattr(config, "max_position_embeddings", None)
    if not known or known < 0:
        return None
    return int(known - (config.pad_token_id or 0) - 1 if config.model_type in _OFFSET_POSITIONS else known)


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a dense map y = x W + b."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _blocks(model: nn.Module) -> list[list[str]]:
    """Module prefixes of each block, bottom first.

    A block is an item of an outermost `ModuleList` of the trunk; lists of lists are flattened (Funnel),
    sibling lists of one length are parts of the same blocks (XLM keeps attentions and feed-forwards apart).
    """
    from torch import nn

    found: list[list[str]] = []
    taken: list[str] = []
    siblings: dict[tuple[str, int], list[list[str]]] = {}
    trunk = trunk_prefix(model)
    for name, module in model.named_modules():
        inside = name.startswith(trunk) and not name.startswith(tuple(f"{t}." for t in taken))
        if not isinstance(module, nn.ModuleList) or not inside:
            continue
        taken.append(name)
        items = _items(name, module)
        parent = (name.rpartition(".")[0], len(items))
        if parent in siblings:
            for block, item in zip(siblings[parent], items, strict=True):
                block.append(item)
        elif items:
            siblings[parent] = [[item] for item in items]
            found.extend(siblings[parent])
    return found


def _items(name: str, modules: nn.ModuleList) -> list[str]:
    from torch import nn

    names: list[str] = []
    for place, item in enumerate(modules):
        if isinstance(item, nn.ModuleList):
            names.extend(_items(f"{name}.{place}", item))
        elif any(True for _ in item.parameters()):
            names.append(f"{name}.{place}")
    return names


def _embedding_modules(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of modules that hold embedding tables, and of what is named after them (their norms).

    A norm that a model declares right after a table normalises it (DeBERTa's relative positions).
    """
    from torch import nn

    found = [name for name, _ in model.named_modules() if "embed" in name.rpartition(".")[2].lower()]
    for name, module in model.named_modules():
        before: nn.Module | None = None
        for child, part in module.named_children():
            if isinstance(part, nn.Embedding) or (isinstance(before, nn.Embedding) and is_norm(part)):
                found.append(f"{name}.{child}" if name else child)
            before = part
    return tuple(f"{name}." for name in found)


def is_norm(module: nn.Module) -> bool:
    """Whether `module` is a layer norm or one of its kin: its class says so, and it has a vector to learn."""
    return "norm" in type(module).__name__.lower() and any(p.ndim == 1 for p in module.parameters(False))


def _depth(name: str, place: dict[str, int], embeddings: tuple[str, ...], seen: bool, last: int) -> int:
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        number = place.get(".".join(parts[:length]))
        if number is not None:
            return number
    if any("final" in part for part in parts):  # OPT declares its last norm before its blocks
        return last
    return last if seen and not name.startswith(embeddings) else 0


def describe_training(model: nn.Module, new: frozenset[str]) -> list[tuple[str, int, int]]:
    """(part, parameters, trainable parameters) from the embeddings up to the head, for a table.

    Args:
        model: with its PEFT method applied.
        new: newly initialised parameters; those outside the head get rows of their own.
    """
    parts = anatomy(model)
    rows: dict[tuple[int, str], list[int]] = {}
    for name, parameter in model.named_parameters():
        row = rows.setdefault((parts.depth[name], _part(name, parts, new)), [0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() if parameter.requires_grad else 0
    return [(part, total, trained) for (_, part), (total, trained) in sorted(rows.items())]


def _part(name: str, parts: Anatomy, new: frozenset[str]) -> str:
    depth = parts.depth[name]
    if name in parts.head:
        return "head"
    place = "embeddings" if depth == 0 else f"block {depth}" if depth <= parts.layers else "after the blocks"
    return f"{place}, new" if name in new else place
