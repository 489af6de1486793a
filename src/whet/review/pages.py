"""Processes that serve pages, started and stopped together."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from whet.errors import WhetError, one_line

_GRACE = 5.0
"""Seconds that a process has to end by itself."""
_TICK = 0.1


@dataclass
class Page:
    """A process that serves a page."""

    name: str
    place: str
    """Host and port; port 0: a free one."""
    process: subprocess.Popen[str]
    said: IO[str]
    """What it has written to stderr."""
    url: str = ""

    def wait_for_url(self) -> None:
        """Its address, as soon as it serves.

        Raises:
            WhetError: it doesn't.
        """
        line = self.process.stdout.readline() if self.process.stdout else ""
        answer: dict[str, str] = json.loads(line) if line else {"error": self.last_words()}
        if "url" not in answer:
            hint = "; leave its port out to take a free one" if "in use" in answer["error"] else ""
            raise WhetError(f"{self.name} can't start at {self.place}: {answer['error']}{hint}")
        self.url = answer["url"]

    def end(self) -> str | None:
        """How it ended by itself; None while it serves."""
        code = self.process.poll()
        if code is None:
            return None
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{self.name} has ended ({how}): {self.last_words()}"

    def last_words(self) -> str:
        """The last line that it wrote."""
        self.process.wait()
        self.said.seek(0)
        lines = [line for line in self.said.read().splitlines() if line.strip()]
        return one_line(lines[-1]) if lines else "it didn't say why"

    def stop(self) -> None:
        """End it, and wait until it has."""
        if self.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.said.close()
        if self.process.stdout:
            self.process.stdout.close()


def start(name: str, **told: Any) -> Page:
    """Begin to serve a page.

    Args:
        name: for people.
        told: `page`, `host`, `port` (0: a free one) and what `whet.review.page` needs for that page.
    """
    said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  as long as the page
    command = [sys.executable, "-m", "whet.review.page"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=said,
        text=True,
        start_new_session=True,  # no Ctrl-C of its own
    )
    if process.stdin:
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()
    return Page(name, f"{told['host']}:{told['port']}", process, said)


@contextlib.contextmanager
def serving(wanted: Sequence[dict[str, Any]]) -> Iterator[list[Page]]:
    """Pages that are served meanwhile; none is left behind.

    Args:
        wanted: arguments of `start` for each.

    Raises:
        WhetError: one can't start.
    """
    with contextlib.ExitStack() as stack:
        pages = [_until_closed(stack, start(**each)) for each in wanted]
        for page in pages:
            page.wait_for_url()
        yield pages


def _until_closed(stack: contextlib.ExitStack, page: Page) -> Page:
    stack.callback(page.stop)
    return page


def wait(pages: Sequence[Page], stop: threading.Event) -> None:
    """Until `stop` is set.

    Raises:
        WhetError: one of them has ended by itself.
    """
    while not stop.wait(_TICK):
        for page in pages:
            if told := page.end():
                raise WhetError(told)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Set by Ctrl-C and by SIGTERM."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, action in before.items():
            signal.signal(number, action)
