"""Frozen layers in training: what stays in evaluation mode, and whether their outputs come from a cache."""

from __future__ import annotations

import hashlib
import itertools
import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whet.data.states import (
    GIB,
    STATES,
    Above,
    Form,
    FullError,
    Rounded,
    Sink,
    States,
    find,
    find_or_make,
    pick,
    tokens_hash,
)
from whet.engine.step import torch_sum
from whet.engine.warm import once
from whet.errors import one_line
from whet.model.trunk import (
    Cut,
    UncuttableError,
    extracts_features,
    find_cut,
    fingerprint,
    given,
    keep_at_rest,
    resting,
    restricted,
    start_above,
    states_at,
)
from whet.objective.base import UnreachedError, passes

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from whet.data.batch import Batch, Collator
    from whet.data.batching import Batching
    from whet.engine.engine import Engine
    from whet.engine.evaluate import Evaluator
    from whet.engine.step import Stepper

    Rows = NDArray[np.int64]

log = logging.getLogger("whet.engine")
FILL_TOKENS = 16384
"""Tokens of a batch while the cache is filled, padding included."""
MULTIPLES = (1, 8, 16, 32)
"""Of widths, tried for one in which a text's states don't depend on the texts beside it."""
SAMPLE = 6
"""Texts on which that is tried."""
ROUNDING = 0.05
"""Mean relative difference that 16-bit numbers may make between two compositions of a batch."""


@dataclass
class Frozen:
    """What the loop is to use in place of its own collators."""

    train: Collator
    validation: Collator
    facts: dict[str, Any] = field(default_factory=dict)
    """For the run's record."""


def use_frozen(
    engine: Engine,
    stepper: Stepper,
    judge: Evaluator,
    room: Path,
    blocked: str | None = None,
    key: str = "",
) -> Frozen:
    """Put frozen layers to rest and start the run above them, where that changes only the time it takes.

    Args:
        engine: its settings `frozen`, `trunk_cache` and `trunk_cache_limit`.
        stepper: model, training rows and objective; the model gets hooks.
        judge: validation rows.
        room: cache folder.
        blocked: a reason from elsewhere against the cache.
        key: all that the way depends on; a process that keeps things between runs proves it once for each.
    """
    own = Frozen(stepper.collator, judge.collator)
    if not _has_frozen_blocks(stepper.model):
        return own
    probe = uneven(stepper.collator)
    rests = _rest(engine, stepper, probe)
    try:
        if blocked:
            raise UncuttableError(blocked)
        return _cached(engine, stepper, judge, room, key, probe, rests)
    except UncuttableError as reason:
        return _off(own, str(reason), rests)


def _off(frozen: Frozen, reason: str, rests: int) -> Frozen:
    log.info("frozen layers: computed anew in every epoch (trunk cache off: %s)", reason)
    frozen.facts = {"cache": "off", "because": reason, "modules_at_rest": rests}
    return frozen


def _has_frozen_blocks(model: nn.Module) -> bool:
    """Whether the lowest block and all below it may be frozen: a look at names, no forward pass."""
    from whet.model.layers import anatomy

    parts = anatomy(model)
    return not any(p.requires_grad and parts.depth[name] <= 1 for name, p in model.named_parameters())


def _rest(engine: Engine, stepper: Stepper, probe: Rows) -> int:
    """Put what lies below the trained layers into evaluation mode, if it is to be; how many modules."""
    model = stepper.model
    if engine.frozen == "train" or (engine.frozen == "auto" and not extracts_features(model)):
        return 0
    modules = resting(model, stepper.collator(probe, stepper.amp.device).inputs)
    keep_at_rest(model, modules)
    return len(modules)


def _cached(
    engine: Engine, stepper: Stepper, judge: Evaluator, room: Path, key: str, probe: Rows, rests: int
) -> Frozen:
    """The run on cached states.

    Raises:
        UncuttableError: why not.
    """
    try:
        cut = once(key, "cut", lambda: _cut(stepper, probe))
    except UncuttableError as reason:
        hint = (
            "; engine.frozen=eval runs them without dropout" if not rests and "random" in str(reason) else ""
        )
        raise UncuttableError(f"{reason}{hint}") from None
    grid, least = once(key, "grid", lambda: _grid(stepper, cut))
    own = Frozen(
        Above.on(stepper.collator, None, grid) if _exact(stepper) else stepper.collator, judge.collator
    )
    shared = once(key, "key", lambda: {**machine(stepper), **_of_cut(stepper.model, cut)})
    filled = Fill(stepper, cut, room, int(engine.trunk_cache_limit * GIB), shared)
    train = filled.entry(
        own.train, replace(grid, size=128, tokens=FILL_TOKENS, evaluation_factor=1), least, False
    )
    validation = filled.entry(judge.collator, judge.collator.batching, 0, True)
    why_not = _why_not(engine, stepper, train, validation)
    if why_not:
        return _off(own, why_not, rests)
    try:
        states = [entry.states() for entry in (train, validation)]
    except FullError as error:
        return _off(own, str(error), rests)
    except OSError as error:
        return _off(own, f"{room} can't be written ({one_line(error)})", rests)
    return _on(stepper, judge, key, cut, own, states, least, rests)


