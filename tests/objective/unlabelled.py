"""A task of letters: each class has its own, so that a bag of letters tells texts apart."""

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from whet.augmentation.none import NoAugmentation
from whet.data.batch import Collator, Examples
from whet.data.batching import Batching
from whet.data.files import Files
from whet.data.tokens import encode
from whet.engine.precision import Amp
from whet.model.tiny import byte_tokenizer
from whet.objective.base import Forward, Setting, passes
from whet.paths import Paths
from whet.task.binary import Binary
from whet.task.multi_label import MultiLabel
from whet.task.regression import Regression
from whet.task.single_label import SingleLabel

torch.set_num_threads(1)
CPU = torch.device("cpu")
LETTERS = ("abcdefgh", "klmnopqr")
TOKENIZER = byte_tokenizer()
OUTPUTS = {SingleLabel: 2, Binary: 1, MultiLabel: 2, Regression: 1}


class Bag(nn.Module):
    """A linear map of the mean of letter vectors."""

    def __init__(self, outputs=2, dropout=0.0, seed=3):
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.drop, self.head = nn.Embedding(261, 8), nn.Dropout(dropout), nn.Linear(8, outputs)

    def forward(self, input_ids, attention_mask, **_):
        mask = (attention_mask * (input_ids > 4)).unsqueeze(-1).to(self.table.weight.dtype)
        mean = (self.table(input_ids) * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(logits=self.head(self.drop(mean)))


def texts(count, seed, letters=LETTERS, most=7):
    """Texts of the classes in turn."""
    rng = random.Random(seed)
    return [("".join(rng.choices(letters[n % 2], k=rng.randint(2, most))),) for n in range(count)]


def made(tmp_path, objective, kind=SingleLabel, model=None, left=None, labels=None, **changes):
    """An objective that is prepared, its forward pass and a labelled batch of eight."""
    task = kind(name="t", data=Files(path="unused.csv"))
    model = model or Bag(OUTPUTS[kind])
    labels = np.arange(8) % 2 if labels is None else labels
    train = Examples("train", np.arange(8).astype(str), texts(8, 0), labels)
    setting = Setting(
        task=task, label_names=("a", "b"), train=train, left=texts(40, 1) if left is None else left,
        tokenizer=TOKENIZER, max_length=16, batching=Batching(size=16, tokens=None), model=model,
        amp=Amp(CPU, "fp32"), paths=Paths(cache=str(tmp_path)), augmentation=NoAugmentation(), seed=5, total=100,
    )  # fmt: skip
    setting = replace(setting, **changes)
    objective.prepare(setting)
    forward = Forward(model, task.criterion(labels, ("a", "b")), step=50, total=100)
    collator = Collator.of(encode(train.texts, TOKENIZER, 16), labels, TOKENIZER, setting.batching)
    return forward, collator(np.arange(8), CPU), setting


def parts(objective, forward, batch):
    """The sums that it yields."""
    return list(passes(objective(forward, batch)))


def drawn(setting, forward, count, rank=0):
    """The unlabelled rows of a micro-batch, by the rule written down."""
    seeds = [setting.seed, forward.step, rank, forward.piece, 0]
    return np.random.default_rng(seeds).choice(len(setting.left), count, replace=False)


def said(model, some):
    """[n, outputs] float64 logits of texts, one at a time."""
    found = []
    with torch.no_grad():
        for (text,) in some:
            ids = torch.tensor([TOKENIZER(text)["input_ids"]])
            found.append(model(ids, torch.ones_like(ids)).logits[0].double().numpy())
    return np.array(found)


def upper(given, labels, rng):
    """An augmentation: all letters large (the bag has never seen them)."""
    return [(text.upper(),) for (text,) in given], labels


def rotated(given, labels, rng):
    """An augmentation that draws: each letter becomes another one of all."""
    letters = "".join(LETTERS)
    return [("".join(letters[rng.integers(len(letters))] for _ in text),) for (text,) in given], labels
