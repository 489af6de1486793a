"""Peak memory of a run: of the process, and of the GPUs that it used."""

from __future__ import annotations

import contextlib
import gc
import sys
from pathlib import Path

from whet.engine.allocator import give_back_freed_memory

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak() -> None:
    """Forget the peaks so far, so that a run isn't told what another one before it needed.

    What that one has left goes back to the system. The process's own peak is forgotten only where Linux lets
    it (proc_pid_clear_refs(5)); elsewhere it counts from its start.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    gc.collect()
    give_back_freed_memory()
    with contextlib.suppress(OSError):  # not Linux, or not allowed
        _CLEAR.write_text("5", encoding="ascii")


def peak_memory() -> dict[str, int]:
    """Largest memory since `reset_peak`, in MiB.

    Returns:
        `peak_mb`: resident memory of the process. `peak_gpu_mb`, where GPUs are used: what torch allocated
        on the one that it used most.
    """
    found = {"peak_mb": peak_resident() // 2**20}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        found["peak_gpu_mb"] = max(torch.cuda.max_memory_allocated(device) for device in devices) // 2**20
    return found


def peak_resident() -> int:
    """Largest resident memory in bytes: since `reset_peak` on Linux, else since the process started.

    getrusage(2) alone won't do: its figure survives exec(2), so that a child is told what its parent needed.
    """
    import resource

    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe(peak: dict[str, int]) -> str:
    """One line for the log."""
    gpu = f", {peak['peak_gpu_mb']:,} MiB on the GPU" if "peak_gpu_mb" in peak else ""
    return f"peak memory: {peak['peak_mb']:,} MiB{gpu}"
