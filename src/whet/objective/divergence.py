"""How far two outputs of one text are apart, for every kind of task."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

KINDS = ("single_label", "binary", "multi_label", "regression")
"""Kinds of task for which there is one."""


def categorical(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[batch] KL(one || other) of the softmaxes of logits [batch, classes]."""
    p, q = one.float().log_softmax(-1), other.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def bernoulli(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[batch] KL(one || other) of the sigmoids of logits [batch, labels], the mean over the labels."""
    from torch.nn.functional import logsigmoid

    p, q = one.float(), other.float()
    there = p.sigmoid() * (logsigmoid(p) - logsigmoid(q))
    absent = (-p).sigmoid() * (logsigmoid(-p) - logsigmoid(-q))
    return (there + absent).mean(-1)


def gaussian(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[batch] KL of normal distributions of variance 1 around values [batch, 1]: half the squared error."""
    return (one.float() - other.float()).square().mean(-1) / 2


def divergence(kind: str) -> Divergence:
    """KL(one || other) of two outputs of a task of this kind."""
    return {"single_label": categorical, "regression": gaussian}.get(kind, bernoulli)


def symmetric(kind: str) -> Divergence:
    """KL(one || other) + KL(other || one); for a regression the squared distance."""
    apart = divergence(kind)
    return lambda one, other: apart(one, other) + apart(other, one)


def jensen_shannon(kind: str) -> Divergence:
    """Mean KL of two outputs from the mean of both distributions; for a regression from the mean value."""

    def values(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        middle = (one.float() + other.float()) / 2
        return (gaussian(one, middle) + gaussian(other, middle)) / 2

    def labels(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        import torch

        if kind == "single_label":
            two = (one.float().log_softmax(-1), other.float().log_softmax(-1))
            middle = torch.logaddexp(*two) - math.log(2)
        else:
            middle = torch.logit((one.float().sigmoid() + other.float().sigmoid()) / 2, eps=1e-7)
        apart = divergence(kind)
        return (apart(one, middle) + apart(other, middle)) / 2

    return values if kind == "regression" else labels
