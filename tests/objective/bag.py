"""A model so small that every objective can be written out: the mean of word embeddings and a linear map."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from whet.data.batch import Batch
from whet.data.files import Files
from whet.model.tiny import byte_tokenizer
from whet.objective.base import Forward, passes
from whet.task.binary import Binary
from whet.task.multi_label import MultiLabel
from whet.task.regression import Regression
from whet.task.single_label import SingleLabel

torch.set_num_threads(1)
NAMES = ("a", "b", "c")
WIDTH = 5
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
"""The tasks' losses are computed in fp32."""


class Bag(nn.Module):
    """Logits of the mean word embedding; with dropout between."""

    def __init__(self, outputs=3, dropout=0.0, scale=1.0):
        super().__init__()
        torch.manual_seed(3)
        self.table, self.head = nn.Embedding(40, WIDTH), nn.Linear(WIDTH, outputs)
        self.drop = nn.Dropout(dropout)
        self.double()
        with torch.no_grad():
            self.head.weight *= scale

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask, output_hidden_states=False, **_):
        states = self.table(input_ids)
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        logits = self.head(self.drop((states * mask).sum(1) / mask.sum(1)))
        return SimpleNamespace(logits=logits, hidden_states=(states, states.tanh()))

    def of(self, words):
        """[outputs] logits of the word embeddings [length, WIDTH] of one text."""
        return self.head(words.mean(0))


LENGTHS = (3, 7, 1, 4)
TASKS = {
    "single_label": (SingleLabel, 3, torch.tensor([0, 2, 1, 2])),
    "binary": (Binary, 1, torch.tensor([0, 1, 1, 0])),
    "multi_label": (MultiLabel, 3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]])),
    "regression": (Regression, 1, torch.tensor([0.3, -1.0, 2.0, 0.1])),
}


def task_of(kind="single_label", **settings):
    return TASKS[kind][0](name="t", data=Files(path="unused.csv"), **settings)


def batch_of(kind="single_label", lengths=LENGTHS, width=None, left=False, special=False, labels=None):
    """Texts of unequal length; with `special` ids 1 and 2 stand around each."""
    rng = np.random.default_rng(11)
    width = width or max(lengths)
    ids, mask = np.zeros((len(lengths), width), dtype=np.int64), np.zeros((len(lengths), width), np.int64)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if left else slice(0, length)
        ids[row, place], mask[row, place] = rng.integers(5, 40, length), 1
        if special:
            ids[row, place.start], ids[row, place.stop - 1] = 1, 2
    labels = TASKS[kind][2][: len(lengths)] if labels is None else labels
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    return Batch(inputs, labels, np.arange(len(lengths)), int(sum(lengths)))


def prepared(objective, kind="single_label", model=None, **settings):
    """The objective, checked and ready."""
    objective.check(task_of(kind, **settings))
    objective.prepare(SimpleNamespace(tokenizer=byte_tokenizer(), model=model))
    return objective


def forward_of(model, kind="single_label", settings=None, **state):
    task, labels = task_of(kind, **(settings or {})), TASKS[kind][2]
    return Forward(model, task.criterion(labels.numpy(), NAMES), **state)


def descend(objective, model, batch, kind="single_label", settings=None, seed=0, **state):
    """(sum of the losses, gradients by name), made as the engine makes them."""
    model.zero_grad()
    model.train()
    torch.manual_seed(seed)
    total = 0.0
    for loss in passes(objective(forward_of(model, kind, settings, **state), batch)):
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def naive(model, total):
    """(value, gradients by name) of a loss that was written out."""
    model.zero_grad()
    total.backward()
    return total.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(one, other, **tolerance):
    """Both (value, gradients) agree."""
    tolerance = tolerance or TOLERANCE
    torch.testing.assert_close(torch.tensor(one[0]), torch.tensor(other[0]), **tolerance)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], **tolerance)


def words_of(model, batch):
    """Word embeddings [length, WIDTH] of each text, part of the graph."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    return [model.table(row[real]) for row, real in zip(ids, mask, strict=True)]


def loss_of(kind, logits, label):
    """The loss of one text as torch has it."""
    if kind == "single_label":
        return F.cross_entropy(logits, label)
    if kind == "regression":
        return F.mse_loss(logits[0], label.double())
    return F.binary_cross_entropy_with_logits(logits, label.double().expand_as(logits))


def divergence_of(kind, one, other):
    """KL(one || other) of one text's outputs, by torch.distributions."""
    from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

    made = {
        "single_label": lambda z: Categorical(logits=z),
        "regression": lambda z: Normal(z, torch.ones_like(z)),
    }.get(kind, lambda z: Bernoulli(logits=z))
    return kl_divergence(made(one), made(other)).mean()
