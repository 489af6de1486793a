"""Padding-free blocks: while the transformer blocks run, the texts of a batch lie end to end in one row.

Embeddings and head see the padded batch [batch, width]; only what stands between them, where nearly all the
arithmetic is, sees [1, total] real tokens. So position and type ids need no care, and a head finds the first,
last or mean token of every text where it always does. Attention never crosses a boundary: a GPU has kernels
for texts of unequal length, elsewhere the row is spread out for as long as attention takes.

Krell et al., 2021 (Efficient Sequence Packing without Cross-contamination), describe the idea; the boundaries
are those of FlashAttention's interface for texts of unequal length (Dao et al., 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from whet.errors import one_line

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    Attention = Callable[..., tuple[torch.Tensor, Any]]
    Context = Callable[[], AbstractContextManager[None]]
    Kernel = Callable[..., torch.Tensor]

PACKED = "packed_"
"""Start of the names under which transformers finds `attend`; the model's own attention follows."""
SEGMENTS = "segments"
"""Argument that carries the boundaries from the model down to its attention."""
LENGTHS = "text_lengths"
"""Attribute of an attention mask, optional: its sums over the rows, so that a GPU needn't be waited for."""


class UnpackableError(Exception):
    """The blocks of this model can't run on a packed row; the message says why."""


@dataclass(frozen=True)
class Segments:
    """Where each text lies, in the padded batch and in the packed row."""

    places: torch.Tensor
    """[total] int64: places of the real tokens in the flattened [batch * width]."""
    starts: torch.Tensor
    """[batch + 1] int32: where each text begins in the row, and where the last one ends."""
    lengths: tuple[int, ...]
    """[batch] tokens of each text."""
    shape: tuple[int, int]
    """(batch, width) of the padded batch."""

    @classmethod
    def of(cls, mask: torch.Tensor) -> Segments:
        """Boundaries of a padded batch.

        Args:
            mask: [batch, width], 1 where a token counts, else 0; padding may stand anywhere. Its attribute
                `text_lengths`, where it has one, are its sums over the rows.
        """
        import torch

        known = getattr(mask, LENGTHS, None)
        counts = [int(n) for n in (mask.sum(1).tolist() if known is None else known)]
        order = mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)
        sums = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        starts = sums.to(mask.device, non_blocking=True)
        return cls(order[: sum(counts)], starts, tuple(counts), (mask.shape[0], mask.shape[1]))

    @cached_property
    def real(self) -> torch.Tensor:
        """[batch, width] bool: where the padded batch holds tokens."""
        import torch

        flat = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool, device=self.places.device)
        return flat.index_fill(0, self.places, True).reshape(self.shape)

    def mask(self, causal: bool, window: int | None) -> torch.Tensor:
        """[batch, 1, 1 or width, width] bool: the keys that a query of the padded batch sees.

        A query that would see none, which only padding can, sees all: a softmax over nothing is no number.

        Args:
            causal: none ahead.
            window: none that far away or farther.
        """
        import torch

        seen = self.real[:, None, None, :]
        if causal or window is not None:
            places = torch.arange(self.shape[1], device=seen.device)
            ahead = places[None, :] - places[:, None]
            reach = self.shape[1] if window is None else window
            seen = seen & (ahead > -reach) & (ahead <= 0 if causal else ahead < reach)
        return seen | ~seen.any(-1, keepdim=True)

    @cached_property
    def tight(self) -> Segments:
        """The same row spread over a batch without superfluous columns: each text from the left."""
        import torch

        longest, total = max(self.lengths), self.places.numel()
        counts = self.starts.diff()
        text = torch.arange(len(self.lengths), device=counts.device)
        text = text.repeat_interleave(counts, output_size=total)
        inside = torch.arange(total, device=counts.device) - self.starts[text]
        places = text * longest + inside
        return Segments(places, self.starts, self.lengths, (self.shape[0], longest))

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """[batch, width, …] (or [1, width, …], the same for every text) → [1, total, …]."""
        alike = tensor.shape[0] == 1
        places = self.places % self.shape[1] if alike else self.places
        return tensor.flatten(0, 1).index_select(0, places).unsqueeze(0)

    def unpack(self, row: torch.Tensor) -> torch.Tensor:
        """[1, total, …] → [batch, width, …], zero where there is no text."""
        batch, width = self.shape
        empty = row.new_zeros(batch * width, *row.shape[2:])
        return empty.index_copy(0, self.places, row[0]).reshape(batch, width, *row.shape[2:])

    def fits(self, thing: object) -> bool:
        """Whether `thing` is a tensor with one entry for every token of the padded batch."""
        import torch

        batch, width = self.shape
        return isinstance(thing, torch.Tensor) and thing.shape[:2] in ((batch, width), (1, width))

    def pack_all(self, things: Any) -> Any:
        """Pack every tensor that `fits`, in tuples and lists too."""
        if type(things) in (tuple, list):
            return type(things)(self.pack_all(thing) for thing in things)
        return self.pack(things) if self.fits(things) else things


