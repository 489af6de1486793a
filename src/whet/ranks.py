"""Which process of a job this is: what torchrun says in the environment. Loads nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Ranks:
    """A process's place among those of its job."""

    rank: int = 0
    """Number among all processes."""
    size: int = 1
    """Processes of the job."""
    local_rank: int = 0
    """Number among those of this machine."""
    local_size: int = 1
    """Processes of the job on this machine."""
    launched: bool = False
    """Whether a launcher started the job, even one of a single process."""

    @property
    def first(self) -> bool:
        """Whether this process writes what the job writes: files, logs, console."""
        return self.rank == 0

    def threads(self, cores: int, wanted: str | None = None) -> int:
        """CPU threads of one process, so that those of a machine share its cores.

        Args:
            cores: of this machine.
            wanted: OMP_NUM_THREADS; torchrun sets it to 1 unasked, so only a larger number is a wish.
        """
        asked = int(wanted) if wanted and wanted.isdigit() else 1
        return asked if asked > 1 else max(1, cores // self.local_size)


def cores() -> int:
    """Cores of this machine, without hyperthreads, that this process may use."""
    import psutil

    real = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else real
    return min(real, allowed)


def here(environment: Mapping[str, str] | None = None) -> Ranks:
    """This process's place; that of a job of one where no launcher said otherwise."""
    told = os.environ if environment is None else environment
    if any(name not in told for name in (*_NAMES, "MASTER_ADDR", "MASTER_PORT")):
        return Ranks()
    rank, size, local_rank, local_size = (int(told[name]) for name in _NAMES)
    return Ranks(rank, size, local_rank, local_size, launched=True)
