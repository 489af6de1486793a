"""Hidden states of frozen layers: computed once, kept on disk, memory-mapped, put into batches.

An entry is a folder of a flat binary file (real tokens only, no padding) and a manifest with its key and
SHA-256. It is written aside and renamed; a damaged one is made anew; of several processes one makes it, the
others wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from whet.data.batch import Batch, Collator
from whet.data.batching import Batching
from whet.storage import aside, file_sha256
from whet.types import PositiveInt

if TYPE_CHECKING:
    import torch

    from whet.data.tokens import Tokens

log = logging.getLogger("whet.data")
STATES = "trunk_states"
"""Name of the stored states among a batch's inputs."""
FORMAT = 1
GIB = 2**30
Keep = Literal["first", "last", "all"]
"""Tokens of a text whose states are needed above."""
Rows = NDArray[np.int64]
Sink = Callable[[Rows, NDArray[Any]], None]
_STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
_MANIFEST, _FILE = "manifest.json", "states.bin"


# ---------------------------------------------------------------- what is kept


@dataclass(frozen=True)
class Form:
    """Shape and number format of the states of one split."""

    offsets: NDArray[np.int64]
    """[n + 1] the states of text i are values[offsets[i]:offsets[i + 1]]."""
    keep: Keep
    width: int
    """Hidden size."""
    dtype: str
    """float32, float16 or bfloat16."""

    @classmethod
    def of(cls, tokens: Tokens, keep: Keep, width: int, dtype: str) -> Form:
        """The form for all texts of a split."""
        offsets = tokens.offsets if keep == "all" else np.arange(len(tokens) + 1)
        return cls(np.asarray(offsets, dtype=np.int64), keep, width, dtype)

    @property
    def stored(self) -> np.dtype[Any]:
        """NumPy's format; bfloat16, which it doesn't know, goes as 16 bits."""
        return np.dtype(_STORED[self.dtype])

    @property
    def shape(self) -> tuple[int, int]:
        """Of the stored values."""
        return int(self.offsets[-1]), self.width

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.shape[0] * self.width * self.stored.itemsize


@dataclass(frozen=True)
class States:
    """Stored hidden states of one split."""

    form: Form
    values: NDArray[Any]
    """[total, width], memory-mapped."""

    def padded(self, rows: Rows, mask: NDArray[np.bool_]) -> torch.Tensor:
        """[batch, length, width] states of `rows` where `mask` [batch, length] has a text, zero elsewhere."""
        import torch

        form = self.form
        filled = np.zeros((*mask.shape, form.width), dtype=form.stored)
        for place, (row, (start, end)) in enumerate(zip(rows, spans(mask, form.keep), strict=True)):
            filled[place, start:end] = self.values[form.offsets[row] : form.offsets[row + 1]]
        made = torch.from_numpy(filled)
        return made.view(torch.bfloat16) if form.dtype == "bfloat16" else made

    def alone(self, rows: Rows) -> torch.Tensor:
        """[batch, 1, width] states of `rows`, of each of which one token is kept."""
        import torch

        made = torch.from_numpy(self.values[rows][:, None])
        return made.view(torch.bfloat16) if self.form.dtype == "bfloat16" else made


def spans(mask: NDArray[np.bool_], keep: Keep) -> list[tuple[int, int]]:
    """(start, end) of the kept tokens in each row of `mask` [batch, length]; a text lies in one piece."""
    starts = mask.argmax(1)
    ends = starts + mask.sum(1)
    if keep == "first":
        ends = starts + 1
    elif keep == "last":
        starts = ends - 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def pick(states: torch.Tensor, mask: NDArray[np.bool_], keep: Keep) -> NDArray[Any]:
    """[kept tokens, width] of states [batch, length, width], in the format that is stored."""
    import torch

    taken = torch.cat([row[start:end] for row, (start, end) in zip(states, spans(mask, keep), strict=True)])
    taken = taken.detach().cpu().contiguous()
    return (taken.view(torch.uint16) if taken.dtype is torch.bfloat16 else taken).numpy()


# ---------------------------------------------------------------- on disk


def tokens_hash(tokens: Tokens) -> str:
    """SHA-256 over token ids, segments and boundaries."""
    digest = hashlib.sha256()
    for array in (tokens.ids, tokens.types, tokens.offsets):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def place_of(room: Path, key: dict[str, Any]) -> Path:
    """Folder of an entry."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return room / name[:2] / name


def find(room: Path, key: dict[str, Any], form: Form) -> States | None:
    """The entry, or None where it is absent, of another key, or damaged."""
    folder = place_of(room, key)
    try:
        written = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        path = folder / _FILE
        if written["key"] != key or path.stat().st_size != form.size:
            return None
        if file_sha256(path) != written["sha256"]:
            return None
        os.utime(folder / _MANIFEST)
        mapped = np.memmap(path, dtype=form.stored, mode="r", shape=form.shape)
        return States(form, mapped.view(np.ndarray))  # slices of a memmap are slow
    except (OSError, ValueError, KeyError, TypeError):  # absent, or damaged in whatever way
        return None


def find_or_make(
    room: Path, key: dict[str, Any], form: Form, fill: Callable[[Sink], None], limit: int
) -> States:
    """The entry from `room`, or made now and put there.

    Args:
        room: cache folder.
        key: all that the states depend on, JSON.
        form: of the states.
        fill: computes them and gives them to the sink it gets, in portions (rows, values of `pick`), each row
            once.
        limit: bytes that the room may hold; the entries that weren't used for longest make way.

    Raises:
        OSError: it can't be written (`FullError`: there is no room for it).
    """
    with locked(room, key):
        found = find(room, key, form)
        if found is not None:
            return found
        folder = place_of(room, key)
        shutil.rmtree(folder, ignore_errors=True)
        make_way(room, form.size, limit)
        _write(folder, key, form, fill)
    found = find(room, key, form)
    if found is None:
        raise OSError(f"{folder}: what was written there reads differently")
    return found


@contextlib.contextmanager
def locked(room: Path, key: dict[str, Any]) -> Iterator[None]:
    """Only one process at a time makes an entry."""
    from filelock import FileLock

    folder = room / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{place_of(room, key).name}.lock"):
        yield


class FullError(OSError):
    """States that don't fit."""


