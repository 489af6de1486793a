"""New parts that methods put into a model: they hang below a module that is there, and hooks call them.

So no name of the pretrained model changes, and what belongs to a block counts as that block's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from whet.errors import ModelError
from whet.peft.base import INSERTED

if TYPE_CHECKING:
    from whet.types import PositiveInt

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


class Adapter(nn.Module):
    """s U f(D x): a bottleneck whose U starts at zero, so that nothing changes before training."""

    def __init__(
        self, down: nn.Module, up: nn.Module, activation: str, scale: float, gate: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.down, self.up, self.gate = down, up, gate
        self.activation, self.scale = ACTIVATIONS[activation], scale

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[…, width] → [..., width], what is to be added."""
        update: torch.Tensor = self.scale * self.up(self.activation(self.down(hidden)))
        return update if self.gate is None else self.gate(hidden) * update


class Gate(nn.Module):
    """sigmoid(w · x + b): how much of a part each token takes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[…, width] → […, 1] between 0 and 1."""
        return torch.sigmoid(self.map(hidden))

    def log(self, hidden: torch.Tensor) -> torch.Tensor:
        """Its logarithm, exact where it is close to 0."""
        return nn.functional.logsigmoid(self.map(hidden))


def silent(linear: nn.Linear) -> nn.Linear:
    """`linear` with all its numbers zero."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Kronecker(nn.Module):
    """x W + b with W = sum_i A_i ⊗ (s_i t_i) (Karimi Mahabadi et al., 2021, Compacter, equations 4 and 5).

    Args:
        rules: [n, n, n], the A_i; all maps of a model may share them.
        inputs: width, a multiple of n.
        outputs: width, a multiple of n.
        rank: of s_i t_i.
        zero: start with t = 0.
    """

    def __init__(self, rules: nn.Parameter, inputs: int, outputs: int, rank: int, zero: bool) -> None:
        super().__init__()
        n = rules.shape[0]
        self.rules = rules
        self.s = nn.Parameter(torch.empty(n, inputs // n, rank))
        self.t = nn.Parameter(torch.zeros(n, rank, outputs // n))
        self.bias = nn.Parameter(torch.zeros(outputs))
        for part in (self.s,) if zero else (self.s, self.t):
            for matrix in part:
                nn.init.xavier_uniform_(matrix)

    def weight(self) -> torch.Tensor:
        """[inputs, outputs]."""
        blocks = self.s @ self.t
        n, rows, columns = blocks.shape
        return torch.einsum("nij,nkl->ikjl", self.rules, blocks).reshape(n * rows, n * columns)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[…, inputs] → […, outputs]."""
        return hidden @ self.weight() + self.bias


def put_after(module: nn.Module, name: str, adapter: nn.Module) -> None:
    """Let `module` return its output plus what `adapter` makes of it.

    Args:
        module: gets the adapter as its part `name`.
        name: of the part.
        adapter: [..., width] → the same.
    """
    _hang(module, name, adapter)
    module.register_forward_hook(lambda own, _, output: output + own.get_submodule(name)(output))


