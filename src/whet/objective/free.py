"""FREE: every gradient serves the weights and the perturbation (Shafahi et al., 2019, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whet.objective.perturbation import Norm, Perturbed, direction, gradient_of, leaf, project
from whet.types import NonNegativeFloat, PositiveInt

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward, Turn

    Key = tuple[int, bytes]


@dataclass(kw_only=True)
class Free(Perturbed):
    """Free adversarial training: an update's rows are used `replays` times, with a step each.

    From one gradient at x + r come both the step and r = project(r + step_size * g / |g|) for the next
    replay. The first r of an update is random (uniform in ±init / sqrt(numbers in it)), or zero. The
    optimizer makes `replays` steps at the learning rate of each planned update: divide engine.duration by as
    much for a run of the usual cost. train/loss is that of the first replay.
    Shafahi et al., 2019, Adversarial Training for Free!
    """

    replays: PositiveInt = 3
    """m, the times an update's rows are used."""
    step_size: NonNegativeFloat = 0.05
    """Length of each step of the perturbation."""
    epsilon: NonNegativeFloat = 0.1
    """Largest size of the perturbation of a text."""
    init: NonNegativeFloat = 0.0
    """Size of the first perturbation."""
    norm: Norm = "l2"
    """What size means: l2 over a whole text, or linf, its largest number (steps along the signs of g)."""

    _kept: dict[Key, torch.Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    @property
    def rounds(self) -> int:
        return self.replays

    def __call__(self, forward: Forward, batch: Batch) -> Iterator[torch.Tensor]:
        """The losses of the perturbed texts."""
        if not forward.piece:
            self._forget(forward.round)
        rows = batch.rows.tobytes()
        by = leaf(self._start(forward, batch, rows))
        yield self.loss(forward, batch, by)
        along = self.step_size * direction(gradient_of(by), self.norm)
        self._kept[forward.round + 1, rows] = project(by.detach() + along, self.epsilon, self.norm)

    def between(self, turn: Turn) -> None:
        """Each replay moves the weights."""
        turn.update()

    def _start(self, forward: Forward, batch: Batch, rows: bytes) -> torch.Tensor:
        """Where the perturbation stands; memory that ran out meanwhile has cut it up, and it starts again."""
        kept = self._kept.get((forward.round, rows))
        return self.scattered(forward, batch, self.init) if kept is None else kept

    def _forget(self, now: int) -> None:
        """Only this round's are still needed; none of an earlier update."""
        self._kept = {key: by for key, by in self._kept.items() if key[0] == now and now}
