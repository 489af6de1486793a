"""Training data made scarce or noisy on purpose, to see what a method does with it.

As in splits, a row's lot follows from the seed and its text, never from its position. More shots of one seed
hold the rows of fewer.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from whet.data.audit import is_missing
from whet.data.table import Table
from whet.errors import DataError


def few(table: Table, shots: int, seed: int, names: Sequence[str]) -> tuple[Table, Table]:
    """Draw some labelled rows; what is left follows.

    Args:
        table: training rows.
        shots: rows drawn of each class, or in all where there are no classes.
        seed: of the draw.
        names: of the classes; empty where labels aren't classes.

    Raises:
        DataError: a class has fewer rows.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row in _drawn(table, seed, "shots"):
        if not is_missing(table.labels[row]):
            groups[table.labels[row] if names else ""].append(row)
    for name in names or [""]:
        if len(groups[name]) < shots:
            whose = f"rows of {name}" if names else "rows with a label"
            raise DataError("task.shots", f"there are only {len(groups[name])} {whose} to train on", shots)
    kept = {row for name in names or [""] for row in groups[name][:shots]}
    return table.take(sorted(kept)), table.take([row for row in range(len(table)) if row not in kept])


def mislabelled(table: Table, share: float, seed: int, names: Sequence[str]) -> Table:
    """The same rows, this share of those with a class (rounded) given another class at random.

    Any other class is as likely as the next: symmetric noise (Natarajan et al., 2013).
    """
    there = [row for row in _drawn(table, seed, "noise") if table.labels[row] in names]
    labels = list(table.labels)
    for row in there[: round(share * len(there))]:
        others = [name for name in names if name != labels[row]]
        labels[row] = others[int.from_bytes(_lot(table, row, seed, "label")) % len(others)]
    return Table(table.ids, table.texts, labels)


def _drawn(table: Table, seed: int, what: str) -> list[int]:
    """All rows in an order that depends on the seed and their texts (equal ones: ids)."""
    return sorted(range(len(table)), key=lambda row: (_lot(table, row, seed, what), table.ids[row]))


def _lot(table: Table, row: int, seed: int, what: str) -> bytes:
    key = repr((seed, what, table.texts[row])).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(key, digest_size=16).digest()
