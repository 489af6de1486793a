"""Texts become token ids once; the result is cached on disk and memory-mapped.

The cache key covers the texts, the tokenizer's files and every argument, so a stale entry can't be found;
the files are verified against their hashes when opened, so a damaged entry can't be used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from whet.errors import ConfigError
from whet.storage import file_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from whet.data.batch import Examples
    from whet.data.prompt import Prompt

log = logging.getLogger(__name__)
FORMAT = 2
_ARRAYS = ("ids", "types", "offsets", "truncated")
_TOKENIZER_FILES = ("tokeniz*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "*.model", "spiece*")
_CHUNK = 2048


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts, end to end."""

    ids: NDArray[np.int32]
    """[total] token ids, special tokens included."""
    types: NDArray[np.int8]
    """[total] segment of each token (0 first text, 1 second)."""
    offsets: NDArray[np.int64]
    """[n + 1] text i is ids[offsets[i]:offsets[i + 1]]."""
    truncated: NDArray[np.bool_]
    """[n] whether the text was longer than max_length."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[n] tokens of each text."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the given texts, without a look at the others."""
        return self.offsets[rows + 1] - self.offsets[rows]


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 over the tokenizer's files (names and contents) in a model directory."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name}:{path.stat().st_size}:".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def texts_hash(texts: Sequence[tuple[str, ...]]) -> str:
    """SHA-256 over texts, with their boundaries."""
    digest = hashlib.sha256()
    for parts in texts:
        encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
        digest.update(str([len(part) for part in encoded]).encode())
        for part in encoded:
            digest.update(part)
    return digest.hexdigest()


def tokenize(
    texts: Sequence[tuple[str, ...]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    source: str,
    room: Path,
    prompt: Prompt | None = None,
) -> Tokens:
    """Token ids of `texts` from the cache, or made now and put there (if it can be written).

    Args:
        texts: one or two strings a row.
        tokenizer: a fast tokenizer.
        max_length: tokens kept of a row, special tokens included; of a pair the longer text is cut first.
        source: hash of the tokenizer's files.
        room: cache folder.
        prompt: a pattern to put each row into.

    Raises:
        ConfigError: `max_length` leaves no room for text.
    """
    import tokenizers

    key = {
        "format": FORMAT,
        "texts": texts_hash(texts),
        "tokenizer": source,
        "class": type(tokenizer).__name__,
        "max_length": max_length,
        "tokenizers": tokenizers.__version__,
        **({} if prompt is None else {"pattern": prompt.pattern}),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = room / name[:2] / name
    found = _open(folder, key)
    if found is not None:
        return found
    made = encode(texts, tokenizer, max_length, prompt=prompt)
    try:
        _write(made, folder, key)
    except OSError as error:
        log.warning(
            "%s: the token cache can't be written (%s); choose another with paths.cache=DIR", room, error
        )
    found = _open(folder, key)
    return made if found is None else found


def tokenize_splits(
    splits: Mapping[str, Examples],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    folder: Path,
    room: Path,
    prompt: Prompt | None = None,
) -> dict[str, Tokens]:
    """`tokenize` for every split; `folder` holds the tokenizer's files."""
    source = tokenizer_hash(folder)
    return {
        name: tokenize(examples.texts, tokenizer, max_length, source, room, prompt)
        for name, examples in splits.items()
    }


def encode(
    texts: Sequence[tuple[str, ...]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    shown: Literal["auto", "off"] = "auto",
    prompt: Prompt | None = None,
) -> Tokens:
    """Token ids of `texts`, without the cache; `shown=off` tells nobody how far it is.

    A text without any token (an empty one, where the tokenizer adds no special tokens) becomes one padding
    token, so that a model has something to read.

    Raises:
        ConfigError: `max_length` leaves no room for text.
    """
    from whet.tracking.progress import progress

    _has_room(tokenizer, max_length, pair=bool(texts) and len(texts[0]) > 1)
    ids, types, truncated = [_NOTHING], [_NOTHING], []
    with progress(len(texts), "tokenising", "texts", shown) as advance:
        for chunk in _chunks(texts):
            given, cut = chunk, [False] * len(chunk)
            if prompt is not None:
                filled, cut = prompt.cut(chunk, tokenizer, max_length)
                given = [(text,) for text in filled]
            for row, before in zip(_encode_chunk(given, tokenizer, max_length), cut, strict=True):
                ids.append(np.array(row.ids or [tokenizer.pad_token_id], dtype=np.int32))
                types.append(np.array(row.type_ids or [0], dtype=np.int8))
                truncated.append(before or bool(row.overflowing))
            advance(len(chunk))
    offsets = np.cumsum([len(row) for row in ids], dtype=np.int64)
    return Tokens(
        np.concatenate(ids, dtype=np.int32),
        np.concatenate(types, dtype=np.int8),
        offsets,
        np.array(truncated, dtype=bool),
    )


_NOTHING = np.array([], dtype=np.int8)


def _has_room(tokenizer: PreTrainedTokenizerBase, max_length: int, pair: bool) -> None:
    """With too small a length the tokenizers library cuts nothing at all, without a word."""
    special = tokenizer.num_special_tokens_to_add(pair)
    if max_length <= special:
        raise ConfigError("task.max_length", f"no room for text beside {special} special tokens", max_length)


def _chunks(texts: Sequence[tuple[str, ...]]) -> Iterator[Sequence[tuple[str, ...]]]:
    for start in range(0, len(texts), _CHUNK):
        yield texts[start : start + _CHUNK]


def _encode_chunk(chunk: Sequence[tuple[str, ...]], tokenizer: Any, max_length: int) -> list[Any]:
    first = [parts[0] for parts in chunk]
    second = [parts[1] for parts in chunk] if len(chunk[0]) > 1 else None
    made = tokenizer(first, second, truncation="longest_first", max_length=max_length, padding=False)
    return list(made.encodings)


def _write(tokens: Tokens, folder: Path, key: dict[str, Any]) -> None:
    """Write aside and rename; whoever comes second keeps the first one's entry."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as room:
        aside = Path(room) / "new"
        aside.mkdir()
        for name in _ARRAYS:
            np.save(aside / f"{name}.npy", getattr(tokens, name))
        hashes = {name: file_sha256(aside / f"{name}.npy") for name in _ARRAYS}
        (aside / "key.json").write_text(json.dumps({"key": key, "sha256": hashes}), encoding="utf-8")
        with contextlib.suppress(OSError):  # of several processes one is first here …
            if _open(folder, key) is None:
                folder.rename(Path(room) / "damaged")
        with contextlib.suppress(OSError):  # … and here; the others' entry is as good
            aside.rename(folder)


def _open(folder: Path, key: dict[str, Any]) -> Tokens | None:
    """The entry, or None where it is absent, of another key, or damaged."""
    try:
        written = json.loads((folder / "key.json").read_text(encoding="utf-8"))
        whole = all(file_sha256(folder / f"{name}.npy") == written["sha256"][name] for name in _ARRAYS)
        if written["key"] != key or not whole:
            return None
        # as plain arrays: slices of a memmap are slow
        return Tokens(*(np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in _ARRAYS))
    except (OSError, ValueError, KeyError, TypeError):  # absent, or damaged in whatever way
        return None
