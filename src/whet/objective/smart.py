"""SMART: smooth around each text, and slow in function space (Jiang et al., 2020, equations 1 to 3)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whet.errors import ConfigError
from whet.objective.base import need_kind
from whet.objective.divergence import KINDS, symmetric
from whet.objective.perturbation import Perturbed, Rewind, ascent, direction, leaf, project
from whet.types import Fraction, NonNegativeFloat, PositiveInt

if TYPE_CHECKING:
    import torch
    from torch import nn

    from whet.data.batch import Batch
    from whet.objective.base import Forward, Setting
    from whet.task.base import Task


@dataclass(kw_only=True)
class SMART(Perturbed):
    """Smoothness-inducing regularisation with a momentum Bregman proximal point:
    L(x) + smoothness * max S(f(x), f(x + r)) over |r| <= epsilon + proximal * S(f(x), f~(x)).

    S is KL in both directions, for a regression the squared distance; |r| the largest number in it; f~ the
    model with a running mean of the weights. The maximum is sought by `steps` projected steps from tiny
    noise. All passes drop the same elements. steps + 3 passes an update (steps + 2 without proximal), two of
    them in memory at once; train/loss is the sum that stands above.
    Jiang et al., 2020, SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models.
    """

    smoothness: NonNegativeFloat = 1.0
    """Weight of the smoothness term."""
    proximal: NonNegativeFloat = 1.0
    """Weight of the distance to the running mean; 0 keeps none."""
    epsilon: NonNegativeFloat = 0.001
    """How far a number of an embedding may move (1e-5 in the paper is less than 16-bit numbers can tell)."""
    step_size: NonNegativeFloat = 0.001
    """Length of a step."""
    steps: PositiveInt = 1
    """Of ascent."""
    init: NonNegativeFloat = 1e-3
    """Standard deviation of the noise that the ascent starts from."""
    momentum: Fraction = 0.99
    """Of the running mean of the weights."""

    _kind: str = field(init=False, repr=False, default="")
    _trained: dict[str, nn.Parameter] = field(init=False, repr=False, compare=False, default_factory=dict)
    _mean: dict[str, torch.Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    def check(self, task: Task) -> None:
        need_kind(task, KINDS, "SMART compares outputs of whole texts")
        self._kind = task.kind

    def prepare(self, setting: Setting) -> None:
        super().prepare(setting)
        if not self.proximal:
            return
        self._trained = {name: p for name, p in setting.model.named_parameters() if p.requires_grad}
        if any(hasattr(p, "full_tensor") for p in self._trained.values()):
            problem = "the running mean of the weights isn't shared out: set it to 0, or engine.parallel=ddp"
            raise ConfigError("proximal", problem, self.proximal)
        self._mean = {name: p.detach().clone() for name, p in self._trained.items()}

    def __call__(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """The losses and both terms."""
        again = Rewind(batch.labels.device)
        before = self._before(forward, batch) if self.proximal else None
        again()
        logits = forward(batch)
        apart = self.smoothness * self._rough(forward, batch, logits, again)
        if before is not None:
            apart = apart + self.proximal * symmetric(self._kind)(logits, before)
        return (forward.losses(logits, batch) + apart * forward.weights(batch)).sum()

    def after(self, forward: Forward) -> None:
        """Let the running mean follow."""
        import torch

        if self._mean:
            weights = [p.detach() for p in self._trained.values()]
            torch._foreach_lerp_(list(self._mean.values()), weights, 1 - self.momentum)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The running mean."""
        return dict(self._mean)

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, mean in self._mean.items():
            mean.copy_(tensors[name])

    def _rough(self, forward: Forward, batch: Batch, logits: torch.Tensor, again: Rewind) -> torch.Tensor:
        """[batch] largest divergence nearby."""
        apart, given = symmetric(self._kind), logits.detach()
        by = self.init * self.drawn(forward, batch, lambda empty: empty.normal_())
        for _ in range(self.steps):
            by = leaf(by)
            again()
            rise = ascent(apart(given, self.moved(forward, batch, by)).sum(), by)
            by = project(by.detach() + self.step_size * direction(rise, "linf"), self.epsilon, "linf")
        again()
        return apart(logits, self.moved(forward, batch, by))

    def _before(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """Logits of the model with the mean weights."""
        import torch

        with torch.no_grad(), self._swapped():
            return forward(batch)

    @contextlib.contextmanager
    def _swapped(self) -> Iterator[None]:
        """The mean weights in the model."""
        own = {name: parameter.data for name, parameter in self._trained.items()}
        try:
            for name, parameter in self._trained.items():
                parameter.data = self._mean[name]
            yield
        finally:
            for name, parameter in self._trained.items():
                parameter.data = own[name]
