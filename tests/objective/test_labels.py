"""Label smoothing and focal loss against the tasks' own settings and their equations; what they refuse."""

import numpy as np
import pytest
import torch
from tests.objective.bag import NAMES, TASKS, Bag, batch_of, descend, naive, prepared, same, task_of

from whet.errors import ConfigError
from whet.objective.base import Forward
from whet.objective.focal import Focal
from whet.objective.label_smoothing import LabelSmoothing
from whet.objective.plain import plain
from whet.objective.rdrop import RDrop
from whet.objective.smart import SMART
from whet.objective.supcon import SupCon
from whet.objective.vat import VAT

LABELLED = ["single_label", "binary", "multi_label"]
WEIGHTS = {
    "single_label": {"class_weights": {"a": 0.3, "c": 4.0}},
    "binary": {"positive_weight": 3.0},
    "multi_label": {"positive_weights": {"b": 3.0}},
}


def missing(kind, batch):
    """The same batch, its second row without a label."""
    batch.labels = batch.labels.clone()
    batch.labels[1] = -1
    return batch


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("weighted", [False, True])
def test_smoothing_has_the_gradients_of_the_tasks_own(kind, weighted):
    model, batch = Bag(TASKS[kind][1]), missing(kind, batch_of(kind))
    settings = WEIGHTS[kind] if weighted else {}
    found = descend(prepared(LabelSmoothing(epsilon=0.3), kind), model, batch, kind, settings)
    same(found, descend(plain, model, batch, kind, {**settings, "label_smoothing": 0.3}))
    same(descend(prepared(LabelSmoothing(epsilon=0.0), kind), model, batch, kind, settings),
         descend(plain, model, batch, kind, settings))  # fmt: skip


def test_smoothing_twice_is_refused():
    with pytest.raises(ConfigError, match=r"epsilon=0.1: .*twice: leave task.label_smoothing=0.2 at 0"):
        LabelSmoothing().check(task_of(label_smoothing=0.2))


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_by_the_book(kind, gamma):
    """Weights and probabilities label by label, in fp64."""
    model, batch = Bag(TASKS[kind][1], scale=4.0), missing(kind, batch_of(kind))
    logits, total = model(**batch.inputs).logits, 0.0
    for row in (0, 2, 3):
        if kind == "single_label":
            p = logits[row].softmax(0)[batch.labels[row]]
            weight = WEIGHTS[kind]["class_weights"].get(NAMES[batch.labels[row]], 1.0)
            total = total - weight * (1 - p) ** gamma * p.log()
        else:
            labels = batch.labels[row].expand(logits.shape[1])
            parts = []
            for place, (z, y) in enumerate(zip(logits[row], labels, strict=True)):
                p = z.sigmoid() if y else 1 - z.sigmoid()
                heavy = kind == "binary" or NAMES[place] == "b"
                parts.append(-(3.0 if y and heavy else 1.0) * (1 - p) ** gamma * p.log())
            total = total + sum(parts) / len(parts)
    found = descend(prepared(Focal(gamma=gamma), kind), model, batch, kind, WEIGHTS[kind])
    same(found, naive(model, total))


def test_a_certain_answer_gives_focal_loss_a_finite_gradient():
    """(1 - p)^0.5 has no slope at p = 1."""
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    forward = Forward(None, task_of().criterion(np.array([0]), NAMES))
    forward.__class__ = type("Given", (Forward,), {"__call__": lambda self, batch: logits})
    objective = prepared(Focal(gamma=0.5))
    objective(forward, batch_of(lengths=(1,), labels=torch.tensor([0]))).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("objective", "kinds"), [
    (Focal(), ["regression"]), (LabelSmoothing(), ["regression"]), (SupCon(), ["regression", "multi_label"]),
    (RDrop(), []), (SMART(), []), (VAT(), []),
], ids=str)  # fmt: skip
def test_tasks_that_an_objective_cannot_serve_are_refused(objective, kinds):
    for kind in TASKS:
        if kind in kinds:
            with pytest.raises(ConfigError, match=f"the task t is of kind {kind}: take another objective"):
                objective.check(task_of(kind))
        else:
            objective.check(task_of(kind))
