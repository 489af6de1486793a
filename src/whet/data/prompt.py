"""Texts as cloze questions: a pattern with a gap, and the words that fill it for each label."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whet.config import Component
from whet.errors import ConfigError, nearest

FIELDS = ("text", "text2", "mask")


@dataclass(kw_only=True)
class Prompt(Component):
    """A pattern and its verbaliser (Schick & Schütze, 2021, section 3)."""

    pattern: str
    """`{text}` (and `{text2}` of a pair) and one `{mask}`: '{text} It was {mask}.'"""
    words: dict[str, str | list[str]]
    """The word, or words, that say each label; each must be one token."""

    def __post_init__(self) -> None:
        names = [name for _, name, _, _ in self._parsed() if name is not None]
        for name in names:
            if name not in FIELDS:
                raise ConfigError("pattern", f"knows no {{{name}}}; {nearest(name, FIELDS)}", self.pattern)
        if names.count("mask") != 1 or names.count("text") != 1 or names.count("text2") > 1:
            problem = "needs {text} and {mask} once each, and {text2} at most once"
            raise ConfigError("pattern", problem, self.pattern)

    def _parsed(self) -> list[tuple[str, str | None, str | None, str | None]]:
        try:
            return list(string.Formatter().parse(self.pattern))
        except ValueError as error:
            raise ConfigError("pattern", f"can't be read ({error})", self.pattern) from None

    def filled(self, texts: Sequence[str], gap: str) -> str:
        """The pattern with one text, or two, in it."""
        given = {"text": texts[0], "text2": texts[-1], "mask": gap}
        return "".join(literal + (given[name] if name else "") for literal, name, _, _ in self._parsed())

    def ids(self, tokenizer: Any, names: Sequence[str]) -> list[list[int]]:
        """Token ids of each label's words, as they read in the gap.

        Raises:
            ConfigError: a label without a word, a word of no label, or one that isn't one token.
        """
        for name in self.words:
            if name not in names:
                raise ConfigError("task.prompt.words", f"not a label; {nearest(name, names)}", name)
        for name in names:
            if not self.words.get(name):
                raise ConfigError("task.prompt.words", f"has no word for the label {name}", dict(self.words))
        return [[self._id(word, tokenizer) for word in self._words(name)] for name in names]

    def _words(self, name: str) -> list[str]:
        words = self.words[name]
        return [words] if isinstance(words, str) else list(words)

    def _id(self, word: str, tokenizer: Any) -> int:
        gap = tokenizer(self.filled(("", ""), tokenizer.mask_token))["input_ids"]
        said = tokenizer(self.filled(("", ""), word))["input_ids"]
        place = gap.index(tokenizer.mask_token_id)
        if len(said) != len(gap) or said[place] == tokenizer.unk_token_id:
            pieces = tokenizer.convert_ids_to_tokens(said[place : place + 1 + len(said) - len(gap)])
            problem = f"must be one token of this tokenizer, and is {' '.join(pieces)}: choose another word"
            raise ConfigError("task.prompt.words", problem, word)
        return int(said[place])

    def cut(
        self, rows: Sequence[tuple[str, ...]], tokenizer: Any, max_length: int
    ) -> tuple[list[str], list[bool]]:
        """The pattern with each row in it, its texts cut so that all of the pattern is there.

        Args:
            rows: one or two strings each.
            tokenizer: a fast one.
            max_length: tokens of the whole, special tokens included.

        Returns:
            The filled patterns, and whether anything was cut off.

        Raises:
            ConfigError: the pattern alone is too long.
        """
        gap = tokenizer.mask_token
        clean = [tuple(text.replace(gap, gap.strip("[]<>")) for text in row) for row in rows]
        frame = len(tokenizer(self.filled(("",) * len(rows[0]), gap))["input_ids"]) if rows else 0
        if frame >= max_length:
            raise ConfigError(
                "task.max_length", f"no room beside the {frame} tokens of the pattern", max_length
            )
        ends = [self._ends(texts, tokenizer) for texts in zip(*clean, strict=True)]
        found, shortened = [], []
        for number, texts in enumerate(clean):
            text, is_cut = self._fitted(texts, [each[number] for each in ends], tokenizer, max_length, frame)
            found.append(text)
            shortened.append(is_cut)
        return found, shortened

    @staticmethod
    def _ends(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
        """Where each token of each text ends."""
        made = tokenizer(list(texts), add_special_tokens=False, truncation=False, padding=False)
        return [[end for _, end in encoding.offsets] for encoding in made.encodings]

    def _fitted(
        self, texts: tuple[str, ...], ends: list[list[int]], tokenizer: Any, max_length: int, frame: int
    ) -> tuple[str, bool]:
        """One row; pieces that join at the seams can make another token or two, so it is looked again."""
        room = max_length - frame
        while True:
            kept = _shares([len(each) for each in ends], room)
            parts = [
                text if count == len(each) else text[: each[count - 1] if count else 0]
                for text, each, count in zip(texts, ends, kept, strict=True)
            ]
            filled = self.filled(parts, tokenizer.mask_token)
            is_cut = kept != [len(each) for each in ends]
            over = len(tokenizer(filled)["input_ids"]) - max_length if is_cut or sum(kept) > room - 4 else 0
            if over <= 0 or room <= 0:
                return filled, is_cut
            room -= over


def _shares(lengths: list[int], room: int) -> list[int]:
    """Tokens kept of each text: the longer one is cut first."""
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return [max(room, 0)]
    shorter = min(min(lengths), max(room, 0) // 2)
    longer = max(room, 0) - shorter
    return [shorter, longer] if lengths[0] <= lengths[1] else [longer, shorter]
