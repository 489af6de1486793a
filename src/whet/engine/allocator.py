"""The C library's memory allocator, told to keep what training frees and asks for again at every step."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 32 * 1024 * 1024
"""Bytes: the most that glibc accepts as the size from which a block is mapped by itself."""


def keep_freed_memory() -> bool:
    """Stop glibc from giving blocks of up to 32 MiB back to the system as soon as they are freed.

    Every fresh block costs a page fault for each 4 KiB (mallopt(3)). Elsewhere than on glibc nothing is done.

    Returns:
        Whether it was done.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
