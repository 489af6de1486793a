"""A safetensors file in main memory, from where it reaches the disk without going through the page cache.

Where the CPU trains, what a checkpoint needs of it is lost to training. Copying the tensors into memory that
is already there, hashing the files on all cores, and letting the disk fetch the bytes itself (open(2),
O_DIRECT) costs less of it than writing them in the usual way, and reading them again for the hash.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

PAGE = 4096
"""Bytes: what addresses, sizes and places must be multiples of for O_DIRECT."""
PIECE = 8 * 2**20
"""Bytes of one write."""
_KINDS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""Torch's names of number formats, and safetensors' names."""


class Image:
    """The bytes of a safetensors file (its format: huggingface.co/docs/safetensors).

    Args:
        tensors: their names, shapes and number formats are the image's; it holds no values yet.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        import torch

        self._header, places, self.size = _layout(tensors)
        self._memory = mmap.mmap(-1, max(self.size, 1))
        self._memory[: len(self._header)] = self._header
        self._views = {}
        for name, tensor in tensors.items():
            if tensor.numel():
                flat = torch.frombuffer(
                    self._memory, dtype=tensor.dtype, count=tensor.numel(), offset=places[name]
                )
                self._views[name] = flat.view(tensor.shape)

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether `tensors` have the image's names, shapes and number formats."""
        return _layout(tensors)[0] == self._header

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy values from whatever device they are on."""
        for name, view in self._views.items():
            view.copy_(tensors[name].detach())

    def sha256(self) -> str:
        """Of the file, in hex."""
        return hashlib.sha256(self._bytes()).hexdigest()

    def write(self, path: Path) -> None:
        """Make the file; it is the caller's part to sync it.

        Raises:
            OSError: there is no room.
        """
        handle = _open(path)
        try:
            _write(handle, self._bytes())
        finally:
            os.close(handle)

    def _bytes(self) -> memoryview:
        return memoryview(self._memory)[: self.size]


def _layout(tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, int], int]:
    """Header, place of each tensor's first byte in the file, and the file's size.

    Larger numbers come first, so that each lies at a multiple of its own size.
    """
    facts: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name]
        starts[name], end = end, end + tensor.numel() * tensor.element_size()
        kind = _KINDS[str(tensor.dtype).removeprefix("torch.")]
        facts[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [starts[name], end]}
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return header, {name: start + len(header) for name, start in starts.items()}, len(header) + end


def _open(path: Path) -> int:
    flags, direct = os.O_WRONLY | os.O_CREAT | os.O_EXCL, getattr(os, "O_DIRECT", 0)
    try:
        return os.open(path, flags | direct, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what a file system says that hasn't got it
            raise
    path.unlink(missing_ok=True)  # some make the file all the same
    return os.open(path, flags, 0o666)


def _write(handle: int, content: memoryview) -> None:
    """Whole pages past the page cache, where the file system can; the rest through it."""
    done, whole = 0, len(content) - len(content) % PAGE
    while done < len(content):
        end = min(done + PIECE, whole) if done < whole else len(content)
        if done % PAGE or end % PAGE:
            _through_cache(handle)
        try:
            done += os.write(handle, content[done:end])
        except OSError as error:
            if error.errno != errno.EINVAL or not _through_cache(handle):
                raise


def _through_cache(handle: int) -> bool:
    """Turn O_DIRECT off; whether it was on."""
    flags, direct = fcntl.fcntl(handle, fcntl.F_GETFL), getattr(os, "O_DIRECT", 0)
    if not flags & direct:
        return False
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~direct)
    return True
