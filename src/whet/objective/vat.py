"""VAT: outputs hold where a text is moved in its most sensitive direction (Miyato et al., 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whet.objective.base import need_kind
from whet.objective.divergence import KINDS, divergence
from whet.objective.perturbation import Perturbed, Rewind, ascent, direction, leaf
from whet.types import NonNegativeFloat, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward
    from whet.task.base import Task


@dataclass(kw_only=True)
class VAT(Perturbed):
    """Virtual adversarial training: L(x) + alpha * KL(p(x) || p(x + r)), r = epsilon * d.

    d is the direction in which the divergence grows fastest, found by power iteration: d = the normalised
    gradient of KL(p(x) || p(x + xi d)) by xi d (algorithm 1). p(x) counts as given there and in the loss. A
    row without a label takes part with weight 1. All passes drop the same elements: else it is their
    difference that is measured. iterations + 2 passes an update; train/loss is the sum that stands above.
    Miyato et al., 2018, Virtual Adversarial Training, equations 5 to 8.
    """

    alpha: NonNegativeFloat = 1.0
    """Weight of the divergence."""
    epsilon: NonNegativeFloat = 0.1
    """L2 norm of the perturbation of a text."""
    xi: PositiveFloat = 0.1
    """Length of the trial steps; too small for 16-bit numbers below about 0.01."""
    iterations: PositiveInt = 1
    """Of the power method."""

    _kind: str = field(init=False, repr=False, default="")

    def check(self, task: Task) -> None:
        need_kind(task, KINDS, "VAT compares outputs of whole texts")
        self._kind = task.kind

    def __call__(self, forward: Forward, batch: Batch) -> Iterator[torch.Tensor]:
        """Plain loss, divergence."""
        again = Rewind(batch.labels.device)
        logits = forward(batch)
        yield forward.losses(logits, batch).sum()
        given = logits.detach()
        along = direction(self.drawn(forward, batch, lambda empty: empty.normal_()), "l2")
        for _ in range(self.iterations):
            again()
            trial = leaf(self.xi * along)
            along = direction(ascent(self._apart(forward, batch, given, trial).sum(), trial), "l2")
        again()
        apart = self._apart(forward, batch, given, self.epsilon * along)
        yield self.alpha * (apart * self._weights(forward, batch)).sum()

    def _apart(self, forward: Forward, batch: Batch, given: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        """[batch] divergence of the output at x + by from the given one."""
        return divergence(self._kind)(given, self.moved(forward, batch, by))

    def _weights(self, forward: Forward, batch: Batch) -> torch.Tensor:
        found = forward.weights(batch)
        return found.where(found > 0, 1.0)
