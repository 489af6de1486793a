"""SMART against its equations written out text by text; its running mean of the weights."""

from types import SimpleNamespace

import pytest
import torch
from tests.objective.bag import (
    TASKS,
    Bag,
    batch_of,
    descend,
    divergence_of,
    forward_of,
    loss_of,
    naive,
    prepared,
    same,
    words_of,
)
from tests.objective.test_adversarial import WordBag

from whet.errors import ConfigError
from whet.objective.plain import plain
from whet.objective.smart import SMART


def apart_of(kind, one, other):
    both = divergence_of(kind, one, other) + divergence_of(kind, other, one)
    return (one - other).square().mean() if kind == "regression" else both


@pytest.mark.parametrize("kind", TASKS)
def test_the_equations(kind):
    """The gradient goes into f(x) and f(x + r), not into r, nor into the running mean's model."""
    model, batch = Bag(TASKS[kind][1], scale=4.0), batch_of(kind)
    objective = prepared(
        SMART(smoothness=2.0, proximal=0.5, epsilon=0.1, step_size=0.07, steps=3, init=0.05), kind, model
    )
    before = Bag(TASKS[kind][1], scale=4.0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    torch.manual_seed(0)
    start = 0.05 * objective.drawn(forward_of(model, kind), batch, lambda empty: empty.normal_())
    total = 0.0
    for row, (words, old) in enumerate(zip(words_of(model, batch), words_of(before, batch), strict=True)):
        logits, by = model.of(words), start[row, : len(words)]
        for _ in range(3):
            by = by.detach().requires_grad_(True)
            rise = apart_of(kind, logits.detach(), model.of(words.detach() + by))
            by = (by.detach() + 0.07 * torch.autograd.grad(rise, by)[0].sign()).clamp(-0.1, 0.1)
        rough = apart_of(kind, logits, model.of(words + by))
        slow = apart_of(kind, logits, before.of(old).detach())
        total = total + loss_of(kind, logits, batch.labels[row]) + 2.0 * rough + 0.5 * slow
    same(descend(objective, model, batch, kind), naive(model, total), rtol=2e-3, atol=1e-5)


def test_without_weights_it_is_plain():
    model, batch = Bag(dropout=0.5), batch_of()
    expected = descend(plain, model, batch)
    same(descend(prepared(SMART(smoothness=0.0, proximal=0.0), model=model), model, batch), expected)
    same(
        descend(prepared(SMART(epsilon=0.0, init=0.0), model=model), model, batch), expected
    )  # the mean is the model


def test_the_running_mean_follows_and_is_given_back():
    model = Bag()
    objective = prepared(SMART(momentum=0.9), model=model)
    mean = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        objective.after(forward_of(model))
        mean = {name: 0.9 * mean[name] + 0.1 * p.detach() for name, p in model.named_parameters()}
    held = objective.tensors()
    assert held.keys() == mean.keys()
    for name, tensor in held.items():
        torch.testing.assert_close(tensor, mean[name])
    other = prepared(SMART(momentum=0.9), model=Bag())
    other.load_tensors({name: tensor.clone() for name, tensor in held.items()})
    assert all(torch.equal(tensor, held[name]) for name, tensor in other.tensors().items())
    assert prepared(SMART(proximal=0.0), model=model).tensors() == {}


def test_the_model_has_its_own_weights_again_even_after_an_error():
    model, batch = Bag(), batch_of()
    objective = prepared(SMART(), model=model)
    own = {name: p.data_ptr() for name, p in model.named_parameters()}
    model.head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        descend(objective, model, batch)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == own


def test_only_what_trains_has_a_mean():
    model = Bag()
    model.table.weight.requires_grad_(False)
    assert set(prepared(SMART(), model=model).tensors()) == {"head.weight", "head.bias"}


def test_parts_of_tensors_are_refused():
    model = Bag()
    model.head.weight.full_tensor = None
    objective = SMART()
    setting = SimpleNamespace(tokenizer=SimpleNamespace(all_special_ids=[1]), model=model)
    with pytest.raises(ConfigError, match=r"proximal=1.0: .*set it to 0, or engine.parallel=ddp"):
        objective.prepare(setting)


@pytest.mark.parametrize("settings", [
    {"smoothness": 9.0}, {"proximal": 90.0}, {"epsilon": 0.005}, {"step_size": 0.0003}, {"steps": 3}, {"init": 0.005},
    {"momentum": 0.0},
], ids=str)  # fmt: skip
def test_every_setting_changes_the_weights(settings):
    from tests.engine.test_step import CLASSES, NAMES, run, sgd, stepper, task

    ends = []
    for one in (SMART(epsilon=0.02, init=0.001), SMART(**{"epsilon": 0.02, "init": 0.001, **settings})):
        model = WordBag()
        torch.manual_seed(0)
        made = stepper(model, task().criterion(CLASSES, NAMES), CLASSES, duration="4st", optimizer=sgd(model),
                       objective=prepared(one, model=model))  # fmt: skip
        ends.append(run(made)[0])
    assert (ends[0] - ends[1]).abs().max() > 1e-9
