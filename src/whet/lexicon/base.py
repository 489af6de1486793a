"""What every lexicon gives: the synonyms of a word, and the words that are no content."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.config import Component

if TYPE_CHECKING:
    from whet.paths import Paths


@dataclass(frozen=True)
class Thesaurus:
    """A lexicon in memory."""

    synonyms: Callable[[str], tuple[str, ...]]
    """Other words for a word in lower case, sorted; none where it is unknown or could mean too much."""
    stop: frozenset[str]
    """Words in lower case that carry no content of their own; they are never replaced."""


class Lexicon(Component, ABC):
    """A source of synonyms."""

    @abstractmethod
    def open(self, paths: Paths) -> Thesaurus:
        """Bring the files here if they aren't, and read them.

        Raises:
            DataError: not to be had, or not the pinned bytes; the key is relative to this component.
        """


def grouped(groups: Iterable[Sequence[str]]) -> Callable[[str], tuple[str, ...]]:
    """Look-up in groups of words that mean the same; a word of several groups has the synonyms of all."""
    found: dict[str, set[str]] = {}
    for group in groups:
        for word in group:
            found.setdefault(word, set()).update(group)
    synonyms = {word: tuple(sorted(others - {word})) for word, others in found.items()}
    return lambda word: synonyms.get(word, ())
