"""Texts become token ids once; the result is cached on disk and memory-mapped.

The cache key covers the texts, the tokenizer's files and every argument, so a stale entry can't be found;
the files are verified against their hashes when opened, so a damaged entry can't be used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
_ARRAYS = ("ids", "types", "offsets", "truncated")
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "*.model", "spiece*")
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
    texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int, source: str, room: Path
) -> Tokens:
    """Token ids of `texts` from the cache, or made now and put there.

    Args:
        texts: one or two strings a row.
        tokenizer: a fast tokenizer.
        max_length: tokens kept of a row, special tokens included; of a pair the longer text is cut first.
        source: hash of the tokenizer's files.
        room: cache folder.
    """
    import tokenizers

    key = {
        "format": FORMAT,
        "texts": texts_hash(texts),
        "tokenizer": source,
        "class": type(tokenizer).__name__,
        "max_length": max_length,
        "tokenizers": tokenizers.__version__,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = room / name[:2] / name
    found = _open(folder, key)
    if found is None:
        _write(encode(texts, tokenizer, max_length), folder, key)
        found = _open(folder, key)
    if found is None:
        raise OSError(f"{folder}: the token cache can't be written or read back; choose another with paths.cache=DIR")
    return found


def encode(texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tokens:
    """Token ids of `texts`, without the cache."""
    from whet.tracking.progress import progress

    rows: list[Any] = []
    with progress(len(texts), "tokenising", "texts") as advance:
        for chunk in _chunks(texts):
            rows.extend(_encode_chunk(chunk, tokenizer, max_length))
            advance(len(chunk))
    lengths = [len(row.ids) for row in rows]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ids = np.fromiter((i for row in rows for i in row.ids), dtype=np.int32, count=int(offsets[-1]))
    types = np.fromiter((i for row in rows for i in row.type_ids), dtype=np.int8, count=int(offsets[-1]))
    return Tokens(ids, types, offsets, np.array([bool(row.overflowing) for row in rows], dtype=bool))


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
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name in _ARRAYS:
        np.save(aside / f"{name}.npy", getattr(tokens, name))
    hashes = {name: _sha256(aside / f"{name}.npy") for name in _ARRAYS}
    (aside / "key.json").write_text(json.dumps({"key": key, "sha256": hashes}), encoding="utf-8")
    try:
        aside.rename(folder)
    except OSError:  # another process was first, or a damaged entry stands there
        if _open(folder, key) is None:
            shutil.rmtree(folder)
            aside.rename(folder)
        else:
            shutil.rmtree(aside)


def _open(folder: Path, key: dict[str, Any]) -> Tokens | None:
    """The entry, or None where it is absent, of another key, or damaged."""
    try:
        written = json.loads((folder / "key.json").read_text(encoding="utf-8"))
        whole = all(_sha256(folder / f"{name}.npy") == written["sha256"][name] for name in _ARRAYS)
        if written["key"] != key or not whole:
            return None
        return Tokens(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS))
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
