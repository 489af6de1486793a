"""A number per text (or pair)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from whet.errors import ConfigError, DataError
from whet.task.base import Criterion, Head, Task
from whet.task.metrics import Kind

if TYPE_CHECKING:
    import datasets
    import torch
    from numpy.typing import NDArray

    from whet.data.table import Table


@dataclass(kw_only=True)
class Regression(Task):
    """The head's one output is the value itself."""

    loss: Literal["mse", "mae", "huber"] = "mse"
    """Squared error, absolute error, or Huber's (1964): e² / 2 up to an error of 1, |e| - 1/2 beyond."""

    kind: ClassVar[Kind] = "regression"
    usual: ClassVar[tuple[str, ...]] = ("spearman", "pearson", "rmse", "mae")

    def _check_labels(self) -> None:
        super()._check_labels()
        if self.labels is not None:
            raise ConfigError("labels", "a regression has no label names: leave it null", self.labels)

    def _labels_of(self, rows: datasets.Dataset) -> list[Any]:
        return [self._number(value) for value in rows[self._label_columns()[0]][:]]

    def _number(self, value: Any) -> float | None:
        name = self._name(value)
        if name is None:
            return None
        try:
            number = float(name)
        except ValueError:
            raise DataError("task.label", "a regression needs numbers in this column", value) from None
        if math.isinf(number):
            raise DataError("task.label", "a regression needs finite numbers in this column", value)
        return number

    def _names(self, train: Table | None) -> list[str]:
        return []

    def head(self, label_names: Sequence[str]) -> Head:
        return Head(1, "regression", ())

    def encode(self, labels: Sequence[Any], label_names: Sequence[str]) -> NDArray[Any]:
        import numpy as np

        return np.array([math.nan if value is None else value for value in labels], dtype=np.float32)

    def criterion(self, train: NDArray[Any], label_names: Sequence[str]) -> Criterion:
        import numpy as np
        import torch.nn.functional as F

        functions: dict[str, Any] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}

        def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            there = labels.isfinite()
            values = logits.float().squeeze(-1)
            each: torch.Tensor = functions[self.loss](values, labels.float().nan_to_num(), reduction="none")
            return each.masked_fill(~there, 0.0)

        return Criterion(losses, lambda labels: np.isfinite(labels).astype(np.float32))

    def probabilities(self, logits: NDArray[Any]) -> NDArray[Any]:
        return logits[:, 0].astype("float64")

    def decide(self, probabilities: NDArray[Any]) -> NDArray[Any]:
        return probabilities

    def describe(self, probabilities: NDArray[Any], label_names: Sequence[str]) -> list[dict[str, Any]]:
        return [{"value": round(float(value), 6)} for value in probabilities]
