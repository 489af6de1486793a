"""Texts cut into words and what stands between them: put together again they are the text to the letter."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from whet.augmentation.base import Copying, Surroundings
from whet.errors import ConfigError
from whet.types import PositiveFraction

if TYPE_CHECKING:
    import numpy as np

Language = Literal["en", "zh"]
Which = Literal["auto", "en", "zh"]
_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+(?:['’\-][A-Za-z\u00c0-\u024f]+)*")


@dataclass(frozen=True)
class Words:
    """A text: a gap, a word, a gap, …, a word, a gap."""

    words: tuple[str, ...]
    gaps: tuple[str, ...]
    """One more than words; spaces, punctuation, emoji, or nothing."""
    language: Language

    def __len__(self) -> int:
        return len(self.words)

    def text(self) -> str:
        """The text."""
        return "".join(part for pair in zip(self.gaps, (*self.words, ""), strict=True) for part in pair)

    def put(self, words: Sequence[str]) -> Words:
        """Other words in the same gaps."""
        return replace(self, words=tuple(words))

    def inserted(self, place: int, word: str) -> Words:
        """One more word before that of number `place`; for `len(self)` after the last one."""
        words = [*self.words[:place], word, *self.words[place:]]
        last = place == len(self.words)
        left, right = (
            (words[place - 1], word) if last and place else (word, words[place + 1] if not last else "")
        )
        glue = self._glue(left, right)
        spot = place if last else place + 1
        gaps = [*self.gaps[:spot], glue, *self.gaps[spot:]]
        return replace(self, words=tuple(words), gaps=tuple(gaps))

    def kept(self, stays: Sequence[bool]) -> Words:
        """Without the words for which `stays` is false; no two spaces meet where one of them was."""
        words: list[str] = []
        gaps = [self.gaps[0]]
        for word, gap, stay in zip(self.words, self.gaps[1:], stays, strict=True):
            if stay:
                words.append(word)
                gaps.append(gap)
            else:
                gaps[-1] = _joined(gaps[-1], gap)
        if not all(stays) and words:
            gaps[0] = gaps[0] if stays[0] else gaps[0].lstrip()
            gaps[-1] = gaps[-1] if stays[-1] else gaps[-1].rstrip()
        return replace(self, words=tuple(words), gaps=tuple(gaps))

    def _glue(self, left: str, right: str) -> str:
        """What parts two words."""
        apart = self.language == "en" or (left[-1:].isascii() and right[:1].isascii())
        return " " if apart and left and right else ""


def _joined(left: str, right: str) -> str:
    return left + (right.lstrip() if left[-1:].isspace() or not left else right)


def language_of(text: str) -> Language:
    """Chinese if it has more Chinese characters than Latin words."""
    return "zh" if len(_CHINESE.findall(text)) > len(_LATIN.findall(text)) else "en"


def is_chinese(word: str) -> bool:
    """Whether the word has a Chinese character."""
    return _CHINESE.search(word) is not None


class Cutter:
    """Cuts texts into words: by letters and digits, or with jieba where they are Chinese."""

    def __init__(self, language: Which, around: Surroundings) -> None:
        self.language, self.around = language, around
        self._jieba: Callable[[str], list[str]] | None = None

    def __call__(self, text: str) -> Words:
        """The words of a text.

        Raises:
            ConfigError: it is Chinese and jieba isn't installed.
        """
        language = language_of(text) if self.language == "auto" else self.language
        if language == "zh":
            if self._jieba is None:
                self._jieba = _jieba(self.around)
            return of_pieces(self._jieba(text))
        spans = [match.span() for match in _WORD.finditer(text)]
        edges = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(text)]
        gaps = tuple(text[end:start] for end, start in zip(*edges, strict=True))
        return Words(tuple(text[start:end] for start, end in spans), gaps, "en")


def of_pieces(pieces: Iterable[str]) -> Words:
    """Chinese words, from pieces that are words or what stands between them."""
    words: list[str] = []
    gaps = [""]
    for piece in pieces:
        if any(letter.isalnum() for letter in piece):
            words.append(piece)
            gaps.append("")
        else:
            gaps[-1] += piece
    return Words(tuple(words), tuple(gaps), "zh")


def _jieba(around: Surroundings) -> Callable[[str], list[str]]:
    """jieba's cutter, with the index of its dictionary in whet's cache."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its import of pkg_resources
            import jieba
    except ModuleNotFoundError:
        problem = "Chinese texts are cut into words by jieba: pip install 'whet[chinese]'"
        raise ConfigError(f"{around.key}.language", problem, "zh") from None
    jieba.setLogLevel(logging.WARNING)
    return _cutter(str(around.paths.cached("jieba")))


@functools.cache
def _cutter(folder: str) -> Callable[[str], list[str]]:
    """One for all methods of a process: its dictionary takes a second and 100 MB."""
    import jieba

    tokenizer: Any = jieba.Tokenizer()
    tokenizer.tmp_dir = folder
    found: Callable[[str], list[str]] = tokenizer.lcut
    return found


@dataclass(kw_only=True)
class WordMethod(Copying):
    """Settings of all methods that change some of a text's words."""

    rate: PositiveFraction = 0.1
    """Share of a text's words that a copy changes, at least one word."""
    language: Which = "auto"
    """Of the texts; auto: each is Chinese if it has more Chinese characters than Latin words."""


def some(rate: float, words: int) -> int:
    """How many of so many words a share is: at least one where there are any and the share isn't 0."""
    return max(1, round(rate * words)) if words and rate else 0


def like(new: str, old: str) -> str:
    """`new` in the case of `old`."""
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def drawn(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """One of some words."""
    return choices[int(rng.integers(len(choices)))]