def make_way(room: Path, size: int, limit: int) -> None:
    """Remove entries, those first that weren't used for longest, until `size` bytes more fit.

    Raises:
        FullError: they can't, within `limit` bytes or on the disk.
    """
    if size > limit:
        raise FullError(f"{size / GIB:.2f} GiB are needed, engine.trunk_cache_limit is {limit / GIB:g}")
    held = sorted(entries(room))
    while held and sum(taken for _, taken, _ in held) + size > limit:
        _, taken, folder = held.pop(0)
        log.info("frozen layers: %s (%.2f GiB) makes way", folder.name[:12], taken / GIB)
        shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(room).free
    if size > 0.9 * free:
        raise FullError(f"{size / GIB:.2f} GiB are needed, {room} has {free / GIB:.2f} free")


def entries(room: Path) -> list[tuple[float, int, Path]]:
    """(time of last use, bytes, folder) of every entry."""
    found = []
    for manifest in room.glob(f"??/*/{_MANIFEST}"):
        with contextlib.suppress(OSError):  # another process removed it meanwhile
            size = (manifest.parent / _FILE).stat().st_size
            found.append((manifest.stat().st_mtime, size, manifest.parent))
    return found


def _write(folder: Path, key: dict[str, Any], form: Form, fill: Callable[[Sink], None]) -> None:
    """Write aside and rename."""
    for left in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    with aside(folder) as new:
        new.mkdir()
        with (new / _FILE).open("wb") as file:
            # plain writes, not a memory-map: a full disk is an error here and a killed process there
            file.truncate(form.size)
            fill(_sink(file, form))
            file.flush()
            os.fsync(file.fileno())
        facts = {"key": key, "sha256": file_sha256(new / _FILE), "shape": form.shape, "dtype": form.dtype}
        (new / _MANIFEST).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _sink(file: Any, form: Form) -> Sink:
    def put(rows: Rows, values: NDArray[Any]) -> None:
        """Write the values of some rows, which lie end to end."""
        start = 0
        for row in rows:
            first, last = int(form.offsets[row]), int(form.offsets[row + 1])
            file.seek(first * form.width * form.stored.itemsize)
            file.write(np.ascontiguousarray(values[start : start + last - first]).data)
            start += last - first

    return put


# ---------------------------------------------------------------- batches


@dataclass(kw_only=True)
class Rounded(Batching):
    """Batching whose widths make a text's numbers independent of the texts beside it.

    Attention's sums run in an order that depends on the width. In widths of one grid the real tokens are
    always summed in the same order, and padding adds exact zeros.
    """

    multiple: PositiveInt = 1
    """Widths up to `bound` are multiples of this."""
    bound: PositiveInt = 256
    """Wider batches are all `widest` tokens wide."""
    widest: PositiveInt = 1
    """At least the longest text, at most the model's positions."""

    def padded(self, length: int) -> int:
        """Tokens that a batch whose longest text has `length` tokens is padded to."""
        wide = super().padded(length)
        rounded = -(-wide // self.multiple) * self.multiple
        return max(wide, min(rounded, self.widest) if rounded <= self.bound else self.widest)


@dataclass(frozen=True)
class Above(Collator):
    """A collator whose batches carry the states of frozen layers, so that the model starts above them."""

    states: States | None = None
    """Of the same split; None leaves them out."""
    least: int = 0
    """Smaller batches, in tokens with padding, leave them out and run through all layers."""
    alone: bool = False
    """The one kept token of a text is all that is given of it."""

    @classmethod
    def on(
        cls,
        collator: Collator,
        states: States | None,
        batching: Batching,
        least: int = 0,
        alone: bool = False,
    ) -> Above:
        """`collator` with states."""
        same = {field.name: getattr(collator, field.name) for field in fields(Collator)}
        return cls(**{**same, "batching": batching}, states=states, least=least, alone=alone)

    def __call__(self, rows: Rows, device: torch.device) -> Batch:
        """The batch of `rows` on `device`."""
        import torch

        lengths = self.tokens.lengths_of(rows)
        if self.states is None or len(rows) * self.batching.padded(int(lengths.max())) < self.least:
            return super().__call__(rows, device)
        if not self.alone:
            batch = super().__call__(rows, device)
            batch.inputs[STATES] = self.states.padded(rows, self.mask(rows)).to(device)
            return batch
        offsets = self.tokens.offsets
        places = offsets[rows] if self.states.form.keep == "first" else offsets[rows + 1] - 1
        inputs = self.inputs(places[:, None], np.ones((len(rows), 1), dtype=np.bool_), device)
        inputs[STATES] = self.states.alone(rows).to(device)
        labels = torch.from_numpy(np.ascontiguousarray(self.labels[rows])).to(device)
        return Batch(inputs, labels, rows, int(lengths.sum()))
