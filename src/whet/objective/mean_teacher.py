"""Agree with the average of one's own past weights (Tarvainen & Valpola, 2017, Mean Teacher)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whet.averaging.shadow import Shadow
from whet.config import Method
from whet.objective.base import Forward, Setting
from whet.objective.pool import WithPool, without_gradient
from whet.types import Fraction, NonNegativeFloat, Probability

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from whet.data.batch import Batch

    Rows = NDArray[np.int64]


@dataclass(kw_only=True)
class MeanTeacher(WithPool):
    """Squared difference of the student's and the teacher's probabilities, on all texts.

    The teacher is the exponential moving average of the student's weights. Student and teacher have different
    dropout masks and, with an augmentation, read differently augmented forms of an unlabelled text: dropout
    alone is a weak noise. For a regression the values themselves are compared. What is judged and exported is
    the student; `averaging=ema` with the same decay makes that a teacher, too.
    """

    weight: NonNegativeFloat = 10.0
    """Of the squared difference (mean over classes and texts), once it has risen."""
    decay: Probability = 0.99
    """Share of the teacher that stays in an update; 1 - 1 / (t + 1) where that is less."""
    end: Fraction = 0.4
    """Share of the run at which the weight has risen, as exp(-5 (1 - x)^2)."""

    augmentation: Method | None = None
    """Of unlabelled texts; null: as they are. To choose one: +augmentation@objective.augmentation=NAME."""

    _teacher: Shadow = field(init=False, repr=False)

    def prepare(self, setting: Setting) -> None:
        super().prepare(setting)
        self._teacher = Shadow(setting.model, "objective=mean_teacher")

    def __call__(self, forward: Forward, batch: Batch) -> Iterator[torch.Tensor]:
        risen = grown(forward.step / forward.total, self.end)
        if risen * self.weight == 0:
            yield forward.losses(forward(batch), batch).sum()
            return
        taught = self._taught(forward, batch)
        logits = forward(batch)
        apart = self._apart(logits, taught).sum() / len(batch.rows)
        yield forward.losses(logits, batch).sum() + risen * self.weight * self.share(forward, batch) * apart
        for number, (rows, factor) in enumerate(self.drawn(forward, batch)):
            rng = self._pool.rng(forward, 1 + number)
            taught = self._taught(forward, self._seen(rows, rng))
            yield risen * factor * self._apart(forward(self._seen(rows, rng)), taught).sum()

    def after(self, forward: Forward) -> None:
        self._teacher.move(1 - min(self.decay, 1 - 1 / (forward.step + 2)))

    def tensors(self) -> dict[str, torch.Tensor]:
        held = {f"teacher.{name}": tensor for name, tensor in self._teacher.values.items()}
        return {**super().tensors(), **held}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().load_tensors(tensors)
        start = "teacher."
        self._teacher.load({k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)})

    def _seen(self, rows: Rows, rng: np.random.Generator) -> Batch:
        """Unlabelled texts as one of the two reads them."""
        return (
            self._pool.changed(rows, self.augmentation, rng) if self.augmentation else self._pool.batch(rows)
        )

    def _taught(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """[batch, outputs] logits of the teacher."""
        with without_gradient(), self._teacher.worn():
            return forward(batch)

    def _apart(self, logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """[batch] mean squared difference of probabilities, or of values."""
        ours, theirs = logits.float(), taught.float()
        if self.kind == "single_label":
            ours, theirs = ours.softmax(-1), theirs.softmax(-1)
        elif self.kind != "regression":
            ours, theirs = ours.sigmoid(), theirs.sigmoid()
        return (ours - theirs).square().mean(-1)


def grown(done: float, end: float) -> float:
    """exp(-5 (1 - x)^2) with x the way to `end`, 1 from there on (section 3.2)."""
    return 1.0 if done >= end else math.exp(-5 * (1 - done / end) ** 2)
