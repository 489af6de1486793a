"""Peak memory, seen from outside: psutil, a known allocation, another process."""

import subprocess
import sys

import psutil
import pytest
import torch

from whet.engine.memory import describe, peak_memory, peak_resident, reset_peak

MIB = 2**20


def fill(mib):
    """So much memory, every page of it touched."""
    return bytearray(b"x") * (mib * MIB)


def resettable():
    held = fill(64)
    before = peak_resident()
    del held
    reset_peak()
    return peak_resident() < before


def test_the_peak_outlives_what_made_it():
    reset_peak()
    start = psutil.Process().memory_info().rss
    held = fill(200)
    del held
    assert peak_memory()["peak_mb"] >= start // MIB + 190
    assert peak_resident() >= psutil.Process().memory_info().rss


def test_a_run_is_not_told_what_the_one_before_needed():
    if not resettable():
        pytest.skip("this system doesn't let a process forget its peak")
    held = fill(300)
    high = peak_memory()["peak_mb"]
    del held
    reset_peak()
    assert peak_memory()["peak_mb"] <= high - 200


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc and /proc")
def test_memory_that_the_allocator_kept_is_no_runs():
    """A sweep's trials share a process: blocks that training freed, and that were kept for it, go back."""
    code = """
import torch
from whet.engine.allocator import keep_freed_memory
from whet.engine.memory import peak_resident, reset_peak
assert keep_freed_memory()
held = [torch.ones(4 * 2**20) for _ in range(40)]
ring = [held]
ring.append(ring)  # only the garbage collector finds it
last = torch.ones(1000)
high = peak_resident()
del held, ring
reset_peak()
print(high, peak_resident())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    high, after = map(int, told.stdout.split())
    assert high - after > 500 * MIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_child_is_not_told_what_its_parent_needed():
    """Where a child is made by fork and exec, getrusage's figure is its parent's."""
    held = fill(400)
    code = "from whet.engine.memory import peak_resident; print(peak_resident())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 200 * MIB < len(held)


def test_without_a_gpu_there_is_no_figure_for_one():
    assert ("peak_gpu_mb" in peak_memory()) == torch.cuda.is_initialized()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_of_the_gpu():
    torch.zeros(1, device="cuda")
    reset_peak()
    held = torch.empty(300 * MIB, dtype=torch.uint8, device="cuda")
    del held
    assert 300 <= peak_memory()["peak_gpu_mb"] < 600
    reset_peak()
    assert peak_memory()["peak_gpu_mb"] < 300


@pytest.mark.parametrize(
    ("peak", "line"),
    [
        ({"peak_mb": 1234}, "peak memory: 1,234 MiB"),
        ({"peak_mb": 7, "peak_gpu_mb": 20480}, "peak memory: 7 MiB, 20,480 MiB on the GPU"),
    ],
)
def test_the_line_for_the_log(peak, line):
    assert describe(peak) == line
