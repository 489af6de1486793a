"""Train on one's own decisions about unlabelled texts (Lee, 2013, Pseudo-Label, equations 15 and 16)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.errors import ConfigError
from whet.objective.base import Forward, Setting
from whet.objective.pool import WithPool, log_probabilities, rising
from whet.types import Fraction

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch


@dataclass(kw_only=True)
class PseudoLabel(WithPool):
    """Cross entropy of unlabelled texts with the class that the model itself holds for the likeliest.

    The class is decided anew in every update, in the pass that is trained (dropout on). Its weight rises in a
    line between two points of the run.
    """

    threshold: Fraction = 0.9
    """Only decisions of at least this probability count; the paper takes all of them (0)."""
    start: Fraction = 0.1
    """Share of the run after which unlabelled texts begin to count."""
    end: Fraction = 0.5
    """Share of the run from which on they count in full."""

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ConfigError("end", f"lies before start={self.start}", self.end)

    def prepare(self, setting: Setting) -> None:
        self.needs_classes(setting)
        super().prepare(setting)

    def __call__(self, forward: Forward, batch: Batch) -> Iterator[torch.Tensor]:
        yield forward.losses(forward(batch), batch).sum()
        risen = rising(forward.step / forward.total, self.start, self.end)
        if risen * self.weight > 0:
            for rows, factor in self.drawn(forward, batch):
                logs = log_probabilities(forward(self._pool.batch(rows)), self.kind)
                yield risen * factor * decided(logs, logs.detach(), self.threshold).sum()


def decided(logs: torch.Tensor, judged: torch.Tensor, threshold: float) -> torch.Tensor:
    """[batch] cross entropy with the likeliest class, 0 where it isn't likely enough.

    Args:
        logs: [batch, classes] log probabilities that are trained.
        judged: [batch, classes] log probabilities that decide.
        threshold: least probability of a decision.
    """
    best, classes = judged.max(-1)
    return -logs.gather(-1, classes[:, None])[:, 0] * (best.exp() >= threshold)
