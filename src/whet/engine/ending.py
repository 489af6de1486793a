"""How the processes of a job end together: whoever fails first tells the user, the others end in silence.

They speak through the launcher's key-value store, which outlives each of them.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.errors import WhetError, one_line

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from whet.ranks import Ranks

_NOTICE = 2.0
"""Seconds in which a process whose connections have broken can be seen to be dead."""
_TICK = 0.02
_BROKEN = ("gloo/transport", "Connection closed", "Connection reset", "Broken pipe", "ncclRemoteError")
"""In what gloo, NCCL and the store say of a connection that has gone."""


class Elsewhere(WhetError):
    """Another process of the job has an error, and tells it."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Ending:
    """One process's view of the end of its job."""

    ranks: Ranks
    store: Store
    peers: list[tuple[str, int]]
    """Host and process id by rank."""
    begun: bool = False
    """Whether this process is on its way out."""

    def claim(self, error: BaseException) -> bool:
        """Say what happened; whether this process was the first to, and so tells the user."""
        code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
        mine = json.dumps({"rank": self.ranks.rank, "told": _told(error), "code": code})
        try:
            first = bool(self.store.compare_set("end", "", mine).decode() == mine)
        except RuntimeError:  # the store is gone too: better told twice than not at all
            return True
        if first:
            _for_torchrun(_told(error))
        return first

    def heard(self) -> Elsewhere | None:
        """The end that another process has claimed."""
        if not self._has("end"):
            return None
        end = json.loads(self.store.get("end"))
        other = end["rank"] != self.ranks.rank
        return Elsewhere(f"rank {end['rank']}: {end['told']}", end["code"]) if other else None

    def cause(self, error: RuntimeError) -> WhetError | None:
        """The end of another process behind an error of this one; None where there is none."""
        network = _is_network(error)
        dead = self._missing(_NOTICE if network else 0.0)
        if (heard := self.heard()) is not None:
            return heard
        return self._lost(dead) if dead or network else None

    def part(self) -> None:
        """This process has done its work and leaves; nobody will miss it."""
        self.store.set(f"left {self.ranks.rank}", "")

    def on_sigterm(self, number: int, frame: Any) -> None:
        """torchrun sends it to all processes once one has ended: who is writing its last words finishes them.

        Raises:
            WhetError: a process is gone that has said nothing.
        """
        if self.begun or self._has("end"):
            return
        if dead := self._missing(0.0):
            raise self._lost(dead)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def is_dead(self, rank: int) -> bool:
        """Whether a process of this machine has ended; of another machine it can't be known."""
        import psutil

        host, pid = self.peers[rank]
        if host != platform.node():
            return False
        try:
            return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    def _lost(self, dead: list[int]) -> WhetError:
        """The error of a process that has ended without a word."""
        self.begun = True
        gone = ", ".join(f"rank {rank} (process {self.peers[rank][1]})" for rank in dead)
        lost = WhetError(
            f"{gone or 'another process'} is gone: killed or crashed, so the others stop too; "
            "the same command with resume=auto completes the run"
        )
        return lost if self.claim(lost) else self.heard() or lost

    def _missing(self, seconds: float) -> list[int]:
        """Ranks that are dead, or as soon as one is; none if an end was claimed meanwhile."""
        deadline = time.monotonic() + seconds
        while True:
            dead = [rank for rank in range(self.ranks.size) if self.is_dead(rank) and not self._left(rank)]
            if dead or self._has("end") or time.monotonic() >= deadline:
                return dead
            time.sleep(_TICK)

    def _left(self, rank: int) -> bool:
        return self._has(f"left {rank}")

    def _has(self, key: str) -> bool:
        try:
            return bool(self.store.check([key]))
        except RuntimeError:
            return False


def _is_network(error: RuntimeError) -> bool:
    """Whether a connection to another process failed, not a computation."""
    return any(sign in str(error) for sign in _BROKEN)


def _told(error: BaseException) -> str:
    known = one_line(error)
    return known if isinstance(error, WhetError) else f"{type(error).__name__}: {known}"


def _for_torchrun(told: str) -> None:
    """torchrun shows this as the root cause."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(path).write_text(json.dumps({"message": told, "timestamp": int(time.time())}), encoding="utf-8")
