"""Progress on stderr: rows of one live display on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal

from whet.ranks import here

if TYPE_CHECKING:
    from rich.console import Console as Terminal
    from rich.progress import Progress, TaskID

Choice = Literal["auto", "bar", "lines", "off"]
_quiet = False


def be_quiet(quiet: bool) -> None:
    """Whether `auto` shows nothing from now on: where a sweep tells of its trials."""
    global _quiet
    _quiet = quiet


SHORT_SECONDS = 2.0
"""Work that ends sooner leaves no plain lines."""


@contextmanager
def progress(
    total: int, title: str, unit: str, choice: Choice = "auto", every_seconds: float = 10.0
) -> Iterator[Callable[[int], None]]:
    """Show how far a long piece of work is, with an ETA.

    Args:
        total: how much there is to do; 0 if unknown.
        title: what is being done.
        unit: what is counted; `B` is shown as kB, MB, GB.
        choice: a live bar, plain lines, nothing, or what suits stderr.
        every_seconds: at most one plain line in so many seconds.

    Yields:
        `advance(n)`: call it whenever `n` more are done.
    """
    row = open_row(title, total, unit, choice, every_seconds, patience=SHORT_SECONDS)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        row.update(done)

    try:
        yield advance
    finally:
        row.close()


# ---------------------------------------------------------------- rows


@dataclass
class Row(ABC):
    """How far one piece of work is."""

    title: str
    total: int
    unit: str
    _pace: Pace = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._pace = Pace(self.total, time.monotonic())

    @abstractmethod
    def update(self, done: int, text: str = "", always: bool = False) -> None:
        """Show that `done` are done; `text` follows; `always`: don't wait for the next line's time."""

    @abstractmethod
    def close(self) -> None:
        """The work has ended, well or not."""

    def say(self, text: str) -> None:
        """A line that stays."""
        print(text, file=sys.stderr, flush=True)

    def figures(self, done: int) -> str:
        """`120/1,000 steps 12% ETA 0:07:20`."""
        share = f" {100 * done // self.total}%" if self.total else ""
        left = self._pace.remaining(done, time.monotonic())
        return f"{amount(done, self.total, self.unit)}{share} ETA {clock(left)}"


class Silence(Row):
    """Shows nothing."""

    def update(self, done: int, text: str = "", always: bool = False) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


@dataclass
class Lines(Row):
    """Plain lines, for files and pipes."""

    every_seconds: float
    patience: float = 0.0
    """Nothing is written before so many seconds."""
    _last: float | None = field(init=False, repr=False, default=None)
    _done: int = field(init=False, repr=False, default=0)

    def update(self, done: int, text: str = "", always: bool = False) -> None:
        self._done = done
        now, began = time.monotonic(), self._pace.started
        due = now - began >= self.patience if self._last is None else now - self._last >= self.every_seconds
        figures = self.figures(done)
        if due or always:
            self._last = now
            self.say(
                " ".join(filter(None, (f"{self.title}:", figures, f"elapsed {clock(now - began)}", text)))
            )

    def close(self) -> None:
        spent = time.monotonic() - self._pace.started
        if self.patience and spent >= self.patience:
            self.say(f"{self.title}: {amount(self._done, self.total, self.unit)} in {clock(spent)}")


@dataclass
class Bar(Row):
    """One row of the live display that all bars of the process share."""

    _task: TaskID = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._task = _display.open(self)

    def update(self, done: int, text: str = "", always: bool = False) -> None:
        _display.show(self._task, done, self.figures(done), text)

    def close(self) -> None:
        _display.close(self._task)


def open_row(
    title: str, total: int, unit: str, choice: Choice, every_seconds: float, patience: float = 0.0
) -> Row:
    """The row that `choice` stands for on this process's stderr; auto is off where another process tells."""
    if choice == "auto" and not here().first:
        choice = "off"
    if choice == "auto":
        live = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        choice = "off" if _quiet else "bar" if live else "lines"
    if choice == "bar":
        return Bar(title, total, unit)
    if choice == "lines":
        return Lines(title, total, unit, every_seconds, patience)
    return Silence(title, total, unit)


# ---------------------------------------------------------------- figures


@dataclass
class Pace:
    """Predicts the time left by the pace since the first update, so that start-up doesn't count."""

    total: int
    started: float
    first: tuple[int, float] | None = None

    def remaining(self, done: int, now: float) -> float | None:
        """Seconds left, or None while it can't be known."""
        if self.first is None:
            self.first = (done, now)
        since, moment = self.first if done > self.first[0] else (0, self.started)
        if not self.total or done <= since:
            return None
        return max(self.total - done, 0) * (now - moment) / (done - since)


def clock(seconds: float | None) -> str:
    """`1:02:03`, or `?` for an unknown time."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def amount(done: int, total: int, unit: str) -> str:
    """`120/1,000 steps`, `1.2 MB/3.4 GB`."""
    if unit == "B":
        return f"{_size(done)}/{_size(total)}" if total else _size(done)
    return f"{done:,}/{total:,} {unit}" if total else f"{done:,} {unit}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


# ---------------------------------------------------------------- the live display


def terminal() -> Terminal:
    """The terminal that bars are drawn on: stderr, never stdout."""
    from rich.console import Console as Terminal

    return Terminal(stderr=True)


class _Display:
    """One rich display per process, open while it has rows; log lines appear above it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress: Progress | None = None

    def open(self, row: Row) -> TaskID:
        with self._lock:
            if self._progress is None:
                self._progress = _start()
            fields: dict[str, Any] = {"figures": row.figures(0), "text": ""}
            return self._progress.add_task(row.title, total=row.total or None, **fields)

    def show(self, task: TaskID, done: int, figures: str, text: str) -> None:
        if (live := self._progress) is not None:
            live.update(task, completed=done, figures=figures, text=text, refresh=True)

    def close(self, task: TaskID) -> None:
        with self._lock:
            if self._progress is None or task not in self._progress.task_ids:
                return
            self._progress.remove_task(task)
            if not self._progress.task_ids:
                _stop(self._progress)
                self._progress = None


_display = _Display()


def _start() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    def text(name: str) -> TextColumn:
        return TextColumn(name, markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))

    columns = (text("{task.description}"), BarColumn(bar_width=20), text("{task.fields[figures]}"))
    live = Progress(
        *columns,
        TimeElapsedColumn(),
        text("{task.fields[text]}"),
        console=terminal(),
        transient=True,
        redirect_stdout=False,
    )
    before = sys.stderr
    live.start()
    _move_log_lines(before, sys.stderr)
    return live


def _stop(live: Progress) -> None:
    before = sys.stderr
    live.stop()
    _move_log_lines(before, sys.stderr)


def _move_log_lines(old: IO[str], new: IO[str]) -> None:
    """Point the log handlers that write to `old` at `new`; they keep the stream they were made with."""
    known = logging.Logger.manager.loggerDict.values()
    loggers = [logging.getLogger(), *(item for item in known if isinstance(item, logging.Logger))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)
