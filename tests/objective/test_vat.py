"""VAT against the exact Hessian of the divergence, and against its loss written out text by text."""

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
from tests.objective.test_adversarial import trained

from whet.objective.perturbation import direction
from whet.objective.plain import plain
from whet.objective.vat import VAT


@pytest.fixture
def met(monkeypatch):
    """Perturbations of the passes that were moved."""
    found, inner = [], VAT.moved

    def moved(self, forward, batch, by):
        found.append(by.detach().clone())
        return inner(self, forward, batch, by)

    monkeypatch.setattr(VAT, "moved", moved)
    return found


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_power_iteration_finds_the_eigenvector_of_the_hessian(kind, met):
    model, batch = Bag(TASKS[kind][1], scale=3.0), batch_of(kind)
    descend(prepared(VAT(xi=0.03, iterations=120, epsilon=0.7), kind), model, batch, kind)
    assert len(met) == 121
    for row, words in enumerate(words_of(model, batch)):
        words = words.detach()
        given = model.of(words).detach()

        def apart(flat, words=words, given=given):
            return divergence_of(kind, given, model.of(words + flat.view_as(words)))

        hessian = torch.autograd.functional.hessian(apart, torch.zeros(words.numel(), dtype=torch.double))
        values, vectors = torch.linalg.eigh(hessian)
        assert values[-2] < 0.95 * values[-1]
        found = met[-1][row, : len(words)].flatten()
        assert found.norm().item() == pytest.approx(0.7, rel=1e-4)
        assert abs(found @ vectors[:, -1]).item() == pytest.approx(0.7, rel=1e-3)


@pytest.mark.parametrize("kind", TASKS)
def test_the_loss(kind):
    """With the very direction that the power iteration starts from; p(x) is given, no gradient goes there."""
    model, batch = Bag(TASKS[kind][1], scale=4.0), batch_of(kind)
    objective = prepared(VAT(alpha=2.0, epsilon=0.9, xi=0.5, iterations=2), kind)
    torch.manual_seed(0)
    start = objective.drawn(forward_of(model, kind), batch, lambda empty: empty.normal_())
    total = 0.0
    for row, words in enumerate(words_of(model, batch)):
        given, along = model.of(words).detach(), start[row, : len(words)]
        for _ in range(2):
            by = (0.5 * along / along.norm()).requires_grad_(True)
            (along,) = torch.autograd.grad(divergence_of(kind, given, model.of(words.detach() + by)), by)
        worst = 0.9 * along / along.norm()
        total = total + loss_of(kind, model.of(words), batch.labels[row])
        total = total + 2.0 * divergence_of(kind, given, model.of(words + worst))
    found = descend(objective, model, batch, kind)
    same(found, naive(model, total), rtol=2e-3, atol=1e-5)  # of a fp32 difference of outputs


def test_rows_without_a_label_take_part():
    model, batch = Bag(scale=4.0), batch_of(labels=torch.tensor([0, -1, 1, -1]))
    one, two = (descend(prepared(VAT(alpha=alpha)), model, batch)[0] for alpha in (1.0, 2.0))
    half = batch_of(lengths=(3, 7, 1, 4), labels=torch.full((4,), -1))
    alone = descend(prepared(VAT(alpha=1.0)), model, half)[0]
    assert two - one == pytest.approx(alone, rel=1e-4) and alone > 0


def test_without_a_weight_or_a_radius_it_is_plain():
    model, batch = Bag(), batch_of()
    expected = descend(plain, model, batch)
    same(descend(prepared(VAT(alpha=0.0)), model, batch), expected)
    same(descend(prepared(VAT(epsilon=0.0)), model, batch), expected)


def test_all_passes_drop_the_same_elements():
    """Else the divergence without a perturbation wouldn't be none."""
    model, batch = Bag(dropout=0.5), batch_of()
    one, other = descend(prepared(VAT(epsilon=0.0)), model, batch), descend(plain, model, batch)
    same(one, other)


@pytest.mark.parametrize(
    "settings", [{"alpha": 5.0}, {"epsilon": 3.0}, {"xi": 2.0}, {"iterations": 3}], ids=str
)
def test_every_setting_changes_the_weights(settings):
    ends = []
    for one in (VAT(), VAT(**settings)):
        torch.manual_seed(0)
        ends.append(trained(prepared(one), duration="3st")[0])
    assert (ends[0] - ends[1]).abs().max() > 1e-8


def test_a_flat_output_gives_no_direction():
    """A model that says the same of everything has no gradient there: nothing turns to NaN."""
    model, batch = Bag(scale=0.0), batch_of()
    value, gradients = descend(prepared(VAT()), model, batch)
    assert value > 0 and all(torch.isfinite(g).all() for g in gradients.values())
    assert (direction(torch.zeros(1, 2, 3), "l2") == 0).all()
