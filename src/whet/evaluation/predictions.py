"""The seam between running a model and judging it: one file, pure NumPy."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.errors import RunError
from whet.storage import aside


@dataclass(frozen=True)
class Predictions:
    """What a model said about every row of one split, in the split's own order."""

    ids: NDArray[np.str_]
    """[n] row ids."""
    logits: NDArray[np.float32]
    """[n, outputs] raw head outputs."""
    labels: NDArray[Any]
    """[n] int64 classes, [n, outputs] float32 (multi-label), [n] float32 (regression)."""
    split: str
    label_names: tuple[str, ...] = ()
    """Class names in logit order; empty for regression."""
    groups: NDArray[np.str_] | None = None
    """[n] group of each row, for fairness figures."""

    def __len__(self) -> int:
        return len(self.ids)

    def save(self, path: Path) -> None:
        """Write one `.npz` (no pickles), whole or not at all."""
        arrays = {"ids": self.ids, "logits": self.logits, "labels": self.labels}
        arrays |= {"split": np.array(self.split), "label_names": np.array(self.label_names, dtype=np.str_)}
        if self.groups is not None:
            arrays["groups"] = self.groups
        with aside(path) as beside, zipfile.ZipFile(beside, "w") as archive:
            for (
                name,
                array,
            ) in arrays.items():  # np.savez would write the time too: equal content, equal bytes
                info = zipfile.ZipInfo(f"{name}.npy")
                info.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(info, "w") as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what `save` wrote. Raises RunError if it isn't there."""
        if not path.is_file():
            raise RunError(f"{path}: no such predictions file")
        with np.load(path, allow_pickle=False) as file:
            names = tuple(str(name) for name in file["label_names"])
            groups = file["groups"] if "groups" in file.files else None
            return cls(file["ids"], file["logits"], file["labels"], str(file["split"]), names, groups)
