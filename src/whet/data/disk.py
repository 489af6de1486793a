"""Labelled rows that the datasets library saved to disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.data.files import existing
from whet.data.source import SPLITS, UNSPLIT, Source
from whet.errors import DataError, one_line

if TYPE_CHECKING:
    import datasets

    from whet.paths import Paths


@dataclass(kw_only=True)
class Disk(Source):
    """A folder that `save_to_disk` wrote: one Dataset, or a DatasetDict of splits."""

    path: str
    """The folder."""

    def read(self, paths: Paths) -> dict[str, datasets.Dataset]:
        import datasets

        folder = existing(self.path, "path")
        try:
            found = datasets.load_from_disk(str(folder))
        except (FileNotFoundError, NotADirectoryError) as error:
            reason = f"not a folder that save_to_disk wrote: {one_line(error)[:200]}"
            raise DataError("path", reason, self.path) from None
        if isinstance(found, datasets.Dataset):
            return {UNSPLIT: found}
        splits = {name: found[name] for name in SPLITS if name in found}
        if not splits:
            raise DataError("path", f"holds none of {', '.join(SPLITS)}, only {', '.join(found)}", self.path)
        return splits
