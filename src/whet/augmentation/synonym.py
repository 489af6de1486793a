"""Synonym replacement (Zhang et al., 2015, section 2.4): some words by others of the same meaning.

"Character-level Convolutional Networks for Text Classification". Kept are stop words, names, and words that
the lexicon doesn't know or of which it can't tell the part of speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.augmentation.base import Change, Surroundings, by_text
from whet.augmentation.words import Cutter, Language, WordMethod, Words, drawn, like, some
from whet.errors import ConfigError
from whet.lexicon.base import Lexicon, Thesaurus

if TYPE_CHECKING:
    import numpy as np

_ENDS = (".", "!", "?", "\n", "…")
_VOWELS = tuple("aeiou")


@dataclass(kw_only=True)
class Synonym(WordMethod):
    """Replaces words by synonyms in the same case and form."""

    english: Lexicon
    """Synonyms of English words."""
    chinese: Lexicon
    """Synonyms of Chinese words."""

    def open(self, around: Surroundings) -> Change:
        cut = Cutter(self.language, around)
        lexicons = Lexicons(self.english, self.chinese, around)

        def change(text: str, rng: np.random.Generator) -> str:
            words = cut(text)
            return replaced(words, some(self.rate, len(words)), lexicons.of(words.language), rng).text()

        return by_text(change)


class Lexicons:
    """The lexicon of each language, opened when a text first asks for it."""

    def __init__(self, english: Lexicon, chinese: Lexicon, around: Surroundings) -> None:
        self._sources: dict[Language, tuple[str, Lexicon]] = {
            "en": ("english", english),
            "zh": ("chinese", chinese),
        }
        self._around = around
        self._open: dict[Language, Thesaurus] = {}

    def of(self, language: Language) -> Thesaurus:
        """The thesaurus of a language."""
        if language not in self._open:
            name, source = self._sources[language]
            try:
                self._open[language] = source.open(self._around.paths)
            except ConfigError as error:
                raise error.under(f"{self._around.key}.{name}") from None
        return self._open[language]


def replaced(words: Words, count: int, thesaurus: Thesaurus, rng: np.random.Generator) -> Words:
    """The text with up to `count` words, drawn from all, replaced by synonyms."""
    new = list(words.words)
    left = count
    for place in rng.permutation(len(words)):
        if not left:
            break
        found = choices(words, int(place), thesaurus)
        if found:
            new[place] = like(drawn(rng, found), words.words[place])
            left -= 1
    return words.put(new)


def choices(words: Words, place: int, thesaurus: Thesaurus) -> Sequence[str]:
    """Synonyms that may stand in place of a word."""
    word = words.words[place]
    lower = word.lower()
    if lower in thesaurus.stop or is_name(words, place):
        return ()
    found = thesaurus.synonyms(lower)
    if place and words.words[place - 1].lower() in ("a", "an"):
        vowel = lower.startswith(_VOWELS)
        return [other for other in found if other.startswith(_VOWELS) == vowel]
    return found


def is_name(words: Words, place: int) -> bool:
    """Whether a word has a capital though it doesn't start a sentence."""
    word, gap = words.words[place], words.gaps[place]
    started = place == 0 or any(end in gap for end in _ENDS)
    return word[:1].isupper() and not word.isupper() and not started
