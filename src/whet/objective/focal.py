"""Focal loss: what is told apart well already counts less (Lin et al., 2017, equations 4 and 5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whet.objective.base import Objective, need_kind
from whet.types import NonNegativeFloat

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward
    from whet.task.base import Task

_LEAST = 1e-8
"""Below, 1 - p counts as this: a root has no slope at 0."""


@dataclass(kw_only=True)
class Focal(Objective):
    """Focal loss: (1 - p)^gamma L, p the probability of the true label.

    The paper's alpha, a weight by class, is the task's `class_weights` or `positive_weight(s)`. Of several
    labels each has its own p. One pass; train/loss is the focal loss, validation/loss that of the task.
    Lin et al., 2017, Focal Loss for Dense Object Detection.
    """

    gamma: NonNegativeFloat = 2.0
    """0 is the task's own loss."""

    _kind: str = field(init=False, repr=False, default="")

    @property
    def reads_labels(self) -> bool:
        return True

    def check(self, task: Task) -> None:
        need_kind(task, ("single_label", "binary", "multi_label"), "focal loss needs labels, not numbers")
        self._kind = task.kind

    def __call__(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """The losses, each times (1 - p)^gamma."""
        logits = forward(batch)
        wrong = (1 - self._true(logits.float(), batch)).clamp(min=_LEAST)
        each = forward.criterion.each
        if each is None:
            return (wrong**self.gamma * forward.losses(logits, batch)).sum()
        return (wrong**self.gamma * each(logits, batch.labels)).mean(1).sum()

    def _true(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Probability of the true label, [batch], or of the true answer for each, [batch, labels]."""
        labels = batch.labels.clamp(min=0)  # where there is none, the loss is 0
        if self._kind == "single_label":
            return logits.softmax(-1).gather(1, labels[:, None]).squeeze(1)
        return (logits.reshape(labels.shape) * (2 * labels - 1)).sigmoid()
