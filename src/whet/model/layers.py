"""What a transformer is made of, found by looking at it: no table of model names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
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
        ValueError: no list of transformer blocks in it.
    """
    blocks = _blocks(model)
    if not blocks:
        raise ValueError(f"no transformer blocks found in {type(model).__name__}")
    place = {prefix: number for number, names in enumerate(blocks, 1) for prefix in names}
    depth: dict[str, int] = {}
    embeddings = _embedding_modules(model)
    for name, _ in model.named_parameters():
        depth[name] = _depth(name, place, embeddings, seen=any(depth.values()), last=len(blocks) + 1)
    return Anatomy(depth, tuple(tuple(names) for names in blocks), frozenset(head_parameters(model)))


def head_parameters(model: nn.Module) -> list[str]:
    """Parameters outside the trunk that transformers calls `base_model`."""
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not hasattr(model, prefix):
        return []
    return [name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}.")]


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear maps inside the blocks (GPT-2's transposed `Conv1D` among them)."""
    prefixes = tuple(f"{prefix}." for names in _blocks(model) for prefix in names)
    return [name for name, module in model.named_modules() if name.startswith(prefixes) and is_linear(module)]


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a dense map y = x W + b."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _blocks(model: nn.Module) -> list[list[str]]:
    """Module prefixes of each block, bottom first.

    A block is an item of an outermost `ModuleList`; lists of lists are flattened (Funnel), sibling lists of
    one length are parts of the same blocks (XLM keeps attentions and feed-forwards apart).
    """
    from torch import nn

    found: list[list[str]] = []
    taken: list[str] = []
    siblings: dict[tuple[str, int], list[list[str]]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or name.startswith(tuple(f"{t}." for t in taken)):
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
    """Prefixes of modules that hold embedding tables, and of what is named after them (their norms)."""
    from torch import nn

    tables = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    named = [name for name, _ in model.named_modules() if "embed" in name.rpartition(".")[2].lower()]
    return tuple(f"{name}." for name in [*tables, *named])


def _depth(name: str, place: dict[str, int], embeddings: tuple[str, ...], seen: bool, last: int) -> int:
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        number = place.get(".".join(parts[:length]))
        if number is not None:
            return number
    return 0 if name.startswith(embeddings) or not seen else last


def describe_training(model: nn.Module, new: frozenset[str]) -> list[tuple[str, int, int]]:
    """(part, parameters, trainable parameters) of embeddings, blocks, and head, for a table."""
    parts = anatomy(model)
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        row = rows.setdefault(_part(name, parts), [0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() if parameter.requires_grad else 0
    return [(part, total, trained) for part, (total, trained) in rows.items()]


def _part(name: str, parts: Anatomy) -> str:
    depth = parts.depth[name]
    if name in parts.head:
        return "head"
    if depth == 0:
        return "embeddings"
    return "after the blocks" if depth > parts.layers else f"block {depth}"


def count(parameters: list[torch.Tensor]) -> int:
    """Numbers in `parameters`."""
    return sum(parameter.numel() for parameter in parameters)
