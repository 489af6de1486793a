"""Files that are whole or not there, files that grow, and hashes."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

log = logging.getLogger("whet")


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file or a folder to.

    It becomes `path`, in one rename, when all went well, and is gone otherwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        if path.is_dir():
            shutil.rmtree(path)
        beside.replace(path)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Appended:
    """A file that grows; what is written to it is with the system at once, so that a kill loses nothing.

    What a full disk has no room for waits in memory for the next write; training goes on.
    """

    path: Path
    _stream: FileIO | None = field(init=False, repr=False, default=None)
    _waiting: bytes = field(init=False, repr=False, default=b"")
    _full: bool = field(init=False, repr=False, default=False)

    def write(self, content: bytes) -> None:
        """Append `content`, after what still waits."""
        self._waiting += content
        try:
            self._attempt()
        except OSError as error:
            told, self._full = self._full, True  # before the warning, which may come to this very file
            if not told:
                log.warning("%s can't be written (%s): what comes waits in memory", self.path, error)
        else:
            self._full = False

    def close(self) -> None:
        """What still finds no room is lost."""
        self.write(b"")
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _attempt(self) -> None:
        if self._stream is None and self._waiting:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("ab", buffering=0)
        while self._stream is not None and self._waiting:
            self._waiting = self._waiting[self._stream.write(self._waiting) :]
