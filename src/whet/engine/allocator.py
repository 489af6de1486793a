"""The C library's memory allocator, told to keep what training frees and asks for again at every step."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 32 * 1024 * 1024
"""Bytes: the most that glibc accepts as the size from which a block is mapped by itself."""


def keep_freed_memory() -> bool:
    """Stop glibc from giving blocks of up to 32 MiB back to the system as soon as they are freed.

    Every fresh block costs a page fault for each 4 KiB (mallopt(3)). Elsewhere than on glibc nothing is done.

    Returns:
        Whether it was done.
    """
    mallopt = _function("mallopt")
    return (
        mallopt is not None
        and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))
        and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    )


def give_back_freed_memory() -> bool:
    """Give what is free at this moment back to the system (malloc_trim(3)); whether there was any."""
    trim = _function("malloc_trim")
    return trim is not None and bool(trim(0))


def _function(name: str) -> Any:
    """One of glibc's own; None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
