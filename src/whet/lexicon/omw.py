"""Open Multilingual WordNet (Bond & Foster, 2013): words of other languages for WordNet's meanings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.data.wheel import members
from whet.lexicon.base import Lexicon, Thesaurus, grouped

if TYPE_CHECKING:
    from whet.paths import Paths


@dataclass(kw_only=True)
class MultilingualWordNet(Lexicon):
    """One language's table of meanings, out of a wheel that is read as data.

    A word that occurs with several parts of speech could be any of them, so it has no synonyms.
    """

    package: str
    """`name==version`."""
    table: str
    """Member with lines `offset-pos TAB language:lemma TAB word`."""
    sha256: str
    """Expected hash of it."""

    def open(self, paths: Paths) -> Thesaurus:
        (file,) = members(self.package, {self.table: self.sha256}, paths.cached("wheels"))
        return Thesaurus(grouped(meanings(file.read_text(encoding="utf-8").splitlines())), frozenset())


def meanings(lines: Iterable[str]) -> Iterator[list[str]]:
    """The words of each meaning, without those of several parts of speech and those of several words."""
    words: dict[str, list[str]] = {}
    speech: dict[str, set[str]] = {}
    for line in lines:
        fields = line.split("\t")
        if line.startswith("#") or len(fields) != 3 or not fields[1].endswith(":lemma"):
            continue
        word = fields[2].strip().replace("+", "")  # marks where a word is put together
        words.setdefault(fields[0], []).append(word)
        speech.setdefault(word, set()).add(fields[0][-1].replace("s", "a"))
    for found in words.values():
        yield [word for word in found if len(speech[word]) == 1 and " " not in word]
