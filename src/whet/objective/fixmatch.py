"""Decide on a text hardly changed, train on it strongly changed (Sohn et al., 2020, FixMatch, equation 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whet.augmentation.base import Augmentation
from whet.config import Method
from whet.objective.base import Forward, Setting
from whet.objective.pool import Augment, WithPool, changer, log_probabilities, without_gradient
from whet.objective.pseudo_label import decided
from whet.types import Fraction, PositiveInt

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch


@dataclass(kw_only=True)
class FixMatch(WithPool):
    """Cross entropy of strongly augmented texts with the class of their weakly augmented form.

    Both passes have dropout. With `weak` null the text itself decides.
    """

    ratio: PositiveInt = 7
    """Unlabelled texts for each labelled one of a batch (the paper's mu)."""
    threshold: Fraction = 0.95
    """Only decisions of at least this probability count."""
    augmentation: Method | Augmentation | None = None
    """The strong one; null takes the run's. To choose one: +augmentation@objective.augmentation=NAME."""
    weak: Method | Augmentation | None = None
    """The weak one; null leaves the texts as they are."""

    _strong: Augment = field(init=False, repr=False)
    _weak: Augment | None = field(init=False, repr=False)

    def prepare(self, setting: Setting) -> None:
        self.needs_classes(setting)
        super().prepare(setting)
        self._strong = changer(self.augmentation or setting.augmentation, setting)
        self._weak = None if self.weak is None else changer(self.weak, setting, "weak")

    def __call__(self, forward: Forward, batch: Batch) -> Iterator[torch.Tensor]:
        yield forward.losses(forward(batch), batch).sum()
        if self.weight == 0:
            return
        for number, (rows, factor) in enumerate(self.drawn(forward, batch)):
            rng = self._pool.rng(forward, 1 + number)
            with without_gradient():
                seen = self._pool.changed(rows, self._weak, rng) if self._weak else self._pool.batch(rows)
                judged = log_probabilities(forward(seen), self.kind)
            logs = log_probabilities(forward(self._pool.changed(rows, self._strong, rng)), self.kind)
            yield factor * decided(logs, judged, self.threshold).sum()
