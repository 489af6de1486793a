"""Signals that ask for the end: stop between two updates, not in the middle of one."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from whet.errors import Interrupted
from whet.pending import remember

log = logging.getLogger("whet.engine")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
PREEMPTION = (signal.SIGUSR1, signal.SIGUSR2)
"""Submitit awaits one of them in its jobs to requeue them: USR2, or what SUBMITIT_PREEMPT_SIGNAL says."""


@dataclass
class StopRequest:
    """Whether a signal has asked for the end."""

    number: int = 0
    """The signal; 0 while none came."""
    noticed: bool = False
    """A signal that submitit lets pass has come: the job may be killed soon."""

    def __bool__(self) -> bool:
        return self.number != 0

    def take_notice(self) -> bool:
        """Whether the job may be killed soon; true once for each such signal."""
        noticed, self.noticed = self.noticed, False
        return noticed

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note the first signal; a second SIGINT (or SIGTERM) stops at once. Only in the main thread.

        In a job of submitit its preemption signal counts too (see `hand_on`), and SIGTERM doesn't end the
        run: Slurm sends it to what it will kill or requeue by itself, and submitit lets it pass.

        A run that ends by itself first (complete, pruned, failed) leaves the signal to who would start the
        next one: see whet.pending.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = [*SIGNALS, *(number for number in PREEMPTION if is_submitits(number))]
        before = {number: signal.signal(number, self._answer(number)) for number in wanted}
        answered = False
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            answered = True
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self and not answered:
                remember(self.number)

    def _answer(self, number: int) -> Any:
        return self._pass if number == signal.SIGTERM and is_submitits(number) else self._note

    def _note(self, number: int, frame: Any) -> None:
        if self:
            raise KeyboardInterrupt
        self.number = number
        log.warning("%s: stopping after this update; once more stops at once", signal.Signals(number).name)

    def _pass(self, number: int, frame: Any) -> None:
        self.noticed = True
        log.warning("%s: saving after this update, and going on", signal.Signals(number).name)


def hand_on(number: int) -> None:
    """Let submitit answer the signal that a run stopped at: it requeues the job and ends the process.

    Called when all is saved and on record; does nothing about other signals.
    """
    if number in PREEMPTION and is_submitits(number):
        signal.raise_signal(signal.Signals(number))


def is_submitits(number: int) -> bool:
    """Whether submitit has a handler for this signal in this process."""
    return str(getattr(signal.getsignal(number), "__module__", "")).startswith("submitit")
