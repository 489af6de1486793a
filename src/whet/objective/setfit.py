"""Few-shot learning by comparing texts in pairs, as SetFit does (Tunstall et al., 2022)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import ConfigError
from whet.objective.base import Objective, need_kind
from whet.types import Fraction, PositiveFloat

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from whet.data.batch import Batch, Collator
    from whet.data.batching import Batching
    from whet.objective.base import Forward, Setting
    from whet.task.base import Task


log = logging.getLogger("whet.objective")
_NEVER = -1e4
"""Logit of a class that training has no rows of."""


@dataclass(kw_only=True)
class SetFit(Objective):
    """Texts of one class are drawn together, others apart; the head is a logistic regression on top.

    The loss of a micro-batch is share * P + (1 - share) * N: P the mean of (1 - cos)² over its pairs of one
    class, N that of cos² over the other pairs, cos that of the two texts' mean states. The paper draws pairs
    of rows, as many alike as not, and so minimises this with a share of a half. The head isn't trained:
    before each evaluation a logistic regression (L2, `inverse_penalty` is scikit-learn's C) is fitted to the
    mean states of all training rows, without dropout, as in the paper's second phase. train/loss is that of
    the pairs. They are those of a micro-batch: a larger engine.batching.size isn't the same as
    engine.accumulate.
    Tunstall et al., 2022, Efficient Few-Shot Learning Without Prompts, section 3.
    """

    share: Fraction = 0.5
    """Weight of the pairs of one class."""
    inverse_penalty: PositiveFloat = 1.0
    """Of the logistic regression: larger fits the training rows more closely."""

    @property
    def reads_labels(self) -> bool:
        return True

    @property
    def settles(self) -> bool:
        return True

    @property
    def needs_head(self) -> str | None:
        return "mean"

    def check(self, task: Task) -> None:
        need_kind(task, ("single_label",), "texts are compared by their one class")

    def prepare(self, setting: Setting) -> None:
        from whet.data.batch import Collator
        from whet.data.tokens import encode
        from whet.model.layers import head_parameters
        from whet.peft.base import trained_names

        if set(trained_names(setting.model)) <= set(head_parameters(setting.model)):
            raise ConfigError("", "nothing below the head trains, so texts can't move: take another peft")
        train, names = setting.train, setting.label_names
        counts = np.bincount(train.labels[train.labels >= 0], minlength=len(names))
        if np.count_nonzero(counts) < 2:
            raise ConfigError("", "needs training rows of two classes at least")
        if not counts.all():
            empty = ", ".join(name for name, count in zip(names, counts, strict=True) if not count)
            log.warning("objective=setfit: no training rows for %s: never predicted", empty)
        kept = train.take(np.flatnonzero(train.labels >= 0))
        tokens = encode(kept.texts, setting.tokenizer, setting.max_length, shown="off")
        self._rows: Collator = Collator.of(tokens, kept.labels, setting.tokenizer, setting.batching)
        self._batching: Batching = setting.batching
        self._amp = setting.amp

    def __call__(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """The pairs' loss, times the weight of the rows."""
        with vectors_of(forward.model) as found:
            forward(batch)
        pairs = pair_loss(found[0], batch.labels, self.share)
        return pairs * forward.weights(batch).sum()

    def before_judging(self, forward: Forward) -> None:
        """Fit the head to the states of the training rows as they are now."""
        import torch

        vectors = self._vectors(forward.model)
        head: Any = forward.model.classifier
        weight, bias = regression(vectors, self._rows.labels, self.inverse_penalty, len(head.bias))
        with torch.no_grad():
            for tensor, values in ((head.weight, weight), (head.bias, bias)):
                tensor.copy_(torch.from_numpy(values))

    def _vectors(self, model: nn.Module) -> NDArray[np.float64]:
        """[rows, hidden] what the head reads of every training row."""
        import torch

        batches = self._batching.evaluation(self._rows.tokens.lengths)
        model.eval()
        with torch.no_grad(), self._amp.autocast(), vectors_of(model) as found:
            for rows in batches:
                model(**self._rows(rows, self._amp.device).inputs)
        made = np.concatenate([part.float().cpu().numpy() for part in found])
        vectors = np.empty(made.shape)
        vectors[np.concatenate(batches)] = made
        return vectors


@contextlib.contextmanager
def vectors_of(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """While it lasts, what the head of `model.head=mean` is given, [batch, hidden] a forward pass."""
    found: list[torch.Tensor] = []
    dropout: Any = model.dropout
    handle = dropout.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    try:
        yield found
    finally:
        handle.remove()


def pair_loss(vectors: torch.Tensor, labels: torch.Tensor, share: float) -> torch.Tensor:
    """The loss of all pairs of a batch; a kind of pair that doesn't occur adds nothing.

    Args:
        vectors: [batch, hidden], of any length.
        labels: [batch] classes; rows below 0 aren't compared.
        share: weight of the pairs of one class.
    """
    import torch
    from torch.nn.functional import normalize

    unit = normalize(vectors.float(), dim=1)
    known = labels >= 0
    pairs = torch.ones(len(labels), len(labels), dtype=torch.bool, device=labels.device).triu(1)
    pairs = pairs & known[:, None] & known[None, :]
    alike = labels[:, None] == labels[None, :]
    cosine = unit @ unit.T
    total = unit.sum() * 0.0
    for weight, chosen, target in ((share, pairs & alike, 1.0), (1 - share, pairs & ~alike, 0.0)):
        apart = torch.where(chosen, (cosine - target) ** 2, 0.0)
        total = total + weight * apart.sum() / chosen.sum().clamp(min=1)
    return total


def regression(
    vectors: NDArray[Any], labels: NDArray[Any], inverse_penalty: float, classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A logistic regression as a linear layer: weights [classes, hidden] and biases [classes].

    Of two classes, half of the one difference goes to each; a class without rows is never the likeliest.
    """
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=inverse_penalty, max_iter=2000, tol=1e-6).fit(vectors, labels)
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(coefficients) == 1:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight = np.zeros((classes, vectors.shape[1]), dtype=np.float32)
    bias = np.full(classes, _NEVER, dtype=np.float32)
    weight[fitted.classes_], bias[fitted.classes_] = coefficients, intercepts
    return weight, bias
