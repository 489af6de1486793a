"""Texts that models have made, kept on disk: each is made once, whatever run, order or batch asks for it."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.augmentation.base import Change, Item, Texts

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("whet.augmentation")
_WAIT = 60.0
"""Seconds that one process waits while another writes."""
_AT_ONCE = 500
"""Keys asked for in one query."""


@dataclass(frozen=True)
class Part:
    """One text of an item."""

    text: str
    label: Any
    key: tuple[int, ...]
    """Seed of its random numbers: that of the item, and which of its texts this is."""

    def rng(self) -> np.random.Generator:
        """A generator of its own."""
        import numpy as np

        return np.random.default_rng(self.key)


Make = Callable[[Sequence[Part]], list[str]]
"""Makes the new texts of one batch."""
Key = Callable[[Part], Any]
"""All that a part's new text depends on beside the method's settings and weights: JSON."""


class Store:
    """An SQLite file of texts by the hash of all that they depend on; without it, texts are made anew."""

    def __init__(self, path: Path) -> None:
        self.path, self._broken = path, False

    def find(self, keys: Sequence[str]) -> dict[str, str]:
        """Those of the texts that are there."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            found.update(
                self._ask(f"SELECT key, text FROM made WHERE key IN ({','.join('?' * len(some))})", some)
            )
        return found

    def keep(self, texts: Mapping[str, str]) -> None:
        """Put texts there."""
        self._ask("INSERT OR REPLACE INTO made VALUES (?, ?)", *texts.items())

    def _ask(self, sql: str, *values: Sequence[str]) -> list[Any]:
        """What one statement returns for each of `values`; nothing, after a warning, where that can't be."""
        if self._broken:
            return []
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT)) as base, base:
                base.execute(
                    "CREATE TABLE IF NOT EXISTS made (key TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID"
                )
                return [row for given in values for row in base.execute(sql, given)]
        except (sqlite3.Error, OSError) as error:
            self._broken = True
            log.warning(
                "%s: can't be used (%s): texts are made anew; delete it, or paths.cache=DIR", self.path, error
            )
            return []


def stored(store: Store, settings: Mapping[str, Any], key: Key, make: Make, size: int) -> Change:
    """A change whose texts come from the store, or are made in batches and put there.

    Args:
        store: where they are kept.
        settings: what all of them depend on, JSON.
        key: what each of them depends on.
        make: makes a batch of them; where it makes nothing the text stays as it was.
        size: texts of a batch; those of like length come together.
    """

    def change(items: Sequence[Item]) -> list[Texts]:
        parts = [
            Part(text, item.label, (*item.key, place))
            for item in items
            for place, text in enumerate(item.texts)
        ]
        keys = [_hash(settings, part.text, key(part)) for part in parts]
        found = store.find(keys)
        missing = {name: part for name, part in zip(keys, parts, strict=True) if name not in found}
        for batch in _batches(missing, size):
            made = dict(zip(batch, make(list(batch.values())), strict=True))
            store.keep(made)
            found |= made
        texts = iter(
            [
                found[name] if found[name].strip() else part.text
                for name, part in zip(keys, parts, strict=True)
            ]
        )
        return [tuple(next(texts) for _ in item.texts) for item in items]

    return change


def _batches(parts: Mapping[str, Part], size: int) -> Iterator[dict[str, Part]]:
    """Texts of like length together, the longest first."""
    order = sorted(parts, key=lambda name: (-len(parts[name].text), name))
    for start in range(0, len(order), size):
        yield {name: parts[name] for name in order[start : start + size]}


def _hash(settings: Mapping[str, Any], text: str, more: Any) -> str:
    whole = json.dumps([settings, text, more], sort_keys=True)
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()
