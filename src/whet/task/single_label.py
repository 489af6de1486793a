"""One class of several per text (or pair): cross entropy over a softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from whet.errors import ConfigError
from whet.task.base import Criterion, Head, Task, class_weights, classes, labelled
from whet.task.metrics import Kind
from whet.types import PositiveFloat, Probability

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


@dataclass(kw_only=True)
class SingleLabel(Task):
    """Classification with one logit a class."""

    class_weights: Literal["balanced"] | dict[str, PositiveFloat] | None = None
    """`balanced` (inverse frequency) or a weight by label name; the loss is divided by the sum of weights."""
    label_smoothing: Probability = 0.0
    """Share of the target spread evenly over all classes (Szegedy et al., 2016, section 7)."""

    kind: ClassVar[Kind] = "single_label"
    usual: ClassVar[tuple[str, ...]] = ("accuracy", "f1_macro", "f1_weighted", "mcc")

    def _check_labels(self) -> None:
        super()._check_labels()
        if self.labels is not None and len(self.labels) < 2:
            raise ConfigError("labels", "a classification needs at least two labels", self.labels)

    def head(self, label_names: Sequence[str]) -> Head:
        if len(label_names) < 2:
            raise ConfigError("task.labels", "a classification needs at least two labels", list(label_names))
        names = tuple(label_names)
        return Head(len(names), "single_label_classification", names, self.prompt)

    def encode(self, labels: Sequence[Any], label_names: Sequence[str]) -> NDArray[Any]:
        return classes(labels, label_names)

    def criterion(self, train: NDArray[Any], label_names: Sequence[str]) -> Criterion:
        import numpy as np
        import torch
        import torch.nn.functional as F

        weights = class_weights(self.class_weights, train, label_names)
        tensor = None if weights is None else torch.from_numpy(weights)

        def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            moved = None if tensor is None else tensor.to(logits.device)
            smooth = self.label_smoothing
            return F.cross_entropy(
                logits.float(), labels, moved, ignore_index=-1, label_smoothing=smooth, reduction="none"
            )

        def divisor(labels: NDArray[Any]) -> NDArray[Any]:
            there = labelled(labels)
            return there if weights is None else np.asarray(np.where(there > 0, weights[labels], 0.0))

        return Criterion(losses, divisor)

    def probabilities(self, logits: NDArray[Any]) -> NDArray[Any]:
        import numpy as np
        from scipy.special import softmax

        return np.asarray(softmax(logits.astype("float64"), axis=1))

    def decide(self, probabilities: NDArray[Any]) -> NDArray[Any]:
        chosen: NDArray[Any] = probabilities.argmax(axis=1)
        return chosen

    def describe(self, probabilities: NDArray[Any], label_names: Sequence[str]) -> list[dict[str, Any]]:
        chosen = self.decide(probabilities)
        return [
            {
                "label": label_names[place],
                "probabilities": {name: round(float(p), 6) for name, p in zip(label_names, row, strict=True)},
            }
            for place, row in zip(chosen, probabilities, strict=True)
        ]