# ---------------------------------------------------------------- attention


@dataclass
class LazyMask:
    """The mask of scaled_dot_product_attention, made once it is needed: a packed row needs none."""

    make: Callable[[], torch.Tensor | None]

    @cached_property
    def tensor(self) -> torch.Tensor | None:
        """[batch, 1, width, width] bool, or None where nothing is masked."""
        return self.make()


def lazy_mask(make: Callable[..., torch.Tensor | None], **arguments: Any) -> LazyMask:
    """What transformers calls in place of its mask function `make`."""
    return LazyMask(lambda: make(**arguments))


def attend(
    padded: Attention,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: LazyMask | torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **others: Any,
) -> tuple[torch.Tensor, Any]:
    """Attention within each text of a row, in transformers' attention interface.

    Args:
        padded: the model's own attention.
        module: the attention layer.
        query: [1, heads, total, dim].
        key: the same, or with fewer heads that groups of query heads share.
        value: like key.
        attention_mask: of a padded batch; a packed row needs none.
        dropout: rate on the weights.
        scaling: of the scores; None: 1 / sqrt(dim).
        is_causal: no look ahead; None asks the module.
        sliding_window: tokens from which on a key is too far away to be seen.
        segments: the boundaries; None: a padded batch, as if this function weren't here.
        others: whatever else a model says.

    Returns:
        [1, total, heads, dim] and None.

    Raises:
        UnpackableError: what the model adds to the scores isn't known here.
    """
    if segments is None:
        mask = attention_mask.tensor if isinstance(attention_mask, LazyMask) else attention_mask
        given = {"is_causal": is_causal, "sliding_window": sliding_window, **others}
        return padded(module, query, key, value, mask, dropout=dropout, scaling=scaling, **given)
    odd = [name for name in _SCORES if others.get(name) is not None]
    if odd:
        raise UnpackableError(f"its attention adds {', '.join(odd)} to the scores")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    look = Look(dropout, scaling, causal, sliding_window)
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    kernel = choose_kernel(rows[0], look)
    if kernel is None:
        return by_batch(padded, module, rows, segments, look), None
    groups = query.shape[1] // key.shape[1]
    heads = [row if groups == 1 or row is rows[0] else row.repeat_interleave(groups, 1) for row in rows]
    return kernel(*heads, segments, look).unsqueeze(0), None


_SCORES = ("position_bias", "softcap", "s_aux")
"""What some models do to the scores, by its name in transformers' attention interface."""


@dataclass(frozen=True)
class Look:
    """What a token sees of its text."""

    dropout: float
    scaling: float | None
    causal: bool
    window: int | None


def choose_kernel(query: torch.Tensor, look: Look) -> Kernel | None:
    """The kernel for texts of unequal length that this device has for these numbers.

    Args:
        query: [total, heads, dim].
        look: FlashAttention here has no dropout, nested tensors have no window.
    """
    if query.device.type != "cuda":
        return None
    if look.dropout == 0 and has_varlen(query.device) and _half(query) and query.shape[2] in range(8, 257, 8):
        return varlen
    return jagged if look.window is None else None


def has_varlen(device: torch.device) -> bool:
    """Whether torch brings its variable-length attention, and the GPU is one that it runs on."""
    import importlib.util

    import torch

    known = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    return known and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _half(tensor: torch.Tensor) -> bool:
    import torch

    return tensor.dtype in (torch.bfloat16, torch.float16)


def by_batch(
    padded: Attention, module: nn.Module, rows: list[torch.Tensor], segments: Segments, look: Look
) -> torch.Tensor:
    """The model's own attention on a batch as wide as its longest text: exact on every device.

    Args:
        padded: the model's own attention.
        module: the attention layer.
        rows: query, key and value, each [total, heads, dim].
        segments: the boundaries.
        look: what a token sees.

    Returns:
        [1, total, heads, dim].
    """
    tight = segments.tight
    q, k, v = (tight.unpack(row.unsqueeze(0)).transpose(1, 2) for row in rows)
    mask = tight.mask(look.causal, look.window)
    out, _ = padded(module, q, k, v, mask, dropout=look.dropout, scaling=look.scaling, is_causal=False)
    return tight.pack(out)


def varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, look: Look
) -> torch.Tensor:
    """FlashAttention over texts of unequal length (torch.nn.attention.varlen): CUDA, 16 bit, no dropout.

    Args:
        query: [total, heads, dim], as key and value; so is the result.
        segments: the boundaries.
        look: what a token sees.
    """
    from torch.nn.attention.varlen import varlen_attn

    back = -1 if look.window is None else look.window - 1
    longest = max(segments.lengths)
    out = varlen_attn(
        query, key, value, segments.starts, segments.starts, longest, longest,
        scale=look.scaling, window_size=(back, 0 if look.causal else back),
    )  # fmt: skip
    return out[0] if isinstance(out, tuple) else out


def jagged(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, look: Look
) -> torch.Tensor:
    """torch's attention over nested tensors: its fused CUDA kernels, with dropout and in 32 bit too.

    Args: as `varlen`'s; a window isn't known here.
    """
    from torch.nested import nested_tensor_from_jagged
    from torch.nn.functional import scaled_dot_product_attention

    offsets, lengths = segments.starts.long(), segments.lengths

    def nest(row: torch.Tensor) -> torch.Tensor:
        nested = nested_tensor_from_jagged(
            row.contiguous(), offsets, min_seqlen=min(lengths), max_seqlen=max(lengths)
        )
        return nested.transpose(1, 2)

    out = scaled_dot_product_attention(
        nest(query), nest(key), nest(value), dropout_p=look.dropout, is_causal=look.causal, scale=look.scaling
    )
    result: torch.Tensor = out.transpose(1, 2).values()
    return result


# ---------------------------------------------------------------- the model


