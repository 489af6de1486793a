"""Where labelled rows come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from whet.config import Component

if TYPE_CHECKING:
    import datasets

    from whet.paths import Paths

UNSPLIT = "all"
"""Split name of a source that doesn't come divided; the task's split setting divides it."""
SPLITS = ("train", "validation", "test")


class Source(Component, ABC):
    """Labelled rows as they are stored, columns untouched."""

    @abstractmethod
    def read(self, paths: Paths) -> dict[str, datasets.Dataset]:
        """Rows by split name: `train`, `validation`, `test`, or all of them under `UNSPLIT`.

        Raises:
            DataError: missing, unreadable or not what its hash says; the key is relative to the source.
        """
