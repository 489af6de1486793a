"""AEDA, an easier data augmentation (Karimi et al., 2021): punctuation marks between the words.

"AEDA: An Easier Data Augmentation Technique for Text Classification", section 2: between one and a third as
many marks as there are words, at random places; every word stays, in its order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.augmentation.base import Change, Surroundings, by_text
from whet.augmentation.words import Cutter, WordMethod, Words, drawn
from whet.types import PositiveFraction

if TYPE_CHECKING:
    import numpy as np

MARKS = {"en": (".", ";", "?", ":", "!", ","), "zh": ("。", "；", "？", "：", "！", "，")}


@dataclass(kw_only=True)
class Aeda(WordMethod):
    """Inserts punctuation marks and changes nothing else."""

    rate: PositiveFraction = 0.3
    """Most marks that a copy gets, as a share of the text's words, at least one."""

    def open(self, around: Surroundings) -> Change:
        cut = Cutter(self.language, around)
        return by_text(lambda text, rng: punctuated(cut(text), self.rate, rng).text())


def punctuated(words: Words, rate: float, rng: np.random.Generator) -> Words:
    """The text with one to `rate` times as many marks as words, each before another word."""
    if not len(words):
        return words
    count = int(rng.integers(1, max(1, int(rate * len(words))) + 1))
    made = words
    for place in sorted(rng.choice(len(words), count, replace=False), reverse=True):
        made = made.inserted(int(place), drawn(rng, MARKS[words.language]))
    return made
