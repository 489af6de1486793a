"""Noise in letters (Belinkov & Bisk, 2018): neighbouring keys, letters that scanners confuse, slips.

"Synthetic and Natural Noise Both Break Neural Machine Translation". In Chinese words only the slips (swap,
drop, double) have anything to do: no resource of homophones or of characters alike in shape is at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from whet.augmentation.base import Change, Surroundings, by_text
from whet.augmentation.words import Cutter, WordMethod, Words, drawn, like, some
from whet.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["keyboard", "ocr", "swap", "drop", "double"]
KINDS: tuple[Kind, ...] = ("keyboard", "ocr", "swap", "drop", "double")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
CONFUSED = {
    "0": "oO", "1": "lI", "2": "z", "5": "sS", "6": "b", "8": "B", "9": "gq",
    "B": "8", "D": "O", "G": "6", "I": "l1", "O": "0D", "Q": "O", "S": "5", "Z": "2",
    "a": "o", "b": "6", "c": "e", "e": "c", "f": "t", "g": "9q", "h": "b", "i": "l1", "l": "1I", "n": "r",
    "o": "0", "q": "g9", "r": "n", "s": "5", "t": "f", "u": "v", "v": "u", "y": "v", "z": "2",
}  # fmt: skip
"""Letters and digits for which character recognition takes one."""


def neighbours() -> dict[str, str]:
    """Keys that touch each letter's key on a QWERTY keyboard, whose rows are half a key apart."""
    places = {key: (row, place + row / 2) for row, keys in enumerate(_ROWS) for place, key in enumerate(keys)}

    def touch(one: str, other: str) -> bool:
        (row, place), (row2, place2) = places[one], places[other]
        return one != other and abs(row - row2) <= 1 and abs(place - place2) <= 1

    return {one: "".join(other for other in places if touch(one, other)) for one in places}


NEAR = neighbours()


@dataclass(kw_only=True)
class CharNoise(WordMethod):
    """Changes one letter in some words of two letters or more."""

    kinds: list[Kind] = field(default_factory=lambda: list(KINDS))
    """What may happen: a neighbouring key; a letter that a scanner confuses with it; two letters swapped; one
    dropped; one doubled."""

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ConfigError("kinds", f"name at least one of {', '.join(KINDS)}", self.kinds)

    def open(self, around: Surroundings) -> Change:
        cut = Cutter(self.language, around)

        def change(text: str, rng: np.random.Generator) -> str:
            words = cut(text)
            return noisy(words, some(self.rate, len(words)), self.kinds, rng).text()

        return by_text(change)


def noisy(words: Words, count: int, kinds: list[Kind], rng: np.random.Generator) -> Words:
    """The text with one letter changed in up to `count` words."""
    new = list(words.words)
    left = count
    for place in rng.permutation(len(words)):
        if not left:
            break
        made = slipped(new[place], kinds, rng)
        if made is not None:
            new[place] = made
            left -= 1
    return words.put(new)


def slipped(word: str, kinds: list[Kind], rng: np.random.Generator) -> str | None:
    """The word after one slip of a kind drawn from those that can happen to it; None if none can."""
    if len(word) < 2:
        return None
    for number in rng.permutation(len(kinds)):
        kind = kinds[number]
        places = possible(word, kind)
        if places:
            return slip(word, kind, places[int(rng.integers(len(places)))], rng)
    return None


def possible(word: str, kind: Kind) -> list[int]:
    """Places of a word where such a slip changes it."""
    if kind == "keyboard":
        return [place for place, letter in enumerate(word) if letter.lower() in NEAR]
    if kind == "ocr":
        return [place for place, letter in enumerate(word) if letter in CONFUSED]
    if kind == "swap":
        return [place for place in range(len(word) - 1) if word[place] != word[place + 1]]
    return list(range(len(word)))


def slip(word: str, kind: Kind, place: int, rng: np.random.Generator) -> str:
    """The word after a slip at that place."""
    before, letter, after = word[:place], word[place], word[place + 1 :]
    if kind == "keyboard":
        return before + like(drawn(rng, NEAR[letter.lower()]), letter) + after
    if kind == "ocr":
        return before + drawn(rng, CONFUSED[letter]) + after
    if kind == "swap":
        return before + after[0] + letter + after[1:]
    return before + after if kind == "drop" else before + letter + letter + after
