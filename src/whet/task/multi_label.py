"""Any number of labels per text: an independent binary cross entropy for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from whet.data.audit import is_missing
from whet.errors import ConfigError, DataError, nearest
from whet.task.base import Criterion, Head, Task, labelled, natural
from whet.task.metrics import Kind
from whet.types import Fraction, PositiveFloat, Probability

if TYPE_CHECKING:
    import datasets
    import torch
    from numpy.typing import NDArray

    from whet.data.table import Table


@dataclass(kw_only=True)
class MultiLabel(Task):
    """The label column holds a list, or names joined by `separator`; or `label` lists 0/1 columns.

    The loss of a row is the mean over the labels.
    """

    separator: str = ","
    """Divides the names in a text column."""
    label_smoothing: Probability = 0.0
    """Targets become y (1 - ε) + ε / 2."""
    positive_weights: dict[str, PositiveFloat] | None = None
    """How much more a present label counts than an absent one, by name."""
    threshold: Fraction = 0.5
    """A label is given when its probability is at least this."""

    kind: ClassVar[Kind] = "multi_label"
    usual: ClassVar[tuple[str, ...]] = ("f1_macro", "f1_micro", "subset_accuracy")

    def _check_labels(self) -> None:
        if not self._label_columns():
            raise ConfigError("label", "one column, or several of 0 and 1", self.label)
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ConfigError("labels", "names must differ", self.labels)
        if not self.separator:
            raise ConfigError("separator", "can't be empty", self.separator)

    def _labels_of(self, rows: datasets.Dataset) -> list[Any]:
        columns = self._label_columns()
        if len(columns) > 1:
            present = [[_truth(value, column) for value in rows[column][:]] for column in columns]
            names = [self._name(column) for column in columns]
            return [_present(names, row) for row in zip(*present, strict=True)]
        return [self._many(value) for value in rows[columns[0]][:]]

    def _many(self, value: Any) -> list[str] | None:
        if value is None or value != value:
            return None
        parts = value if isinstance(value, list) else str(value).split(self.separator)
        return [name for part in parts if (name := self._name(part)) is not None]

    def _names(self, train: Table | None) -> list[str]:
        if self.labels is not None or train is None:
            return super()._names(train)
        columns = self._label_columns()
        if len(columns) > 1:
            return [str(self._name(column)) for column in columns]
        return sorted({name for row in train.labels if row is not None for name in row}, key=natural)

    def head(self, label_names: Sequence[str]) -> Head:
        if not label_names:
            raise ConfigError("task.labels", "no labels", list(label_names))
        return Head(len(label_names), "multi_label_classification", tuple(label_names))

    def encode(self, labels: Sequence[Any], label_names: Sequence[str]) -> NDArray[Any]:
        import numpy as np

        place = {name: number for number, name in enumerate(label_names)}
        encoded = np.zeros((len(labels), len(label_names)), dtype=np.float32)
        for row, names in enumerate(labels):
            if names is None or any(name not in place for name in names):
                encoded[row] = -1
            else:
                encoded[row, [place[name] for name in names]] = 1
        return encoded

    def criterion(self, train: NDArray[Any], label_names: Sequence[str]) -> Criterion:
        import torch
        import torch.nn.functional as F

        for name in self.positive_weights or {}:
            if name not in label_names:
                raise ConfigError("task.positive_weights", f"not a label; {nearest(name, label_names)}", name)
        weights = torch.tensor([(self.positive_weights or {}).get(name, 1.0) for name in label_names])

        def each(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            targets = labels.float() * (1 - self.label_smoothing) + self.label_smoothing / 2
            moved = weights.to(logits.device)
            z = logits.float()
            found = F.binary_cross_entropy_with_logits(z, targets, pos_weight=moved, reduction="none")
            return found.masked_fill((labels < 0).any(dim=1, keepdim=True), 0.0)

        def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return each(logits, labels).mean(dim=1)

        return Criterion(losses, labelled, each)

    def probabilities(self, logits: NDArray[Any]) -> NDArray[Any]:
        import numpy as np
        from scipy.special import expit

        return np.asarray(expit(logits.astype("float64")))

    def decide(self, probabilities: NDArray[Any]) -> NDArray[Any]:
        return (probabilities >= self.threshold).astype("float32")

    def describe(self, probabilities: NDArray[Any], label_names: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "label": [n for n, on in zip(label_names, self.decide(row), strict=True) if on],
                "probabilities": {n: round(float(p), 6) for n, p in zip(label_names, row, strict=True)},
            }
            for row in probabilities
        ]


_TRUTH = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
    **dict.fromkeys(("0", "0.0", "false", "no"), False),
}


def _truth(value: Any, column: str) -> bool | None:
    """Whether a label is there; None where the cell is empty."""
    if is_missing(value):
        return None
    found = _TRUTH.get(str(value).strip().lower())
    if found is None:
        raise DataError("task.label", f"column {column} must hold 0 or 1 (true, false, yes, no)", value)
    return found


def _present(names: Sequence[str | None], row: Sequence[bool | None]) -> list[str | None] | None:
    """Names that are on; None if any isn't known."""
    return None if None in row else [name for name, on in zip(names, row, strict=True) if on]
