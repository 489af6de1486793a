"""Two classes with one logit: the binary cross entropy of a sigmoid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from whet.errors import ConfigError
from whet.task.base import Criterion, Head, Task, classes, labelled
from whet.task.metrics import Kind
from whet.types import Fraction, PositiveFloat, Probability

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_TWO = "one logit tells two labels apart; for more use whet.task.single_label.SingleLabel"


@dataclass(kw_only=True)
class Binary(Task):
    """The second of two labels is the positive class; its probability is sigmoid(logit).

    With target y and logit z the loss is `-w y log σ(z) - (1 - y) log(1 - σ(z))`, its derivative by z
    (w = 1) is `σ(z) - y`.
    """

    positive_weight: PositiveFloat = 1.0
    """w above: how much more a positive row counts."""
    label_smoothing: Probability = 0.0
    """Targets become y (1 - ε) + ε / 2."""
    threshold: Fraction = 0.5
    """Positive when the probability is at least this."""

    kind: ClassVar[Kind] = "binary"
    usual: ClassVar[tuple[str, ...]] = ("accuracy", "f1_macro", "mcc", "roc_auc")

    def _check_labels(self) -> None:
        super()._check_labels()
        if self.labels is not None and len(self.labels) != 2:
            raise ConfigError("labels", _TWO, self.labels)

    def head(self, label_names: Sequence[str]) -> Head:
        if len(label_names) != 2:
            raise ConfigError("task.labels", _TWO, list(label_names))
        return Head(1, "multi_label_classification", tuple(label_names))

    def encode(self, labels: Sequence[Any], label_names: Sequence[str]) -> NDArray[Any]:
        return classes(labels, label_names)

    def criterion(self, train: NDArray[Any], label_names: Sequence[str]) -> Criterion:
        import torch.nn.functional as F

        def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            targets = labels.float() * (1 - self.label_smoothing) + self.label_smoothing / 2
            z = logits.float().squeeze(-1)
            weight = z.new_tensor(self.positive_weight)
            each = F.binary_cross_entropy_with_logits(z, targets, pos_weight=weight, reduction="none")
            return each.masked_fill(labels < 0, 0.0)

        return Criterion(losses, labelled)

    def probabilities(self, logits: NDArray[Any]) -> NDArray[Any]:
        import numpy as np
        from scipy.special import expit

        return np.asarray(expit(logits[:, 0].astype("float64")))

    def decide(self, probabilities: NDArray[Any]) -> NDArray[Any]:
        return (probabilities >= self.threshold).astype("int64")

    def describe(self, probabilities: NDArray[Any], label_names: Sequence[str]) -> list[dict[str, Any]]:
        chosen = self.decide(probabilities)
        return [
            {
                "label": label_names[place],
                "probabilities": {label_names[0]: round(float(1 - p), 6), label_names[1]: round(float(p), 6)},
            }
            for place, p in zip(chosen, probabilities, strict=True)
        ]
