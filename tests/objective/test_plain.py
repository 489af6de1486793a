"""The plain objective is the sum of the task's losses."""

from types import SimpleNamespace

import numpy as np
import torch

from whet.data.batch import Batch
from whet.objective.base import Forward
from whet.objective.plain import plain
from whet.task.base import Criterion


def test_sum_not_mean():
    logits = torch.tensor([[1.0], [2.0], [5.0]], requires_grad=True)
    criterion = Criterion(lambda z, y: (z[:, 0] - y) ** 2, lambda y: np.ones(len(y)))
    seen = {}

    def model(**inputs):
        seen.update(inputs)
        return SimpleNamespace(logits=logits)

    inputs = {"input_ids": torch.ones(3, 2, dtype=torch.long), "attention_mask": torch.ones(3, 2)}
    batch = Batch(inputs, torch.tensor([0.0, 0.0, 1.0]), np.arange(3), 6)
    loss = plain(Forward(model, criterion), batch)
    assert loss.item() == 1 + 4 + 16
    loss.backward()
    assert logits.grad.flatten().tolist() == [2, 4, 8]
    assert set(seen) == set(inputs)
