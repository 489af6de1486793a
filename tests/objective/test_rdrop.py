"""R-Drop against its equation, with the very dropout of its two passes."""

from types import SimpleNamespace

import pytest
import torch
from tests.model.architectures import HEAD, tiny
from tests.objective.bag import TASKS, Bag, batch_of, descend, divergence_of, loss_of, naive, same, task_of

from whet.errors import ConfigError
from whet.objective.plain import plain
from whet.objective.rdrop import RDrop
from whet.paths import Paths


def checked(objective, kind="single_label", **settings):
    objective.check(task_of(kind, **settings))
    return objective


@pytest.mark.parametrize("kind", TASKS)
def test_the_equation(kind):
    model, batch = Bag(TASKS[kind][1], dropout=0.4, scale=4.0), batch_of(kind)
    found = descend(checked(RDrop(alpha=3.0), kind), model, batch, kind)
    torch.manual_seed(0)
    one, other = (model(**batch.inputs).logits for _ in range(2))
    assert not torch.equal(one, other)
    total = 0.0
    for p, q, label in zip(one, other, batch.labels, strict=True):
        apart = (
            (p - q).square().mean()
            if kind == "regression"
            else divergence_of(kind, p, q) + divergence_of(kind, q, p)
        )
        total = total + loss_of(kind, p, label) + loss_of(kind, q, label) + 1.5 * apart
    same(found, naive(model, total))


@pytest.mark.parametrize("kind", TASKS)
def test_without_dropout_it_is_twice_plain(kind):
    model, batch = Bag(TASKS[kind][1]), batch_of(kind)
    one, other = descend(checked(RDrop(), kind), model, batch, kind), descend(plain, model, batch, kind)
    same(one, (2 * other[0], {name: 2 * gradient for name, gradient in other[1].items()}))


def test_a_model_that_drops_nothing_is_refused(cache):
    for architecture, settings, fine in (
        ("modernbert", {}, False), ("modernbert", {"dropout": 0.1}, True), ("bert", {}, True),
        ("bert", {"dropout": 0.0, "head_dropout": 0.0}, False), ("bert", {"dropout": 0.0}, True),
    ):  # fmt: skip
        model = tiny(architecture, **settings).load(HEAD, Paths(cache=str(cache))).model
        if fine:
            RDrop().prepare(SimpleNamespace(model=model))
        else:
            with pytest.raises(ConfigError, match=r"alpha=1.0: nothing is dropped .*: set model.dropout"):
                RDrop().prepare(SimpleNamespace(model=model))


def test_alpha_matters_and_rows_without_a_label_do_not():
    model, batch = Bag(dropout=0.4), batch_of()
    low, high = (descend(checked(RDrop(alpha=alpha)), model, batch)[0] for alpha in (1.0, 4.0))
    assert high > low
    half = batch_of(labels=torch.tensor([0, -1, -1, 2]))
    torch.manual_seed(0)
    found, _ = descend(checked(RDrop(alpha=4.0)), model, half)
    torch.manual_seed(0)
    one, other = (model(**batch.inputs).logits for _ in range(2))
    expected = sum(
        loss_of("single_label", z[row], half.labels[row]).item() for z in (one, other) for row in (0, 3)
    ) + 2 * sum(
        (
            divergence_of("single_label", one[r], other[r]) + divergence_of("single_label", other[r], one[r])
        ).item()
        for r in (0, 3)
    )
    assert found == pytest.approx(expected, rel=1e-4)


def test_class_weights_weigh_the_divergence_too():
    """So the scale of the weights cancels out, as it does in the task's own loss."""
    model, batch = Bag(dropout=0.4, scale=4.0), batch_of()
    settings = [{"class_weights": {"a": s, "b": 2 * s, "c": 3 * s}} for s in (1.0, 10.0)]
    one, ten = (descend(checked(RDrop(alpha=4.0), **s), model, batch, settings=s) for s in settings)
    same((10 * one[0], {name: 10 * gradient for name, gradient in one[1].items()}), ten)
