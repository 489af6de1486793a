"""Label smoothing (Szegedy et al., 2016, section 7) in training only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whet.errors import ConfigError
from whet.objective.base import Objective, need_kind
from whet.types import Probability

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward
    from whet.task.base import Task


@dataclass(kw_only=True)
class LabelSmoothing(Objective):
    """Label smoothing: (1 - epsilon) L(y) + epsilon times the mean of L over all labels.

    The gradients are those of the task's own `label_smoothing`, class weights included. But that setting
    belongs to the task's loss, so validation/loss is smoothed with it; here only train/loss is. One pass.
    Szegedy et al., 2016, Rethinking the Inception Architecture for Computer Vision.
    """

    epsilon: Probability = 0.1
    """Share of the target that is spread evenly over all labels; of a label's presence and absence, where
    each label is a question of its own."""

    _kind: str = field(init=False, repr=False, default="")

    @property
    def reads_labels(self) -> bool:
        return True

    def check(self, task: Task) -> None:
        need_kind(
            task, ("single_label", "binary", "multi_label"), "label smoothing needs labels, not numbers"
        )
        own = getattr(task, "label_smoothing", 0.0)
        if own:
            problem = f"the labels would be smoothed twice: leave task.label_smoothing={own:g} at 0"
            raise ConfigError("epsilon", problem, self.epsilon)
        self._kind = task.kind

    def __call__(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """Losses with smoothed targets: what they are linear in, for each kind of task."""
        logits = forward(batch)
        losses = forward.losses(logits, batch)
        spread = self._classes if self._kind == "single_label" else self._opposites
        return ((1 - self.epsilon) * losses + self.epsilon * spread(forward, batch, logits, losses)).sum()

    def _classes(
        self, forward: Forward, batch: Batch, logits: torch.Tensor, losses: torch.Tensor
    ) -> torch.Tensor:
        """[batch] mean of the losses with every class as the label; 0 for a row without one."""
        import torch

        rows, classes = logits.shape
        every = torch.arange(classes, device=logits.device).repeat(rows)
        found = forward.criterion.losses(logits.repeat_interleave(classes, 0), every)
        return found.view(rows, classes).mean(1).masked_fill(batch.labels < 0, 0.0)

    def _opposites(
        self, forward: Forward, batch: Batch, logits: torch.Tensor, losses: torch.Tensor
    ) -> torch.Tensor:
        """[batch] mean of the losses with the label and with its opposite; 0 for a row without one."""
        turned = forward.criterion.losses(logits, batch.labels.where(batch.labels < 0, 1 - batch.labels))
        return (losses + turned) / 2
