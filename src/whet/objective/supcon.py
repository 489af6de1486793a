"""Supervised contrastive learning beside the task's loss (Gunel et al., 2021, equations 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from whet.errors import ConfigError
from whet.objective.base import Objective, need_kind
from whet.types import Fraction, PositiveFloat

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward, Setting
    from whet.task.base import Task

Pooling = Literal["mean", "first", "last"]


@dataclass(kw_only=True)
class SupCon(Objective):
    """Supervised contrastive loss: (1 - weight) * L + weight * C.

    C_i is the mean, over the other texts j of the batch with i's label, of -log softmax_k(z_i z_k /
    temperature) at j, k running over all other texts; z is the last hidden state, pooled, of length 1. A
    text whose label no other one has adds nothing. The texts compared are those of a micro-batch: a larger
    engine.batching.size isn't the same as engine.accumulate. One pass; train/loss is the sum that stands
    above.
    Gunel et al., 2021, Supervised Contrastive Learning for Pre-trained Language Model Fine-tuning.
    """

    weight: Fraction = 0.5
    """Share of the contrastive loss, lambda in the paper (0.1 to 0.9)."""
    temperature: PositiveFloat = 0.3
    """Of the similarities (0.1 to 0.7 in the paper)."""
    pooling: Pooling = "mean"
    """The state that stands for a text: the mean over its tokens, the first (BERT's [CLS], the paper's), the
    last (what GPT-2 answers from)."""

    @property
    def reads_states(self) -> bool:
        return True

    @property
    def reads_labels(self) -> bool:
        return True

    def check(self, task: Task) -> None:
        need_kind(task, ("single_label", "binary"), "texts are contrasted by their one label")

    def prepare(self, setting: Setting) -> None:
        from whet.model.layers import anatomy

        parts = anatomy(setting.model)
        moving = [name for name, p in setting.model.named_parameters() if p.requires_grad]
        if all(parts.depth[name] > parts.layers for name in moving):
            problem = "nothing below the head trains, so hidden states can't move apart: take another peft"
            raise ConfigError("weight", problem, self.weight)

    def __call__(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """The losses and the contrast."""
        found = forward.outputs(batch)
        vectors = pool(found.hidden_states[-1], batch.inputs["attention_mask"], self.pooling)
        apart = contrast(vectors, batch.labels, self.temperature) * forward.weights(batch)
        return ((1 - self.weight) * forward.losses(found.logits, batch) + self.weight * apart).sum()


def pool(states: torch.Tensor, mask: torch.Tensor, how: Pooling) -> torch.Tensor:
    """[batch, hidden] of states [batch, length, hidden]; mask [batch, length] is 1 where there is text."""
    import torch

    from whet.model.heads import mean

    if how == "mean":
        return mean(states, mask)
    places = mask.argmax(1) if how == "first" else mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return states[torch.arange(len(states), device=states.device), places]


def contrast(vectors: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """[batch] contrastive losses.

    Args:
        vectors: [batch, hidden], of any length.
        labels: [batch] classes; rows below 0 aren't compared.
        temperature: of the similarities.
    """
    import torch
    from torch.nn.functional import normalize

    unit = normalize(vectors.float(), dim=1)
    known = labels >= 0
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    others = known[None, :] & ~own
    alike = (labels[:, None] == labels[None, :]) & others
    with torch.autocast(unit.device.type, enabled=False):  # cosines differ in their last digits
        scores = (unit @ unit.T / temperature).masked_fill(~others, torch.finfo(unit.dtype).min)
    chosen = scores.log_softmax(1).masked_fill(~alike, 0.0).sum(1)
    return -chosen / alike.sum(1).clamp(min=1)