class Packing:
    """Packs a model's hidden states before its first block and unpacks them after its last, while it trains.

    Evaluation stays padded: sorted by length it has next to no padding, and an exported model must say to the
    bit what the trained one said.
    """

    everywhere = False
    """Pack in evaluation mode too."""

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Any]) -> None:
        """Find out how `model` calls its blocks on one batch, and hook into them.

        Raises:
            UnpackableError: its attention can't be replaced, or its blocks don't hand on one
                [batch, width, hidden] after the other.
        """
        why_not = _out_of_reach(model)
        if why_not:
            raise UnpackableError(why_not)
        blocks = _blocks(model)
        self.model = model
        self._calls = count_calls(model, blocks, inputs)
        self._done = 0
        self._own = model.config._attn_implementation
        model.config._attn_implementation = _register(self._own)
        self._hooks = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, with_kwargs=True),
            *(block.register_forward_pre_hook(self._enter, with_kwargs=True) for block in blocks),
            *(block.register_forward_hook(self._leave, with_kwargs=True) for block in blocks),
        ]

    def remove(self) -> None:
        """The model as it was."""
        for hook in self._hooks:
            hook.remove()
        self.model.config._attn_implementation = self._own

    def _begin(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        self._done = 0
        if mask is not None and (model.training or self.everywhere):
            segments = Segments.of(mask)
            if segments.places.numel() < mask.numel():
                kwargs[SEGMENTS] = segments
        return args, kwargs

    def _enter(self, block: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        segments: Segments | None = kwargs.get(SEGMENTS)
        if segments is None:
            return None
        name, hidden = _hidden(args, kwargs)
        hidden = hidden if self._done else segments.pack(hidden)
        rest = {key: segments.pack_all(value) for key, value in kwargs.items() if key != name}
        if name is None:
            return (hidden, *segments.pack_all(args[1:])), rest
        return segments.pack_all(args), {name: hidden, **rest}

    def _leave(self, block: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        segments: Segments | None = kwargs.get(SEGMENTS)
        self._done += 1
        if segments is None or self._done < self._calls:
            return None
        if isinstance(output, tuple):
            return (segments.unpack(output[0]), *output[1:])
        return segments.unpack(output)

    def _end(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if SEGMENTS in kwargs and self._done != self._calls:
            raise UnpackableError(f"{self._done} calls of its blocks in a pass, {self._calls} before")


def _register(own: str) -> str:
    """Make `attend` known to transformers on top of the attention called `own`; returns its name."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as ATTENTIONS

    ATTENTIONS.register(PACKED + own, partial(attend, ATTENTIONS[own]))
    MASKS.register(PACKED + own, partial(lazy_mask, MASKS[own]))
    return PACKED + own


def _out_of_reach(model: Any) -> str:
    """Why attention of `model` can't be replaced; empty if it can."""
    from whet.model.kernels import ATTENTION

    if not getattr(model, "_supports_attention_backend", False):
        return "transformers doesn't keep its attention apart from its blocks"
    if getattr(model.config, "is_encoder_decoder", False):
        return "its decoder looks at its encoder"
    used = model.config._attn_implementation
    return "" if used in ("sdpa", ATTENTION) else f"it runs {used} attention, not sdpa"


def _blocks(model: nn.Module) -> list[nn.Module]:
    from whet.model.layers import block_modules

    found = block_modules(model)
    if not found or any(len(block) != 1 for block in found):
        raise UnpackableError("its blocks aren't one module each")
    return [block[0] for block in found]


def count_calls(model: PreTrainedModel, blocks: list[nn.Module], inputs: dict[str, Any]) -> int:
    """Calls of blocks in one pass (ALBERT calls the same block again and again).

    Raises:
        UnpackableError: a block doesn't map [batch, width, hidden] to the same.
    """
    import torch

    wanted = tuple(inputs["attention_mask"].shape)
    shapes: list[tuple[int, ...]] = []

    def note(block: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        shapes.append(tuple(_hidden(args, kwargs)[1].shape))
        shapes.append(tuple((output[0] if isinstance(output, tuple) else output).shape))

    hooks = [block.register_forward_hook(note, with_kwargs=True) for block in blocks]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not shapes or len(set(shapes)) > 1 or shapes[0][:2] != wanted:
        raise UnpackableError("its blocks don't pass on one hidden state for each token")
    return len(shapes) // 2


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, torch.Tensor]:
    """A block's hidden states, and the keyword they came under."""
    return (None, args[0]) if args else ("hidden_states", kwargs["hidden_states"])


# ---------------------------------------------------------------- checking


def pack_model(model: PreTrainedModel, inputs: dict[str, Any], autocast: Context) -> Packing:
    """Pack `model`, once it has shown on one batch that it says the same.

    Args:
        model: on its device.
        inputs: a batch with texts of unequal length.
        autocast: of the training steps.

    Raises:
        UnpackableError: it can't, or says something else; the model is as it was.
    """
    try:
        with in_mode(model, False):
            packing = Packing(model, inputs)
        try:
            check(packing, inputs, autocast)
        except BaseException:
            packing.remove()
            raise
    except _CANNOT as error:
        raise UnpackableError(f"its blocks don't run on a packed row ({one_line(error)})") from error
    return packing


_CANNOT = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What a model may raise when its blocks get something that they weren't made for."""


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """`model.train(training)` for as long as the context lasts; then every module is as it was."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def check(packing: Packing, inputs: dict[str, Any], autocast: Context) -> None:
    """Compare packed with padded logits, and try a training step (with dropout kernels are others).

    What 16-bit numbers alone change may change fourfold.

    Raises:
        UnpackableError: logits differ, or gradients aren't finite.
    """
    with in_mode(packing.model, False):
        exact, usual = (_logits(packing.model, inputs, context) for context in (nullcontext, autocast))
        packing.everywhere = True
        try:
            packed = _logits(packing.model, inputs, autocast)
        finally:
            packing.everywhere = False
    noise, worst = (float((found - exact).abs().max()) for found in (usual, packed))
    if not worst <= 4 * noise + 1e-4 * float(exact.abs().max()):
        raise UnpackableError(f"packed logits differ from padded ones by up to {worst:.2g}")
    if not _finite_step(packing.model, inputs, autocast):
        raise UnpackableError("gradients of packed rows aren't finite")


def _finite_step(model: nn.Module, inputs: dict[str, Any], autocast: Context) -> bool:
    """Whether the gradients of one training step are finite; random numbers are as before."""
    import torch

    device = inputs["attention_mask"].device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with forked, in_mode(model, True), torch.enable_grad():
        with autocast():
            logits = model(**inputs).logits
        found = torch.autograd.grad(logits.float().sum(), trained, allow_unused=True)
    return all(bool(gradient.isfinite().all()) for gradient in found if gradient is not None)


def _logits(model: nn.Module, inputs: dict[str, Any], context: Context) -> torch.Tensor:
    import torch

    with torch.no_grad(), context():
        found: torch.Tensor = model(**inputs).logits
    return found.float()
