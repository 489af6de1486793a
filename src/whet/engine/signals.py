"""SIGTERM and SIGINT: stop between two updates, not in the middle of one."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("whet.engine")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class StopRequest:
    """Whether a signal has asked for the end."""

    number: int = 0
    """The signal; 0 while none came."""

    def __bool__(self) -> bool:
        return self.number != 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note the first signal; a second SIGINT (or SIGTERM) stops at once. Only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self:
            raise KeyboardInterrupt
        self.number = number
        log.warning("%s: stopping after this update; once more stops at once", signal.Signals(number).name)
