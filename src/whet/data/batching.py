"""Batches by token budget with length buckets: pure functions of lengths and a random generator.

One optimizer update consumes a *window* of up to `size * accumulate` examples and `tokens * accumulate`
tokens, cut into micro-batches of up to `size` and `tokens`. Windows are formed first, so `accumulate=k` with
`size=s/k` (and `tokens=t/k`, where that limit counts) holds the examples of `size=s` (and `tokens=t`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.config import Component
from whet.types import PositiveInt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]


@dataclass(kw_only=True)
class Batching(Component):
    """How examples are put together."""

    size: PositiveInt = 32
    """Most examples of a micro-batch."""
    tokens: PositiveInt | None = 16384
    """Most tokens of a micro-batch, padding included; a single longer text still makes a batch."""
    pool: PositiveInt = 50
    """Windows whose texts are sorted by length together: 1 mixes all lengths, more means less padding."""
    pad_to: PositiveInt | None = None
    """Pad every text to this many tokens (the way of many articles); null: to the longest of the batch."""
    evaluation_factor: PositiveInt = 4
    """Evaluation keeps no gradients: its batches may be this many times larger."""

    def windows(self, lengths: Rows, accumulate: int, rng: np.random.Generator) -> list[list[Rows]]:
        """One epoch: windows of micro-batches of row numbers, each row exactly once.

        Args:
            lengths: [n] tokens of each row.
            accumulate: micro-batches of one update.
            rng: decides the order.
        """
        order = rng.permutation(len(lengths))
        span = self.pool * self.size * accumulate
        found: list[list[Rows]] = []
        for start in range(0, len(order), span):
            chunk = order[start : start + span]
            chunk = chunk[lengths[chunk].argsort(kind="stable")] if self.pool > 1 else chunk
            for window in self.cut(chunk, lengths, accumulate):
                by_length = window[lengths[window].argsort(kind="stable")]
                found.append(list(self.cut(by_length, lengths, 1)))
        return [found[place] for place in rng.permutation(len(found))]

    def evaluation(self, lengths: Rows) -> list[Rows]:
        """Batches of all rows, longest first (so that running out of memory shows at once)."""
        order = (-lengths).argsort(kind="stable")
        return list(self.cut(order, lengths, self.evaluation_factor))

    def padded(self, length: int) -> int:
        """Tokens that a batch whose longest text has `length` tokens is padded to."""
        return max(self.pad_to or 0, length)

    def padding(self, lengths: Rows, batches: list[Rows]) -> float:
        """Share of padding among all tokens of `batches`."""
        total = sum(len(rows) * self.padded(int(lengths[rows].max())) for rows in batches)
        return 1 - int(sum(int(lengths[rows].sum()) for rows in batches)) / total if total else 0.0

    def cut(self, order: Rows, lengths: Rows, factor: int) -> Iterator[Rows]:
        """Consecutive pieces of `order` within `factor` times the size and the token budget."""
        start, longest = 0, 0
        for place, row in enumerate(order):
            candidate = max(longest, int(lengths[row]))
            count = place - start + 1
            over = self.tokens is not None and count * self.padded(candidate) > self.tokens * factor
            if count > 1 and (over or count > self.size * factor):
                yield order[start:place]
                start, candidate = place, int(lengths[row])
            longest = candidate
        if start < len(order):
            yield order[start:]
