"""Synonyms of your own: a text file with words of one meaning on a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.data.files import existing
from whet.errors import DataError
from whet.lexicon.base import Lexicon, Thesaurus, grouped

if TYPE_CHECKING:
    from pathlib import Path

    from whet.paths import Paths


@dataclass(kw_only=True)
class Own(Lexicon):
    """A UTF-8 file whose lines hold words of one meaning, divided by spaces; what follows a # is left out."""

    path: str
    """The file."""
    stop: str | None = None
    """A file of words, one a line, that are never replaced; null: none."""

    def open(self, paths: Paths) -> Thesaurus:
        groups = [line.lower().split() for line in _lines(existing(self.path, "path"), "path")]
        stop = [] if self.stop is None else _lines(existing(self.stop, "stop"), "stop")
        return Thesaurus(grouped(groups), frozenset(word.strip().lower() for word in stop))


def _lines(path: Path, key: str) -> list[str]:
    """Lines without their comments."""
    try:
        return [line.partition("#")[0] for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(key, f"is not UTF-8 (byte {error.start})", str(path)) from None
