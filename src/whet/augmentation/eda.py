"""EDA, easy data augmentation (Wei & Zou, 2019): synonyms, random insertion, swap, deletion.

"EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification Tasks", section 2. As
there, each copy is made by one of the four operations; n = α · l words are changed of a text of l words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.augmentation.base import Change, Surroundings, by_text
from whet.augmentation.synonym import Lexicons, choices, replaced
from whet.augmentation.words import Cutter, WordMethod, Words, drawn, some
from whet.errors import ConfigError
from whet.lexicon.base import Lexicon, Thesaurus
from whet.types import Fraction

if TYPE_CHECKING:
    import numpy as np

OPERATIONS = ("replacement", "insertion", "swap", "deletion")


@dataclass(kw_only=True)
class Eda(WordMethod):
    """Each copy by one operation, drawn from those whose α isn't 0."""

    english: Lexicon
    """Synonyms of English words."""
    chinese: Lexicon
    """Synonyms of Chinese words."""
    replacement: Fraction | None = None
    """α of synonym replacement; null: rate; 0: never."""
    insertion: Fraction | None = None
    """α of random insertion of synonyms of the text's words; null: rate; 0: never."""
    swap: Fraction | None = None
    """α of random swaps of two words; null: rate; 0: never."""
    deletion: Fraction | None = None
    """Probability with which random deletion takes a word away; null: rate; 0: never."""

    def __post_init__(self) -> None:
        if not self.alphas():
            problem = "0 for every operation leaves none; give one of them more, or augmentation=none"
            raise ConfigError("replacement", problem, self.replacement)

    def alphas(self) -> dict[str, float]:
        """α of each operation that takes part."""
        given = {name: getattr(self, name) for name in OPERATIONS}
        found = {name: self.rate if alpha is None else float(alpha) for name, alpha in given.items()}
        return {name: alpha for name, alpha in found.items() if alpha}

    def open(self, around: Surroundings) -> Change:
        cut = Cutter(self.language, around)
        lexicons = Lexicons(self.english, self.chinese, around)
        alphas = self.alphas()

        def change(text: str, rng: np.random.Generator) -> str:
            words = cut(text)
            name = drawn(rng, list(alphas))
            alpha, count = alphas[name], some(alphas[name], len(words))
            if name == "swap":
                return swapped(words, count, rng).text()
            if name == "deletion":
                return deleted(words, alpha, rng).text()
            operation = replaced if name == "replacement" else inserted
            return operation(words, count, lexicons.of(words.language), rng).text()

        return by_text(change)


def inserted(words: Words, count: int, thesaurus: Thesaurus, rng: np.random.Generator) -> Words:
    """`count` times a synonym of one of the words at a place drawn at random; none where none has any."""
    known = {place: found for place in range(len(words)) if (found := choices(words, place, thesaurus))}
    made = words
    for _ in range(count if known else 0):
        place = list(known)[int(rng.integers(len(known)))]
        made = made.inserted(int(rng.integers(len(made) + 1)), drawn(rng, known[place]))
    return made


def swapped(words: Words, count: int, rng: np.random.Generator) -> Words:
    """`count` times two words, drawn at random, change places."""
    new = list(words.words)
    for _ in range(count if len(new) > 1 else 0):
        first, second = rng.choice(len(new), 2, replace=False)
        new[first], new[second] = new[second], new[first]
    return words.put(new)


def deleted(words: Words, share: float, rng: np.random.Generator) -> Words:
    """Without each word with probability `share`; one stays."""
    if not len(words):
        return words
    stays = rng.random(len(words)) >= share
    if not stays.any():
        stays[rng.integers(len(words))] = True
    return words.kept(stays.tolist())
