"""Any number of labels per text: an independent binary cross entropy for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from whet.errors import ConfigError, nearest
from whet.task.base import Criterion, Head, Task
from whet.types import Fraction, PositiveFloat, Probability

if TYPE_CHECKING:
    import datasets
    import torch
    from numpy.typing import NDArray

    from whet.data.table import Table


@dataclass(kw_only=True)
class MultiLabel(Task):
    """The label column holds a list, or names joined by `separator`; or `label` lists 0/1 columns."""

    separator: str = ","
    """Divides the names in a text column."""
    label_smoothing: Probability = 0.0
    """Targets become y (1 - ε) + ε / 2."""
    positive_weights: dict[str, PositiveFloat] | None = None
    """How much more a present label counts than an absent one, by name."""
    threshold: Fraction = 0.5
    """A label is given when its probability is at least this."""

    kind: ClassVar[str] = "multi_label"
    usual: ClassVar[tuple[str, ...]] = ("f1_macro", "f1_micro", "subset_accuracy")

    def _label_columns(self) -> list[str]:
        return [self.label] if isinstance(self.label, str) else list(self.label)

    def _labels_of(self, rows: datasets.Dataset) -> list[Any]:
        columns = self._label_columns()
        if len(columns) > 1:
            present = [[_truth(value) for value in rows[column]] for column in columns]
            names = [self._name(column) for column in columns]
            return [[n for n, on in zip(names, row, strict=True) if on] for row in zip(*present, strict=True)]
        return [self._many(value) for value in rows[columns[0]]]

    def _many(self, value: Any) -> list[str] | None:
        if value is None:
            return None
        parts = value if isinstance(value, list) else str(value).split(self.separator)
        return [name for part in parts if (name := self._name(part)) is not None]

    def _names(self, train: Table | None) -> list[str]:
        if self.labels is not None or train is None:
            return super()._names(train)
        columns = self._label_columns()
        if len(columns) > 1:
            return [str(self._name(column)) for column in columns]
        return sorted({name for row in train.labels if row is not None for name in row})

    def head(self, label_names: Sequence[str]) -> Head:
        if not label_names:
            raise ConfigError("task.labels", "no labels", list(label_names))
        return Head(len(label_names), "multi_label_classification", tuple(label_names))

    def encode(self, labels: Sequence[Any], label_names: Sequence[str]) -> NDArray[Any]:
        import numpy as np

        place = {name: number for number, name in enumerate(label_names)}
        encoded = np.zeros((len(labels), len(label_names)), dtype=np.float32)
        for row, names in enumerate(labels):
            encoded[row, [place[name] for name in names]] = 1
        return encoded

    def criterion(self, train: NDArray[Any], label_names: Sequence[str]) -> Criterion:
        import numpy as np
        import torch
        import torch.nn.functional as F

        for name in self.positive_weights or {}:
            if name not in label_names:
                raise ConfigError("task.positive_weights", f"not a label; {nearest(name, label_names)}", name)
        weights = torch.tensor([(self.positive_weights or {}).get(name, 1.0) for name in label_names])

        def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            targets = labels.float() * (1 - self.label_smoothing) + self.label_smoothing / 2
            moved = weights.to(logits.device)
            each = F.binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=moved, reduction="none")
            return each.mean(dim=1)

        return Criterion(losses, lambda labels: np.ones(len(labels), dtype=np.float32))

    def probabilities(self, logits: NDArray[Any]) -> NDArray[Any]:
        from scipy.special import expit

        return expit(logits.astype("float64"))  # type: ignore[no-any-return]

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


def _truth(value: Any) -> bool:
    return str(value).strip().lower() in ("1", "1.0", "true", "yes")
