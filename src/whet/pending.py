"""A signal that came when the run at hand was about to end by itself: no other is begun after it."""

from __future__ import annotations

import signal

from whet.errors import Interrupted

_unanswered: list[int] = []


def remember(number: int) -> None:
    """A signal has come that the work at hand doesn't stop for."""
    _unanswered[:] = [number]


def forget() -> None:
    """A new command begins."""
    _unanswered.clear()


def see_unanswered() -> None:
    """Called before another run begins in this process.

    Raises:
        Interrupted: a signal came during the one before, too late to stop it.
    """
    for number in _unanswered:
        name = signal.Signals(number).name
        raise Interrupted(number, f"{name}: the run at hand had come to its end; no other is begun")
