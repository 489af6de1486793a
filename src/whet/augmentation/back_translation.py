"""Back-translation (Sennrich et al., 2016; Edunov et al., 2018): into another language and back again.

"Improving Neural Machine Translation Models with Monolingual Data", section 3. The words of the way back are
drawn from the model, which "Understanding Back-Translation at Scale", section 3, found best: copies differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.augmentation.base import Change, Copying, Surroundings
from whet.augmentation.generation import load
from whet.augmentation.store import Part, Store, stored
from whet.model.weights import Weights
from whet.types import NonNegativeFloat, PositiveFraction, PositiveInt


@dataclass(kw_only=True)
class BackTranslation(Copying):
    """Two translation models, for example Marian's English to German and German to English."""

    forth: Weights
    """Of the model that translates into the other language."""
    back: Weights
    """Of the model that translates back."""
    forth_prefix: str = ""
    """Put before a text for the first model, where it wants one (T5: `translate English to German: `)."""
    back_prefix: str = ""
    """Put before a text for the second model."""
    temperature: NonNegativeFloat = 0.8
    """Of the way back; 0 takes the likeliest words: all copies and editions of a text are then alike."""
    top_p: PositiveFraction = 0.95
    """On the way back only the likeliest tokens that together have this probability are drawn."""
    batch: PositiveInt = 16
    """Texts that a model reads at a time."""

    def open(self, around: Surroundings) -> Change:
        forth = load(self.forth, "Seq2SeqLM", around, "forth")
        back = load(self.back, "Seq2SeqLM", around, "back")

        def make(parts: Sequence[Part]) -> list[str]:
            rngs = [part.rng() for part in parts]
            there = forth.write([self.forth_prefix + part.text for part in parts], rngs, 0.0, 1.0)
            return back.write([self.back_prefix + text for text in there], rngs, self.temperature, self.top_p)

        settings = {
            "method": "back_translation", "weights": [forth.sha256, back.sha256], "top_p": self.top_p,
            "prefixes": [self.forth_prefix, self.back_prefix], "temperature": self.temperature,
        }  # fmt: skip
        store = Store(around.paths.cached("augmentation") / "texts.sqlite")
        return stored(store, settings, lambda part: part.key if self.temperature else None, make, self.batch)
