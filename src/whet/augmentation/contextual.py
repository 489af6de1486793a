"""Contextual augmentation (Kobayashi, 2018): a language model proposes words that fit the sentence.

"Contextual Augmentation: Data Augmentation by Words with Paradigmatic Relations", section 2, with a masked
language model in place of the bidirectional LSTM, as Wu et al. (2019) have it. The model doesn't know the
label, so words that negate stay.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.augmentation.base import Change, Surroundings
from whet.augmentation.generation import Writer, load
from whet.augmentation.store import Part, Store, stored
from whet.augmentation.words import Cutter, WordMethod, Words, is_chinese, like, some
from whet.errors import ModelError
from whet.model.weights import Weights
from whet.types import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NEGATIONS = frozenset(
    ("no", "not", "never", "none", "nothing", "nobody", "neither", "nor", "without", "hardly", "cannot")
)
_NEGATING = frozenset("不没无未非别莫勿否")
_STARTS = ("Ġ", "▁")
"""What marks a token that starts a word, in vocabularies that mark these and not the others."""
_SPELLINGS = 4
"""Tokens that may be one word: WORD, Word, word, and one with a mark."""


@dataclass(kw_only=True)
class Contextual(WordMethod):
    """Masks words and draws others from the likeliest that the model proposes.

    A Latin word becomes one token of the vocabulary that is a whole word; in a Chinese word every character
    becomes another one.
    """

    weights: Weights
    """Of a masked language model."""
    top_k: PositiveInt = 10
    """Words are drawn from so many of the likeliest."""
    temperature: PositiveFloat = 1.0
    """Above 1: more even odds among them; below: the likeliest more often."""
    batch: PositiveInt = 32
    """Texts that the model reads at a time."""

    def open(self, around: Surroundings) -> Change:
        writer = load(self.weights, "MaskedLM", around, "weights")
        if writer.tokenizer.mask_token_id is None:
            raise ModelError(f"{around.key}.weights", "their tokenizer has no mask token", writer.shown)
        filler = Filler(writer, self.top_k, self.temperature)
        cut = Cutter(self.language, around)

        def make(parts: Sequence[Part]) -> list[str]:
            rngs = [part.rng() for part in parts]
            masked = [
                Masked.of(cut(part.text), self.rate, rng) for part, rng in zip(parts, rngs, strict=True)
            ]
            return filler.filled(masked, rngs)

        settings = {
            "method": "contextual", "weights": writer.sha256, "rate": self.rate, "top_k": self.top_k,
            "temperature": self.temperature, "language": self.language,
        }  # fmt: skip
        store = Store(around.paths.cached("augmentation") / "texts.sqlite")
        return stored(store, settings, lambda part: part.key, make, self.batch)


@dataclass(frozen=True)
class Masked:
    """A text and the words that are to be others, in order."""

    words: Words
    places: tuple[int, ...]

    @classmethod
    def of(cls, words: Words, rate: float, rng: np.random.Generator) -> Masked:
        """Words drawn from those of letters that don't negate."""
        able = [place for place, word in enumerate(words.words) if word.isalpha() and not negates(word)]
        count = min(len(able), some(rate, len(words)))
        drawn: Sequence[int] = rng.choice(len(able), count, replace=False).tolist() if count else []
        return cls(words, tuple(sorted(able[number] for number in drawn)))

    def pieces(self) -> list[str]:
        """What each mask stands for: a word, or a character of a Chinese one."""
        chosen = [self.words.words[place] for place in self.places]
        return [piece for word in chosen for piece in (word if is_chinese(word) else [word])]

    def text(self, mask: str) -> str:
        """The text with masks."""
        return self.refilled([mask] * len(self.pieces()))

    def refilled(self, pieces: Sequence[str]) -> str:
        """The text with other pieces in place of `pieces()`."""
        new, rest = list(self.words.words), iter(pieces)
        for place in self.places:
            word = new[place]
            new[place] = "".join(next(rest) for _ in (word if is_chinese(word) else [word]))
        return self.words.put(new).text()


def negates(word: str) -> bool:
    """Whether a word turns a meaning around."""
    lower = word.lower()
    return lower in NEGATIONS or lower.endswith(("n't", "n’t")) or not _NEGATING.isdisjoint(word)


class Filler:
    """A masked language model that proposes words for masks."""

    def __init__(self, writer: Writer, top_k: int, temperature: float) -> None:
        self.writer, self.top_k, self.temperature = writer, top_k, temperature

    @functools.cached_property
    def vocabulary(self) -> dict[str, tuple[list[int], list[str]]]:
        """Ids and texts of the tokens that can stand for a Latin word, and for a Chinese character."""
        tokens = self.writer.tokenizer.convert_ids_to_tokens(range(len(self.writer.tokenizer)))
        found: dict[str, tuple[list[int], list[str]]] = {"word": ([], []), "character": ([], [])}
        marks = [
            mark for mark in _STARTS if sum(token.startswith(mark) and len(token) > 1 for token in tokens) > 1
        ]
        for number, token in enumerate(tokens):
            text = self._text(token)
            kind = "character" if is_chinese(text) else "word"
            whole = len(text) == 1 if kind == "character" else not marks or token.startswith(marks[0])
            if text.isalpha() and whole:
                found[kind][0].append(number)
                found[kind][1].append(text)
        return found

    def _text(self, token: str) -> str:
        """What a token stands for; nothing for one that continues a word."""
        text: str = self.writer.tokenizer.convert_tokens_to_string([token]).strip()
        return "" if token.startswith("##") else text.lstrip("".join(_STARTS))

    def filled(self, masked: Sequence[Masked], rngs: Sequence[np.random.Generator]) -> list[str]:
        """The texts with words drawn for their masks; what lies beyond the model's length stays."""
        mask = self.writer.tokenizer.mask_token
        scores = self._scores([one.text(mask) for one in masked])
        return [self._fill(*each) for each in zip(masked, scores, rngs, strict=True)]

    def _fill(self, masked: Masked, scores: NDArray[Any], rng: np.random.Generator) -> str:
        pieces = masked.pieces()
        for number, row in enumerate(scores[: len(pieces)]):
            pieces[number] = self._drawn(pieces[number], row, rng)
        return masked.refilled(pieces)

    def _drawn(self, old: str, scores: NDArray[Any], rng: np.random.Generator) -> str:
        """Another word, drawn from the likeliest; the old one where the vocabulary has no other."""
        import numpy as np

        numbers, texts = self.vocabulary["character" if is_chinese(old) else "word"]
        odds = scores[numbers]
        order = np.argsort(-odds, kind="stable")[: self.top_k + _SPELLINGS]
        best = [number for number in order if texts[number].lower() != old.lower()][: self.top_k]
        if not best:
            return old
        shares = np.exp((odds[best] - odds[best[0]]) / self.temperature)
        return like(texts[best[rng.choice(len(best), p=shares / shares.sum())]], old)

    def _scores(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """For each text [masks, vocabulary] the model's logits at its masks."""
        import torch

        inputs = self.writer.encoded(texts)
        with torch.inference_mode():
            logits = self.writer.model(**inputs).logits
        masks = inputs["input_ids"] == self.writer.tokenizer.mask_token_id
        return [row[mask].double().cpu().numpy() for row, mask in zip(logits, masks, strict=True)]