def _on(
    stepper: Stepper,
    judge: Evaluator,
    key: str,
    cut: Cut,
    own: Frozen,
    states: list[States],
    least: int,
    rests: int,
) -> Frozen:
    """The run on `states`, after a last look at some batches."""
    train = Above.on(own.train, states[0], own.train.batching, least, cut.alone)
    if not once(key, "as computed", lambda: _as_computed(stepper, cut, train)):
        return _off(own, "what was stored isn't what batches give", rests)
    start_above(stepper.model, cut)
    size, multiple = sum(entry.form.size for entry in states), _multiple(train)
    widths = f", widths in multiples of {multiple}" if multiple > 1 else ""
    told = f"{cut.told()}); trunk cache on, {size / GIB:.3f} GiB on disk{widths}"
    log.info("frozen layers: computed once (%s", told)
    validation = Above.on(judge.collator, states[1], judge.collator.batching, alone=cut.alone)
    facts = {"cache": "on", "cut": cut.told(), "bytes": size, "multiple": multiple, "modules_at_rest": rests}
    return Frozen(train, validation, facts)


def _as_computed(stepper: Stepper, cut: Cut, train: Above) -> bool:
    """Whether batches of the first epoch get the stored states that they would compute."""
    stepper.model.eval()
    for rows in _telling(stepper, train):
        inputs = replace(train, states=None)(rows, stepper.amp.device).inputs
        computed = restricted(states_at(stepper.model, cut, inputs, stepper.amp.autocast), cut, inputs)
        fresh = given(cut, inputs, computed)[STATES]
        stored = train(rows, stepper.amp.device).inputs[STATES]
        apart = (fresh.float() - stored.float()).abs().mean() / fresh.float().abs().mean()
        if not bool(apart <= (0 if _exact(stepper) else ROUNDING)):
            return False
    return True


def _telling(stepper: Stepper, train: Above) -> list[Rows]:
    """The first of an epoch's batches, and that with the fewest and that with the most tokens."""
    batches = [rows for window in stepper.plan.windows(0) for rows in window]
    lengths = train.tokens.lengths
    sizes = [len(rows) * train.batching.padded(int(lengths[rows].max())) for rows in batches]
    carried = [(size, place) for place, size in enumerate(sizes) if size >= train.least]
    places = {carried[0][1], min(carried)[1], max(carried)[1]} if carried else set()
    return [batches[place] for place in sorted(places)]


def _multiple(collator: Collator) -> int:
    return int(getattr(collator.batching, "multiple", 1))


def _why_not(engine: Engine, stepper: Stepper, *entries: Entry) -> str | None:
    """A reason against the cache that lies in settings or in the run's length."""
    if engine.trunk_cache == "off":
        return "engine.trunk_cache=off"
    plan = stepper.plan
    if plan.total < plan.per_epoch and not all(entry.exists() for entry in entries):
        return f"the run is shorter than an epoch ({plan.total} of {plan.per_epoch} updates)"
    size, limit = sum(entry.form.size for entry in entries), engine.trunk_cache_limit
    if size > limit * GIB:
        return f"{size / GIB:.2f} GiB are needed, engine.trunk_cache_limit is {limit:g}"
    return None


def _exact(stepper: Stepper) -> bool:
    """Whether numbers must be those of the uncached run to the bit: in fp32 on a CPU."""
    return stepper.amp.device.type == "cpu" and stepper.amp.name == "fp32"


# ---------------------------------------------------------------- where to cut


def uneven(collator: Collator) -> Rows:
    """Up to four rows of unequal length, not as many as the longest of them has tokens."""
    lengths = collator.tokens.lengths
    order = lengths.argsort(kind="stable")
    places = np.unique((np.array([0, 0.3, 0.6, 0.9]) * (len(order) - 1)).round().astype(int))
    rows = order[places]
    square = len(rows) == collator.batching.padded(int(lengths[rows].max()))
    return np.asarray(rows[:-1] if square else rows, dtype=np.int64)


