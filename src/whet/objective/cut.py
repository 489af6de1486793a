"""Cutoff: parts of the word embeddings erased, the output held to what it was (Shen et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from whet.objective.base import Forward, need_kind, passes
from whet.objective.divergence import KINDS, jensen_shannon
from whet.objective.wrapped import Wrapped

if TYPE_CHECKING:
    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Setting
    from whet.objective.wrapped import Inner
    from whet.task.base import Task

Part = Literal["token", "feature", "span"]


@dataclass
class CutForward(Forward):
    """The model on texts of which a part is erased."""

    kept: Any = None
    """[batch, length, hidden] (or 1 in a dimension): 0 where words are erased."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        with self.embedding(lambda words: words * self.kept):
            return super().__call__(batch)


class Cutoff(Wrapped):
    """The objective inside, and alpha * L(cut) + beta * JS(p(x), p(cut)), the cut text x with a part erased.

    One pass more than the objective inside, two with `beta`. Special tokens and padding stay.
    Shen et al., 2020, A Simple but Tough-to-Beat Data Augmentation Approach, equation 5.

    Args:
        inner: the objective.
        part: erase single tokens, dimensions of all tokens of a text, or one run of tokens.
        rate: share of a text's tokens (of the dimensions) that is erased.
        alpha: weight of the loss on the cut text.
        beta: weight of the Jensen-Shannon divergence of both outputs; above 0 it costs one more plain pass.
    """

    def __init__(self, inner: Inner, part: Part, rate: float, alpha: float, beta: float) -> None:
        super().__init__(inner)
        self.part, self.rate, self.alpha, self.beta = part, rate, alpha, beta
        self._kind = ""
        self._special: tuple[int, ...] = ()

    @property
    def moves_words(self) -> bool:
        return True

    def check(self, task: Task) -> None:
        super().check(task)
        need_kind(task, KINDS, "cutoff compares outputs of whole texts")
        self._kind = task.kind

    def prepare(self, setting: Setting) -> None:
        super().prepare(setting)
        self._special = tuple(sorted(set(setting.tokenizer.all_special_ids)))

    def __call__(self, forward: Forward, batch: Batch) -> Iterator[torch.Tensor]:
        """The passes of the objective inside, then what cutting adds."""
        yield from passes(self.inner(forward, batch))
        cut = CutForward(**vars(forward), kept=self.kept(forward, batch))(batch)
        added = self.alpha * forward.losses(cut, batch)
        if self.beta:
            apart = jensen_shannon(self._kind)(forward(batch), cut)
            added = added + self.beta * apart * forward.weights(batch)
        yield added.sum()

    def kept(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """What stays: 0 where words are erased, 1 elsewhere."""
        import torch

        ids = batch.inputs["input_ids"]
        special = torch.isin(ids, torch.tensor(self._special, device=ids.device))
        words = batch.inputs["attention_mask"].bool() & ~special
        if self.part == "feature":
            width = forward.words.weight.shape[-1]
            return self._features(words, torch.rand(len(ids), width, device=ids.device))
        count = words.sum(1, keepdim=True)
        erased = (self.rate * count).round().clamp(min=1).minimum(count)
        if self.part == "span":
            start = (torch.rand(len(ids), 1, device=ids.device) * (count - erased + 1)).floor()
            place = words.cumsum(1) - 1
            gone = words & (place >= start) & (place < start + erased)
        else:
            scores = torch.rand(ids.shape, device=ids.device).masked_fill(~words, 2.0)
            gone = words & (scores.argsort(1).argsort(1) < erased)
        return (~gone).unsqueeze(-1).float()

    def _features(self, words: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """[batch, length, hidden]: the same dimensions of all words of a text."""
        gone = scores.argsort(1).argsort(1) < max(1, round(self.rate * scores.shape[1]))
        return (~(words[:, :, None] & gone[:, None, :])).float()
