"""Texts before and after a change, side by side, with what differs in brackets."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from whet.errors import one_line
from whet.evaluation.describe import cut, pad, width

_TOKEN = re.compile(r"\s+|[\u3400-\u9fff\uf900-\ufaff]|[^\W\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]")
GAP = "  "
"""Between the two columns."""


def marked(before: str, after: str) -> tuple[str, str]:
    """Both texts on one line each, with brackets around words of the one that the other hasn't there."""
    one, other = _TOKEN.findall(one_line(before)), _TOKEN.findall(one_line(after))
    left: list[str] = []
    right: list[str] = []
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    for kind, start, end, start2, end2 in matcher.get_opcodes():
        left.append(_bracketed(one[start:end], kind != "equal"))
        right.append(_bracketed(other[start2:end2], kind != "equal"))
    return "".join(left), "".join(right)


def _bracketed(tokens: Sequence[str], differs: bool) -> str:
    text = "".join(tokens)
    inner = text.strip()
    return text.replace(inner, f"[{inner}]") if differs and inner else text


def wrapped(text: str, columns: int) -> list[str]:
    """`text` on lines of at most `columns`, broken between words where that's possible."""
    lines = [""]
    for token in _TOKEN.findall(text):
        if width(lines[-1] + token.rstrip()) > columns and lines[-1].strip():
            lines.append("")
        lines[-1] += token if lines[-1] else token.lstrip()
    return [cut(line.rstrip(), columns) for line in lines]


def render_changes(found: Mapping[str, Any], columns: int = 100) -> str:
    """What an augmentation does to some rows, and what it costs, as text for a terminal.

    Args:
        found: `loading_seconds`, `milliseconds_per_text`, `changed` and `rows` of `id`, `before`, `after`.
        columns: of the terminal.
    """
    half = max(10, (columns - 2 - len(GAP)) // 2)
    cost = f"{found['milliseconds_per_text']:.3g} ms a text, loading {found['loading_seconds']:.3g} s"
    lines = [f"augmentation of the first epoch: {cost}; {found['changed']:.0%} of these rows changed"]
    lines.append(cut(f"  {pad('before', half)}{GAP}after", columns))
    for row in found["rows"]:
        lines.append(cut(f"  {row['id']}", columns))
        for before, after in zip(row["before"], row["after"], strict=True):
            lines += _beside(before, after, half)
    return "\n".join(lines) + "\n"


def _beside(before: str, after: str, half: int) -> Iterator[str]:
    sides = [wrapped(text, half) for text in marked(before, after)]
    for left, right in itertools.zip_longest(*sides, fillvalue=""):
        yield f"  {left}{' ' * (half - width(left))}{GAP}{right}".rstrip()
