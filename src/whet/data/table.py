"""Rows of one split between reading and encoding: what the audit and the splitter work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Table:
    """Columns of one split, row i across all lists."""

    ids: list[str]
    """Unique within the source, stable across runs."""
    texts: list[tuple[str, ...]]
    """One text a row, or two for a pair."""
    labels: list[Any]
    """Label name (str), list of names (multi-label) or float (regression); None where missing."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> Table:
        """The given rows, in the given order."""
        return Table(
            [self.ids[r] for r in rows], [self.texts[r] for r in rows], [self.labels[r] for r in rows]
        )
