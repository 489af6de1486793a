"""Perturbations of word embeddings: what all objectives that move them share.

A perturbation is one tensor [batch, length, hidden], added to the output of the table of word embeddings, so
it acts whatever of the model trains. Its size is that of a whole text: the L2 norm over its tokens and
dimensions, or the largest number among them. Padding is never moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from whet.objective.base import Objective

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from whet.data.batch import Batch
    from whet.objective.base import Forward, Setting

Norm = Literal["l2", "linf"]
_LIFT = 2.0**10
"""Factor of a loss whose gradient only gives a direction: fp16 flushes less of it to zero."""

# ---------------------------------------------------------------- pure parts


def sizes(values: torch.Tensor, norm: Norm) -> torch.Tensor:
    """[batch, 1, 1] norms of [batch, length, hidden], one a text."""
    import torch

    order = 2 if norm == "l2" else torch.inf
    found: torch.Tensor = torch.linalg.vector_norm(values, order, dim=(1, 2), keepdim=True)
    return found


def direction(gradient: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The perturbation of size 1 along which the loss of each text rises most: g / |g|, or the signs of g.

    Zero where a text's gradient is zero, or isn't finite (fp16 overflows now and then).

    Args:
        gradient: [batch, length, hidden], in any scale.
        norm: what size means.
    """
    import torch

    largest = sizes(gradient, "linf")
    usable = (largest > 0) & torch.isfinite(largest)
    if norm == "linf":
        return torch.where(usable, gradient.sign(), 0.0)
    scaled = gradient / largest  # squares of small numbers are none
    return torch.where(usable, scaled / sizes(scaled, "l2"), 0.0)


def project(values: torch.Tensor, radius: float, norm: Norm) -> torch.Tensor:
    """The nearest perturbations [batch, length, hidden] of size `radius` at most."""
    if norm == "linf":
        return values.clamp(-radius, radius)
    return values * (radius / sizes(values, "l2").clamp(min=1e-30)).clamp(max=1.0)


class Rewind:
    """Lets several passes draw the same random numbers, and so drop the same elements."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def __call__(self) -> None:
        """Back to where the generators were when this was made."""
        import torch

        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


# ---------------------------------------------------------------- the base


@dataclass(kw_only=True)
class Perturbed(Objective):
    """An objective that moves word embeddings."""

    special_tokens: bool = True
    """Move [CLS], [SEP] and the like, too; padding never moves."""

    _special: tuple[int, ...] = field(init=False, repr=False, default=())

    @property
    def moves_words(self) -> bool:
        return True

    def prepare(self, setting: Setting) -> None:
        self._special = tuple(sorted(set(setting.tokenizer.all_special_ids)))

    def places(self, batch: Batch) -> torch.Tensor:
        """[batch, length, 1] bool: the tokens that may move."""
        import torch

        mask = batch.inputs["attention_mask"].bool()
        if not self.special_tokens:
            ids = batch.inputs["input_ids"]
            mask = mask & ~torch.isin(ids, torch.tensor(self._special, device=ids.device))
        return mask.unsqueeze(-1)

    def still(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """A perturbation [batch, length, hidden] of zeros, fp32 at least, whose gradient will be known."""
        import torch

        table = forward.words.weight
        shape = (*batch.inputs["attention_mask"].shape, table.shape[-1])
        kind = torch.promote_types(table.dtype, torch.float32)
        device = batch.inputs["attention_mask"].device
        return torch.zeros(shape, dtype=kind, device=device, requires_grad=True)

    def drawn(
        self, forward: Forward, batch: Batch, draw: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Random numbers [batch, length, hidden] for the tokens that may move, zero elsewhere.

        Args:
            forward: the model.
            batch: as many numbers are drawn as it has real tokens, so padding changes none.
            draw: fills a tensor.
        """
        empty = self.still(forward, batch).detach()
        real = batch.inputs["attention_mask"].bool().unsqueeze(-1).expand_as(empty)
        numbers = draw(empty.new_empty(batch.tokens, empty.shape[-1]))
        return empty.masked_scatter(real, numbers) * self.places(batch)

    def scattered(self, forward: Forward, batch: Batch, size: float) -> torch.Tensor:
        """[batch, length, hidden] uniform in ±size / sqrt(numbers of the text that may move)."""
        numbers = self.drawn(forward, batch, lambda empty: empty.uniform_(-size, size))
        count = self.places(batch).sum((1, 2), keepdim=True) * numbers.shape[-1]
        return numbers / count.clamp(min=1).sqrt()

    def moved(self, forward: Forward, batch: Batch, by: torch.Tensor) -> torch.Tensor:
        """Logits where word embeddings are moved `by` [batch, length, hidden]."""
        allowed = by * self.places(batch)
        with forward.embedding(lambda words: words + allowed.to(words.dtype)):
            return forward(batch)

    def loss(self, forward: Forward, batch: Batch, by: torch.Tensor) -> torch.Tensor:
        """The sum of the task's losses where word embeddings are moved `by`."""
        return forward.losses(self.moved(forward, batch, by), batch).sum()


def ascent(loss: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """The gradient of `loss` by a perturbation, up to a factor; no parameter gets one."""
    import torch

    with torch.autocast(by.device.type, enabled=False):
        return torch.autograd.grad(loss * _LIFT, by)[0]


def leaf(by: torch.Tensor) -> torch.Tensor:
    """The same perturbation as a tensor of its own, whose gradient will be known."""
    return by.detach().requires_grad_(True)


def gradient_of(by: torch.Tensor) -> torch.Tensor:
    """What the engine's backward pass left at a perturbation."""
    if by.grad is None:
        raise RuntimeError("no backward pass came by the perturbation")
    return by.grad
