"""The same arithmetic in fewer passes over memory, where torch's kernels for CPUs leave much on the table.

`quicken` exchanges the class of a model's leaf modules; names, parameters and the mathematics stay. On other
devices, and for anything out of the ordinary, the exchanged modules do what torch's do.

- Dropout draws its mask 16 bits an element from a generator of its own (torch draws 64 and one at a time), so
  the rate is the nearest multiple of 2^-16. Every draw is seeded from torch's global generator.
- A layer norm under bf16 autocast reads and writes bf16 and computes in fp32; autocast alone keeps what is
  between the blocks in fp32 and converts it for each linear layer anew.
- Attention with dropout, for which the CPU has no fused kernel, runs in the format of its inputs; large ones
  some texts at a time, so that what lies between two steps doesn't leave the processor's caches.
- A large embedding table keeps its gradient's memory and clears only the rows that a batch touched.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterable

ATTENTION = "whet"
"""Name under which transformers finds `attention`."""
_LEVELS = 1 << 16
_LARGE = 1 << 20
"""Elements from which an embedding table's gradient is worth keeping."""


def quicken(model: nn.Module, attention: bool = True) -> None:
    """Exchange the class of every module of `model` that has a quicker twin; safe to call again.

    Args:
        model: changed in place.
        attention: whether its attention may be exchanged too.
    """
    for module in model.modules():
        twin = _TWINS.get(type(module))
        if twin is not None and not (isinstance(module, nn.Embedding) and module.weight.numel() < _LARGE):
            module.__class__ = twin
    config = getattr(model, "config", None)
    if attention and getattr(config, "_attn_implementation", None) == "sdpa":
        _register()
        config._attn_implementation = ATTENTION  # type: ignore[union-attr]


# ---------------------------------------------------------------- dropout


def keep_mask(shape: torch.Size, rate: float, size: int) -> torch.Tensor:
    """Integers of `size` bytes, all bits set with probability 1 - `rate` (to 2^-16), else none.

    One draw from torch's global generator seeds them.
    """
    seed = int(torch.randint(0, 2**62, (1,)))
    count = math.prod(shape)
    raw = np.random.SFC64(seed).random_raw((count + 3) // 4)
    bits = torch.from_numpy(raw).view(torch.int16)[:count].view(shape)
    threshold = round(rate * _LEVELS) - _LEVELS // 2
    if threshold >= _LEVELS // 2:
        return torch.zeros(shape, dtype=_INTEGER[size])
    kept = torch.ge(bits, threshold, out=torch.empty(shape, dtype=torch.int16)).neg_()
    return kept if size == 2 else kept.to(_INTEGER[size])


_INTEGER = {2: torch.int16, 4: torch.int32}


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, rate: float) -> torch.Tensor:
        kept = keep_mask(values.shape, rate, values.element_size())
        ctx.save_for_backward(kept)  # so that gradient checkpointing needn't keep it
        ctx.scale = 1 / (1 - rate) if rate < 1 else 0.0
        return _masked(values, kept, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _masked(gradients[0], kept, ctx.scale), None


def _masked(values: torch.Tensor, kept: torch.Tensor, scale: float) -> torch.Tensor:
    scaled = values.contiguous() * scale
    scaled.view(kept.dtype).bitwise_and_(kept)
    return scaled


def dropout(values: torch.Tensor, rate: float) -> torch.Tensor:
    """`values` with each element zeroed with probability `rate`, the others divided by 1 - `rate`."""
    if values.device.type != "cpu" or values.element_size() not in _INTEGER:
        return functional.dropout(values, rate)
    return _Dropout.apply(values, rate)  # type: ignore[no-untyped-call, no-any-return]


class QuickDropout(nn.Dropout):
    """Dropout (Srivastava et al., 2014)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The input with elements dropped in training."""
        if not self.training or self.p == 0 or self.inplace:
            return super().forward(input)
        return dropout(input, self.p)


# ---------------------------------------------------------------- layer norm


class QuickLayerNorm(nn.LayerNorm):
    """Layer norm (Ba et al., 2016) that stays in bf16 where autocast is at work."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The normalised input; under bf16 autocast on a CPU in bf16."""
        if not _bf16_autocast(input.device):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input).to(torch.bfloat16)


def _bf16_autocast(device: torch.device) -> bool:
    return (
        device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
    )


