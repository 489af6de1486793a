"""A number per text (or pair)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from whet.errors import ConfigError, DataError
from whet.task.base import Criterion, Head, Task

if TYPE_CHECKING:
    import datasets
    import torch
    from numpy.typing import NDArray

    from whet.data.table import Table


@dataclass(kw_only=True)
class Regression(Task):
    """The head's one output is the value itself."""

    loss: Literal["mse", "mae", "huber"] = "mse"
    """Squared error, absolute error, or squared up to an error of 1 and absolute beyond (Huber, 1964)."""

    kind: ClassVar[str] = "regression"
    usual: ClassVar[tuple[str, ...]] = ("spearman", "pearson", "rmse", "mae")

    def _check_labels(self) -> None:
        if self.labels is not None:
            raise ConfigError("labels", "a regression has no label names: leave it null", self.labels)

    def _labels_of(self, rows: datasets.Dataset) -> list[Any]:
        return [self._number(value) for value in rows[self._label_columns()[0]]]

    def _number(self, value: Any) -> float | None:
        name = self._name(value)
        if name is None:
            return None
        try:
            return float(name)
        except ValueError:
            raise DataError("task.label", "a regression needs numbers in this column", value) from None

    def _names(self, train: Table | None) -> list[str]:
        return []

    def head(self, label_names: Sequence[str]) -> Head:
        return Head(1, "regression", ())

    def encode(self, labels: Sequence[Any], label_names: Sequence[str]) -> NDArray[Any]:
        import numpy as np

        return np.array(labels, dtype=np.float32)

    def criterion(self, train: NDArray[Any], label_names: Sequence[str]) -> Criterion:
        import numpy as np
        import torch.nn.functional as F

        functions = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}

        def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return functions[self.loss](logits.float().squeeze(-1), labels.float(), reduction="none")

        return Criterion(losses, lambda labels: np.ones(len(labels), dtype=np.float32))

    def probabilities(self, logits: NDArray[Any]) -> NDArray[Any]:
        return logits[:, 0].astype("float64")

    def decide(self, probabilities: NDArray[Any]) -> NDArray[Any]:
        return probabilities

    def describe(self, probabilities: NDArray[Any], label_names: Sequence[str]) -> list[dict[str, Any]]:
        return [{"value": round(float(value), 6)} for value in probabilities]
