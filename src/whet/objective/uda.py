"""A text and its augmentation should be judged alike (Xie et al., 2020, Unsupervised Data Augmentation)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from whet.augmentation.base import Augmentation
from whet.config import Method
from whet.objective.base import Forward, Setting
from whet.objective.pool import Augment, WithPool, changer, log_probabilities, without_gradient
from whet.types import Fraction, PositiveFloat

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch

Release = Literal["none", "linear", "log", "exp"]


@dataclass(kw_only=True)
class Uda(WithPool):
    """KL divergence of the judgement of an augmented text from that of the text itself.

    The text's own judgement is the target: it gets no gradient, is sharpened by a temperature, and counts
    only where it is confident (section 2.2 and appendix). Training signal annealing leaves out labelled rows
    that the model already judges right with more than a rising probability; the loss is then the mean over
    those that stay in the micro-batch.
    """

    augmentation: Method | Augmentation | None = None
    """Null takes the run's. To choose one: +augmentation@objective.augmentation=NAME."""
    temperature: PositiveFloat = 0.4
    """Of the target: below 1 sharpens it."""
    threshold: Fraction = 0.8
    """Only texts whose likeliest class has more than this probability count."""
    annealing: Release = "none"
    """How labelled rows are released: none (all at once), log (early), linear, exp (late: for few labels)."""

    _change: Augment = field(init=False, repr=False)

    def prepare(self, setting: Setting) -> None:
        self.needs_classes(setting)
        super().prepare(setting)
        self._change = changer(self.augmentation or setting.augmentation, setting)

    def __call__(self, forward: Forward, batch: Batch) -> Iterator[torch.Tensor]:
        yield self._supervised(forward, batch)
        if self.weight == 0:
            return
        for number, (rows, factor) in enumerate(self.drawn(forward, batch)):
            with without_gradient():
                judged = forward(self._pool.batch(rows))
            seen = self._pool.changed(rows, self._change, self._pool.rng(forward, 1 + number))
            logs = log_probabilities(forward(seen), self.kind)
            yield factor * self._divergences(logs, judged).sum()

    def _supervised(self, forward: Forward, batch: Batch) -> torch.Tensor:
        logits = forward(batch)
        losses = forward.losses(logits, batch)
        if self.annealing == "none":
            return losses.sum()
        logs = log_probabilities(logits.detach(), self.kind)
        right = logs.gather(-1, batch.labels.clamp(min=0)[:, None])[:, 0].exp()
        limit = released(self.annealing, forward.step / forward.total, logs.shape[-1])
        kept = (right <= limit) & (batch.labels >= 0)
        return (losses * kept).sum() * ((batch.labels >= 0).sum() / kept.sum().clamp(min=1))

    def _divergences(self, logs: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
        """[batch] KL(target || augmented), 0 where the text's own judgement isn't confident."""
        target = log_probabilities(judged / self.temperature, self.kind)
        confident = log_probabilities(judged, self.kind).max(-1).values.exp() > self.threshold
        return (target.exp() * (target - logs)).sum(-1) * confident


def released(how: Release, done: float, classes: int) -> float:
    """Largest probability of the right class with which a labelled row still counts (section 2.3).

    Args:
        how: the schedule.
        done: share of the run.
        classes: K; the threshold rises from 1 / K to 1.
    """
    shares = {"none": 1.0, "linear": done, "log": 1 - math.exp(-5 * done), "exp": math.exp(5 * (done - 1))}
    return shares[how] * (1 - 1 / classes) + 1 / classes