# ---------------------------------------------------------------- attention


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention (Vaswani et al., 2017, equation 1) in transformers' attention interface.

    Args:
        module: the attention layer.
        query: [batch, heads, length, width], as `key` and `value`.
        attention_mask: [batch, 1, length, length], True or 0 where a token may look.
        dropout: rate on the weights.
        scaling: of the scores; None: 1 / sqrt(width).
        others: what some architectures add; any of it goes to transformers' own function.

    Returns:
        [batch, length, heads, width] and None.
    """
    if not dropout or not _usual(module, query, key, attention_mask, others):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    with torch.autocast(query.device.type, enabled=False):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        bias = None if attention_mask is None else _bias(attention_mask, query.dtype)
        if query.shape[:3].numel() * key.shape[2] >= _BLOCKED and query.shape == key.shape == value.shape:
            return _Attention.apply(query, key, value, bias, dropout, scale), None  # type: ignore[no-untyped-call]
        scores = torch.matmul(query * scale, key.transpose(-1, -2))
        if bias is not None:
            scores = scores + bias
        weights = _Dropout.apply(torch.softmax(scores, -1), dropout)  # type: ignore[no-untyped-call]
        return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


class _Attention(torch.autograd.Function):
    """The same, some texts at a time.

    Weights are kept for the backward pass with their sign telling which of them were dropped, so that neither
    the mask nor what remains needs memory of its own. With W the weights that remain, P all of them and s the
    factor that makes up for the rest, dS = s W * dW - P * rowsum(dO * O) (Dao et al., 2022, appendix B.2).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        rate: float,
        scale: float,
    ) -> torch.Tensor:
        texts, heads, length, width = query.shape
        out = query.new_empty(texts, length, heads, width)
        signed = query.new_empty(texts, heads, length, length)
        spread = None if bias is None else bias.expand(texts, *bias.shape[1:])
        draws = np.random.SFC64(int(torch.randint(0, 2**62, (1,))))
        room = query.new_empty(_at_once(query) * heads, length, length)
        for part in _portions(query):
            scores, kept = room[: _count(part) * heads], signed[part].flatten(0, 1)
            torch.bmm(_flat(query[part], scale), _flat(key[part]).transpose(1, 2), out=scores)
            if spread is not None:
                scores.view_as(signed[part]).add_(spread[part])
            torch._softmax(scores, -1, False, out=kept)
            _mark(kept, rate, draws)
            torch.clamp_min(kept, 0, out=scores)
            each = torch.bmm(scores, _flat(value[part], _upscale(rate)))
            out[part] = each.view(-1, heads, length, width).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, signed)
        ctx.rate, ctx.scale = rate, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, signed = ctx.saved_tensors
        arrived, heads, length = gradients[0].to(query.dtype), query.shape[1], query.shape[2]
        sums = (
            (arrived.float() * out.float()).sum(-1).transpose(1, 2).to(query.dtype)
        )  # [texts, heads, length]
        found = [torch.empty_like(out).transpose(1, 2) for _ in range(3)]
        rooms = [query.new_empty(_at_once(query) * heads, length, length) for _ in range(2)]
        for part in _portions(query):
            kept = signed[part].flatten(0, 1)
            weights, scores = (room[: len(kept)] for room in rooms)
            given = _flat(arrived[part].transpose(1, 2), _upscale(ctx.rate))
            torch.clamp_min(kept, 0, out=weights)
            of_value = torch.bmm(weights.transpose(1, 2), given)
            torch.bmm(given, _flat(value[part]).transpose(1, 2), out=scores).mul_(weights)
            torch.abs(kept, out=weights)
            scores.addcmul_(weights, sums[part].reshape(-1, length, 1), value=-1)
            of_query = torch.bmm(scores, _flat(key[part], ctx.scale))
            of_key = torch.bmm(scores.transpose(1, 2), _flat(query[part], ctx.scale))
            for all_of, each in zip(found, (of_query, of_key, of_value), strict=True):
                all_of[part] = each.view_as(query[part])
        return *found, None, None, None


_BLOCKED = 12 << 20
"""Scores from which on attention is computed in portions."""
_PORTION = 4 << 20
"""Scores of a portion, about."""