def put_beside(start: nn.Module, end: nn.Module, name: str, adapter: nn.Module) -> None:
    """Let `end` return its output plus what `adapter` makes of the input of `start`.

    Args:
        start: called before `end`.
        end: gets the adapter as its part `name`.
        name: of the part.
        adapter: [..., width] → the same.
    """
    _hang(end, name, adapter)
    held: list[torch.Tensor] = []

    def note(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        held[:] = arguments[:1]

    start.register_forward_pre_hook(note)
    end.register_forward_hook(lambda own, _, output: output + own.get_submodule(name)(held.pop()))


def _hang(module: nn.Module, name: str, part: nn.Module) -> None:
    if hasattr(module, name):
        raise ModelError("peft.parts", f"there are two of one kind at one place ({name}); leave one out")
    weight = next(module.parameters())
    module.add_module(name, part.to(weight.device))


def outputs_of(module: nn.Module) -> int:
    """Width that a linear map puts out, whatever wraps it."""
    known = getattr(module, "out_features", None) or getattr(module, "nf", None)
    if known is None:
        raise ModelError("model.weights", f"the width of {type(module).__name__} isn't known")
    return int(known)


# ---------------------------------------------------------------- prefixes


class Prefix(nn.Module):
    """Keys and values that stand before those of a text.

    Args:
        key: [heads, tokens, dim] to start with.
        value: the same.
        projection: width of a hidden layer that makes both from one vector a token; None: they train
            themselves.
        gate: width of the queries of all heads, for a gate that weighs the prefix for each token; None: no
            gate.
    """

    def __init__(
        self, key: torch.Tensor, value: torch.Tensor, projection: PositiveInt | None, gate: int | None
    ) -> None:
        super().__init__()
        self.shape = tuple(key.shape)
        both = torch.stack([key, value])
        if projection is None:
            self.both = nn.Parameter(both.clone())
        else:
            heads, tokens, dim = key.shape
            self.words = nn.Parameter(key.transpose(0, 1).reshape(tokens, heads * dim).clone())
            self.map = nn.Sequential(
                nn.Linear(heads * dim, projection), nn.Tanh(), nn.Linear(projection, 2 * heads * dim)
            )
        self.gate = None if gate is None else Gate(gate)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, [heads, tokens, dim] each."""
        if not hasattr(self, "map"):
            return self.both[0], self.both[1]
        heads, tokens, dim = self.shape
        made = self.map(self.words).reshape(tokens, 2, heads, dim).permute(1, 2, 0, 3)
        return made[0], made[1]


def attend(
    own: Callable[..., tuple[torch.Tensor, Any]],
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **others: Any,
) -> tuple[torch.Tensor, Any]:
    """Attention that sees a prefix before the text, in transformers' attention interface.

    Args:
        own: the model's attention.
        module: the attention layer; its part `prefix`, if it has one, holds the prefix.
        query: [batch, heads, length, dim].
        key: [batch, heads or groups of them, keys, dim].
        value: like key.
        attention_mask: [batch, 1, length, keys], True or 0 where a token may look; None: everywhere, or
            nowhere ahead.
        others: whatever else the model says.

    Returns:
        [batch, length, heads, dim] and what the model's attention returns beside it.
    """
    prefix = getattr(module, "prefix", None)
    if prefix is None:
        return own(module, query, key, value, attention_mask, **others)
    before = [part.to(key.dtype).expand(key.shape[0], -1, -1, -1) for part in prefix()]
    causal = others.pop("is_causal", None)
    causal = getattr(module, "is_causal", True) if causal is None else causal
    mask = _seen(attention_mask, query, key, bool(causal))
    mask = widened(mask, query, key, before[0].shape[2], prefix.gate)
    key, value = (torch.cat([new, old], 2) for new, old in zip(before, (key, value), strict=True))
    return own(module, query, key, value, mask, is_causal=False, **others)


def _seen(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, causal: bool
) -> torch.Tensor | None:
    """The mask that attention would make for itself where it gets none."""
    if mask is not None or not causal or query.shape[2] == 1:
        return mask
    shape = query.shape[2], key.shape[2]
    return torch.ones(shape, dtype=torch.bool, device=key.device).tril()[None, None]


def widened(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, tokens: int, gate: Gate | None
) -> torch.Tensor | None:
    """The mask with the prefix before it, which every token sees, as far as its gate lets it.

    A gate multiplies the weights that attention gives the prefix: its logarithm is added to the scores.

    Args:
        mask: [batch or 1, 1, length or 1, keys].
        query: [batch, heads, length, dim].
        key: [batch, groups, keys, dim].
        tokens: of the prefix.
        gate: [batch, length, heads * dim] → [batch, length, 1]; None: the whole prefix.
    """
    if gate is None:
        if mask is None:
            return None
        return torch.cat([mask.new_full((*mask.shape[:3], tokens), mask.dtype is torch.bool), mask], 3)
    batch, _, length, _ = query.shape
    share = gate.log(query.transpose(1, 2).flatten(2))[:, None].to(query.dtype)
    if mask is None:
        mask = query.new_zeros(batch, 1, length, key.shape[2])
    if mask.dtype is torch.bool:
        mask = query.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(query.dtype).min)
    whole = mask.to(query.dtype).expand(batch, 1, length, -1)
    return torch.cat([share.expand(batch, 1, length, tokens), whole], 3)


# ---------------------------------------------------------------- prompts


class Words(nn.Module):
    """Vectors that train themselves."""

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(start.clone())
        self.tokens = len(start)

    def forward(self) -> torch.Tensor:
        """[tokens, width]."""
        return self.rows


class Encoded(nn.Module):
    """Vectors that a small network makes of others."""

    def __init__(self, encoder: nn.Module, tokens: int) -> None:
        super().__init__()
        self.encoder, self.tokens = encoder, tokens

    def forward(self) -> torch.Tensor:
        """[tokens, width]."""
        places = torch.arange(self.tokens, device=next(self.encoder.parameters()).device)
        made: torch.Tensor = self.encoder(places)
        return made


class Inserted:
    """Puts soft tokens into every text that a model reads.

    The model gets longer texts, with a filler where soft tokens belong: so positions, masks and the token
    that its head reads are found by the model's own rules. What its embedding makes of fillers is replaced.

    Args:
        model: gets hooks.
        prompt: gives [tokens, width]; becomes a part of the input embedding.
        tokens: how many.
        filler: id of an ordinary token.
        first: soft tokens come before a text's first token, else after it.
        most: tokens that the model has positions for; None: no limit.
    """

    def __init__(
        self, model: nn.Module, prompt: nn.Module, tokens: int, filler: int, first: bool, most: int | None
    ) -> None:
        embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        _hang(embedding, "prompt", prompt)
        self.tokens, self.filler, self.first, self.most = tokens, filler, first, most
        self._inside: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        setattr(embedding, INSERTED, self._inside)
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end, always_call=True)
        embedding.register_forward_hook(self._replace)

    def _begin(self, model: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = named["input_ids"]
        mask = named.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        self._check(ids.shape[1])
        start = mask.argmax(1)[:, None] + (0 if self.first else 1)
        place = torch.arange(ids.shape[1] + self.tokens, device=ids.device)[None]
        inside = (place >= start) & (place < start + self.tokens)
        source = torch.where(place < start, place, place - self.tokens).clamp(0, ids.shape[1] - 1)
        longer = {**named, "attention_mask": mask}
        for name, tensor in longer.items():
            if isinstance(tensor, torch.Tensor) and tensor.shape == ids.shape:
                longer[name] = tensor.gather(
                    1, torch.where(inside, start.clamp(max=ids.shape[1] - 1), source)
                )
        longer["input_ids"] = longer["input_ids"].masked_fill(inside, self.filler)
        longer["attention_mask"] = longer["attention_mask"].masked_fill(inside, 1)
        self._inside[:] = [(longer["input_ids"], inside, (place - start).clamp(0, self.tokens - 1))]
        return arguments, longer

    def _check(self, length: int) -> None:
        if self.most is not None and length + self.tokens > self.most:
            problem = f"a text of {length} tokens leaves no room: the model has {self.most} positions"
            raise ModelError(
                "peft.tokens", f"{problem}; set task.max_length={self.most - self.tokens}", self.tokens
            )

    def _replace(
        self, embedding: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor
    ) -> torch.Tensor:
        if not self._inside:
            return output
        ids, inside, number = self._inside[0]
        turned = arguments[0].shape != ids.shape or (
            ids.shape[0] == ids.shape[1] and not torch.equal(arguments[0], ids)
        )
        if turned:  # XLNet reads [length, batch]
            inside, number = inside.T, number.T
        rows = embedding.get_submodule("prompt")().to(output.dtype)
        return torch.where(inside[..., None], rows[number], output)

    def _end(self, *_: Any) -> None:
        self._inside.clear()
