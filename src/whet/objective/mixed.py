"""Mixup: texts and labels of a batch mixed two by two (Zhang et al., 2018; of words: Guo et al., 2019)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from whet.errors import ConfigError
from whet.objective.base import Forward
from whet.objective.wrapped import Wrapped

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Result
    from whet.objective.wrapped import Inner
    from whet.task.base import Task

    Pairing = tuple[float, torch.Tensor]


@dataclass
class MixedForward(Forward):
    """The model on mixed texts, the task's losses with mixed labels."""

    share: float = 1.0
    """Of each text's own part."""
    order: Any = None
    """[batch] places of the texts that are mixed in."""
    layer: int = 0
    """Block behind which states are mixed; 0: word embeddings."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        with self._mixing():
            return super().__call__(batch)

    def outputs(self, batch: Batch) -> Any:
        with self._mixing():
            return super().outputs(batch)

    def losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self._by_label(lambda labels: self.criterion.losses(logits, labels), batch)

    def weights(self, batch: Batch) -> torch.Tensor:
        own = super().weights(batch)
        return self.mixed(own, own[self.order])

    def mixed(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Both in their shares."""
        return self.share * one + (1 - self.share) * other

    def _by_label(self, loss: Callable[[torch.Tensor], torch.Tensor], batch: Batch) -> torch.Tensor:
        return self.mixed(loss(batch.labels), loss(batch.labels[self.order]))

    @contextlib.contextmanager
    def _mixing(self) -> Iterator[None]:
        if not self.layer:
            with self.embedding(lambda words: self.mixed(words, words[self.order])):
                yield
            return
        from whet.model.layers import block_modules

        def hook(_: Any, __: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            changed = self.mixed(states, states[self.order])
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = block_modules(self.model)[self.layer - 1][-1].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class Mixup(Wrapped):
    """The objective inside on texts x + (1 - share) (x' - x), with losses share * L(y) + (1 - share) * L(y').

    x' are the batch's texts in another order, x their word embeddings or the states behind a block; share
    comes from Beta(alpha, alpha), one for a micro-batch, and is the same in all gradients of an update.
    Zhang et al., 2018, mixup: Beyond Empirical Risk Minimization, equation 1.

    Args:
        inner: the objective.
        alpha: of the Beta distribution: the smaller, the less is mixed.
        layer: block behind which states are mixed, from 1; 0 mixes word embeddings.
    """

    def __init__(self, inner: Inner, alpha: float, layer: int = 0) -> None:
        super().__init__(inner)
        self.alpha, self.layer = alpha, layer
        self._pairs: dict[int, Pairing] = {}

    @property
    def moves_words(self) -> bool:
        return not self.layer or self.inner.moves_words

    @property
    def reads_states(self) -> bool:
        return self.layer > 0 or self.inner.reads_states

    def check(self, task: Task) -> None:
        super().check(task)
        if self.inner.reads_labels:
            problem = "looks at each text's own label, and mixup leaves none: take another objective"
            raise ConfigError("", problem, type(self.inner).__name__)

    def __call__(self, forward: Forward, batch: Batch) -> Result:
        """What the objective inside gives for mixed texts."""
        share, order = self._pairing(forward, batch)
        seen = {**vars(forward), "share": share, "order": order, "layer": self.layer}
        return self.inner(MixedForward(**seen), together(batch, order))

    def _pairing(self, forward: Forward, batch: Batch) -> Pairing:
        """Share and order, drawn in an update's first round."""
        import torch

        kept = self._pairs.get(forward.piece) if forward.round else None
        if kept is None or len(kept[1]) != len(batch.rows):
            law = torch.distributions.Beta(self.alpha, self.alpha)
            kept = float(law.sample()), torch.randperm(len(batch.rows)).to(batch.labels.device)
            self._pairs[forward.piece] = kept
        return kept


def together(batch: Batch, order: torch.Tensor) -> Batch:
    """The batch, with attention to every place where either of two mixed texts has a token."""
    mask = batch.inputs["attention_mask"]
    both = mask | mask[order]
    return replace(batch, inputs={**batch.inputs, "attention_mask": both}, tokens=int(both.sum()))