def _at_once(query: torch.Tensor) -> int:
    """Texts of a portion."""
    texts, heads, length, _ = query.shape
    return min(texts, max(1, _PORTION // (heads * length * length)))


def _portions(query: torch.Tensor) -> list[slice]:
    step = _at_once(query)
    return [slice(start, min(start + step, len(query))) for start in range(0, len(query), step)]


def _count(part: slice) -> int:
    return int(part.stop - part.start)


def _flat(states: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """[texts * heads, length, width], scaled."""
    return (states if scale == 1 else states * scale).reshape(-1, *states.shape[2:])


def _upscale(rate: float) -> float:
    return 1 / (1 - rate) if rate < 1 else 0.0


def _mark(weights: torch.Tensor, rate: float, draws: np.random.SFC64) -> None:
    """Set each sign with probability `rate` (to 2^-15), by 16 random bits an element.

    In every 16 bits of a word, the upper one of (15 random bits + rate * 2^15) is the carry.
    """
    count = weights.numel()
    words = torch.from_numpy(draws.random_raw((count + 3) // 4).view(np.int64))
    words.bitwise_and_(_lanes(0x7FFF)).add_(_lanes(round(rate * 0x8000))).bitwise_and_(_lanes(0x8000))
    signs = words.view(torch.int16)[:count].view(weights.shape)
    if weights.element_size() == 4:
        signs = signs.to(torch.int32).bitwise_left_shift_(16)
    weights.view(signs.dtype).bitwise_or_(signs)


def _lanes(value: int) -> int:
    """A word of four times these 16 bits, as a signed number."""
    word = value * 0x0001_0001_0001_0001
    return word - (1 << 64) if word >> 63 else word


def _usual(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    others: dict[str, Any],
) -> bool:
    """Whether the plain formula is all there is to it."""
    causal = others.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    odd = any(others.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    same = query.device.type == "cpu" and query.shape[1] == key.shape[1] and query.dtype == key.dtype
    return same and not odd and not (causal and mask is None) and query.element_size() in _INTEGER


def _bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores; a finite floor, so that a row which may look nowhere stays a number."""
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


# ---------------------------------------------------------------- embeddings


class RowEmbedding(nn.Embedding):
    """An embedding table whose gradient keeps its memory and is cleared by rows (`clear_gradients`).

    The gradient is the ordinary dense one, so any optimizer makes the update that it always makes.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[batch, length] ids → [batch, length, width]."""
        weight = self.weight
        plain = self.max_norm is not None or self.scale_grad_by_freq or self.sparse
        if plain or not weight.requires_grad or not torch.is_grad_enabled() or weight.device.type != "cpu":
            return super().forward(input)
        return _Rows.apply(input, weight, self.padding_idx)  # type: ignore[no-untyped-call, no-any-return]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: torch.Tensor, weight: nn.Parameter, padding: int | None) -> torch.Tensor:
        ctx.ids, ctx.weight, ctx.padding = ids.reshape(-1), weight, padding
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None, None]:
        weight, ids = ctx.weight, ctx.ids
        if weight.grad is None:
            weight.grad, weight.touched = torch.zeros_like(weight), []
        rows = gradients[0].reshape(len(ids), -1).to(weight.dtype)
        if ctx.padding is not None:
            rows = rows.masked_fill((ids == ctx.padding)[:, None], 0)
        weight.grad.scatter_add_(0, ids[:, None].expand(-1, rows.shape[1]), rows)
        weight.touched.append(ids)
        return None, None, None


def touched_rows(parameter: nn.Parameter) -> torch.Tensor | None:
    """Rows of a table that its gradient reached since it was cleared, ascending; None: any may have been."""
    touched = getattr(parameter, "touched", None)
    if touched is None or parameter.grad is None:
        return None
    return torch.unique(torch.cat(touched)) if touched else torch.empty(0, dtype=torch.int64)


def clear_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Forget all gradients; a table's keeps its memory."""
    for parameter in parameters:
        rows = touched_rows(parameter)
        if rows is None or parameter.grad is None:
            parameter.grad = None
        else:
            parameter.grad.index_fill_(0, rows, 0)
            parameter.touched = []  # type: ignore[attr-defined]


def clip_gradients(parameters: list[nn.Parameter], most: float) -> torch.Tensor:
    """Scale all gradients so that their L2 norm is at most `most`; returns the norm before.

    Pascanu et al., 2013, algorithm 1. On a CPU nothing is touched where nothing exceeds; on another device
    that would have to be waited for.
    """
    held = [(p.grad, touched_rows(p)) for p in parameters if p.grad is not None]
    parts = [grad if rows is None else grad[rows] for grad, rows in held]
    norm = torch.nn.utils.get_total_norm(parts)
    if math.isinf(most) or (norm.device.type == "cpu" and bool(norm <= most)):
        return norm
    factor = (most / (norm + 1e-6)).clamp(max=1)
    if whole := [grad for grad, rows in held if rows is None]:
        torch._foreach_mul_(whole, factor)
    for (grad, rows), part in zip(held, parts, strict=True):
        if rows is not None:
            grad.index_copy_(0, rows, part.mul_(factor))
    return norm


_TWINS: dict[type, type[nn.Module]] = {
    nn.Dropout: QuickDropout,
    nn.LayerNorm: QuickLayerNorm,
    nn.Embedding: RowEmbedding,
}