def _cut(stepper: Stepper, probe: Rows) -> Cut:
    batch = stepper.collator(probe, stepper.amp.device)
    exact = stepper.amp.device.type == "cpu"  # one batch, one composition: here bf16 is exact, too
    return find_cut(stepper.model, batch.inputs, _loss(stepper, batch), stepper.amp.autocast, exact)


def _loss(stepper: Stepper, batch: Batch) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """The objective as a function of the model's inputs."""

    def loss(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with stepper.amp.autocast():
            try:
                return torch_sum(
                    list(passes(stepper.objective(stepper.forward, replace(batch, inputs=inputs))))
                )
            except UnreachedError:
                raise UncuttableError("the objective changes the embeddings") from None

    return loss


# ---------------------------------------------------------------- numbers


def _grid(stepper: Stepper, cut: Cut) -> tuple[Batching, int]:
    """Batching in which a text's states don't depend on the texts beside it, and the smallest such batch.

    Where numbers needn't be exact, any will do.

    Raises:
        UncuttableError: there is none on this machine.
    """
    collator = stepper.collator
    if not _exact(stepper):
        return collator.batching, 0
    least = smallest(widest_input(stepper.model, cut))
    lengths = collator.tokens.lengths

    def compute(rows: Rows, width: int) -> list[NDArray[Any]]:
        fixed = replace(collator, batching=replace(collator.batching, pad_to=width))
        return by_row(stepper, cut, fixed, rows)

    for multiple in MULTIPLES:
        grid = rounded(collator, multiple, positions(stepper.model))
        if independent(compute, grid, lengths, least):
            return grid, least
    raise UncuttableError("on this machine a text's fp32 states depend on the texts beside it")


def widest_input(model: nn.Module, cut: Cut) -> int:
    """Most inputs (or outputs, whichever is more) of a linear map in the blocks below the cut."""
    from whet.model.layers import linear_layers

    below = tuple(f"{name}." for name in cut.names)
    maps = [name for name in linear_layers(model) if name.startswith(below)]
    return max((max(model.get_submodule(name).get_parameter("weight").shape) for name in maps), default=0)


def smallest(inputs: int) -> int:
    """Tokens from which MKL doesn't split the sum over a linear map's inputs among threads (measured)."""
    return max(128, inputs // 8) + 1


def positions(model: nn.Module) -> int | None:
    """Tokens that the model has positions for, whether or not they start after the padding id."""
    config = getattr(model, "config", None)
    most = getattr(config, "max_position_embeddings", None)
    return most - (getattr(config, "pad_token_id", None) or 0) - 1 if most and most > 0 else None


def rounded(collator: Collator, multiple: int, most: int | None) -> Rounded:
    """The collator's batching with widths of a grid."""
    old = collator.batching
    longest = max(int(collator.tokens.lengths.max()), old.pad_to or 0)
    widest = -(-longest // multiple) * multiple
    return Rounded(
        size=old.size, tokens=old.tokens, pool=old.pool, pad_to=old.pad_to,
        evaluation_factor=old.evaluation_factor, multiple=multiple,
        widest=max(longest, min(widest, most or widest)),
    )  # fmt: skip


def independent(
    compute: Callable[[Rows, int], list[NDArray[Any]]], grid: Batching, lengths: Rows, least: int
) -> bool:
    """Whether texts come out the same to the bit alone and together, in narrow and in wide batches of `grid`.

    Args:
        compute: states of each of some rows in a batch of a given width.
        grid: says which widths there are.
        lengths: [n] tokens of each row.
        least: tokens of the smallest batch.
    """
    rows = fullest(grid, lengths)
    longest = int(lengths.max())
    together = compute(_repeated(rows, grid.padded(longest), least), grid.padded(longest))
    for (place, row), factor in zip(enumerate(rows), itertools.cycle((1.0, 1.5, 2.0))):
        own = int(lengths[row])
        for width in {grid.padded(own), grid.padded((own + longest) // 2)}:
            alone = compute(_repeated(rows[place : place + 1], width, int(least * factor)), width)
            if not all(np.array_equal(found, together[place]) for found in alone):
                return False
    return True


def fullest(grid: Batching, lengths: Rows) -> Rows:
    """Some rows of all sizes that fill a batch's width best: what its edge does shows in them."""
    order = lengths.argsort(kind="stable")
    widths = np.array([grid.padded(int(lengths[row])) for row in order])
    last = np.flatnonzero(np.append(widths[1:] > widths[:-1], True))  # the longest row of each width
    picked = np.unique(np.linspace(0, len(last) - 1, SAMPLE).round().astype(int))
    return np.asarray(order[last[picked]], dtype=np.int64)


def _repeated(rows: Rows, width: int, least: int) -> Rows:
    """The rows, over again until a batch of them has `least` tokens."""
    return np.resize(rows, max(len(rows), -(-least // width)))


def by_row(stepper: Stepper, cut: Cut, collator: Collator, rows: Rows) -> list[NDArray[Any]]:
    """Kept states of each row, computed in one batch."""
    values, sizes = _computed(stepper, cut, collator, rows)
    return np.split(values, np.cumsum(sizes)[:-1])


def _computed(stepper: Stepper, cut: Cut, collator: Collator, rows: Rows) -> tuple[NDArray[Any], list[int]]:
    """Kept states of some rows, end to end, and how many each has."""
    inputs = collator(rows, stepper.amp.device).inputs
    stepper.model.eval()
    states = states_at(stepper.model, cut, inputs, stepper.amp.autocast)
    mask = inputs["attention_mask"].cpu().numpy().astype(bool)
    sizes = mask.sum(1).tolist() if cut.keep == "all" else [1] * len(rows)
    return pick(states, mask, cut.keep), sizes


# ---------------------------------------------------------------- the cache


@dataclass
class Entry:
    """States of one split: what they depend on and how they are made."""

    key: dict[str, Any]
    form: Form
    room: Path
    limit: int
    fill: Callable[[Sink], None]

    def exists(self) -> bool:
        """Whether they are in the cache."""
        return find(self.room, self.key, self.form) is not None

    def states(self) -> States:
        """From the cache, or made now. Raises OSError."""
        return find_or_make(self.room, self.key, self.form, self.fill, self.limit)


@dataclass
class Fill:
    """Makes entries."""

    stepper: Stepper
    cut: Cut
    room: Path
    limit: int
    shared: dict[str, Any]
    """Of the entries' keys."""

    def entry(self, collator: Collator, batching: Batching, least: int, as_batched: bool) -> Entry:
        """The entry of a collator's rows.

        Args:
            collator: of the split.
            batching: of the batches in which states are computed.
            least: tokens of the smallest batch.
            as_batched: states may depend on the batches, so these are in the key.
        """
        cut, tokens = self.cut, collator.tokens
        collator = replace(collator, batching=batching)
        batches = batching.evaluation(tokens.lengths)
        key = {
            **self.shared,
            "tokens": tokens_hash(tokens),
            "padding": [collator.pad_id, collator.left, collator.wants_types, batching.pad_to],
            "widths": [getattr(batching, name, None) for name in ("multiple", "bound", "widest")],
            "batches": batches_hash(batches) if as_batched else None,
        }
        form = Form.of(tokens, cut.keep, cut.width, str(cut.dtype).removeprefix("torch."))

        def fill(sink: Sink) -> None:
            self._fill(collator, batches, least, sink)

        return Entry(key, form, self.room, self.limit, fill)

    def _fill(self, collator: Collator, batches: list[Rows], least: int, sink: Sink) -> None:
        from whet.tracking.progress import progress

        lengths = collator.tokens.lengths
        with progress(len(collator.tokens), "computing frozen layers", "texts") as advance:
            for rows in batches:
                width = collator.batching.padded(int(lengths[rows].max()))
                values, _ = _computed(self.stepper, self.cut, collator, _repeated(rows, width, least))
                sink(rows, values)
                advance(len(rows))


def batches_hash(batches: list[Rows]) -> str:
    """SHA-256 over which rows lie together."""
    digest = hashlib.sha256()
    for rows in batches:
        digest.update(f"{len(rows)}:".encode() + np.ascontiguousarray(rows, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _of_cut(model: nn.Module, cut: Cut) -> dict[str, Any]:
    return {"trunk": fingerprint(model, cut), "block": cut.block, "keep": cut.keep, "dtype": str(cut.dtype)}


def machine(stepper: Stepper) -> dict[str, Any]:
    """What numbers depend on beside model and data: versions, device, precision, threads."""
    import torch
    import transformers

    device = stepper.amp.device
    return {
        "format": 1,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "precision": stepper.amp.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "threads": torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
