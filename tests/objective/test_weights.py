"""SAM, ASAM and AWP against their equations; weights come back to the bit, whatever happens."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.engine.test_step import CLASSES, NAMES, sgd, stepper, task
from tests.engine.test_step import run as run_steps
from tests.objective.test_adversarial import WordBag, trained

from whet.engine.precision import Amp
from whet.model.kernels import RowEmbedding
from whet.objective.awp import AWP
from whet.objective.plain import plain
from whet.objective.sam import SAM
from whet.objective.weights import Detour

ALL = {"sam": SAM(rho=0.3), "asam": SAM(rho=1.5, adaptive=True), "awp": AWP(gamma=0.1)}


def sam(weights, gradients):
    whole = torch.cat([g.flatten() for g in gradients])
    return [w + 0.3 * g / whole.norm() for w, g in zip(weights, gradients, strict=True)]


def asam(weights, gradients):
    scales = [w.abs() + 0.01 for w in weights]
    whole = torch.cat([(t * g).flatten() for t, g in zip(scales, gradients, strict=True)])
    return [w + 1.5 * t**2 * g / whole.norm() for w, t, g in zip(weights, scales, gradients, strict=True)]


def awp(weights, gradients):
    return [
        w + 0.1 * w.norm() * g / g.norm() if w.ndim > 1 else w
        for w, g in zip(weights, gradients, strict=True)
    ]


BOOK = {"sam": sam, "asam": asam, "awp": awp}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_by_the_book(name, accumulate):
    """Gradient descent with the gradient at the moved weights, on whole windows."""
    weights, losses, made = trained(ALL[name], accumulate, clip=None, schedule=lambda *_: 1.0)
    other = WordBag()
    for update, told in zip(made.plan, losses, strict=True):
        batch = made.collator(np.concatenate(update.micro_batches), torch.device("cpu"))
        own = [p.detach().clone() for p in other.parameters()]

        def gradients(batch=batch):
            loss = F.cross_entropy(other(**batch.inputs).logits, batch.labels)
            return loss.item(), torch.autograd.grad(loss, list(other.parameters()))

        loss, first = gradients()
        assert told == pytest.approx(loss, abs=1e-5)
        with torch.no_grad():
            for p, moved in zip(other.parameters(), BOOK[name](own, first), strict=True):
                p.copy_(moved)
        _, second = gradients()
        with torch.no_grad():
            for p, w, g in zip(other.parameters(), own, second, strict=True):
                p.copy_(w - 0.2 * g)
    theirs = torch.cat([p.detach().flatten() for p in other.parameters()])
    torch.testing.assert_close(weights, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "objective", [SAM(rho=0.0), SAM(rho=0.0, adaptive=True), AWP(gamma=0.0), AWP(start=1.0)]
)
def test_without_a_distance_it_is_plain(objective):
    """To the bit: going nowhere and coming back rounds nothing."""
    assert torch.equal(trained(objective)[0], trained(plain)[0])


@pytest.mark.parametrize(("one", "other"), [
    (SAM(), SAM(rho=0.3)), (SAM(rho=0.3), SAM(rho=0.3, adaptive=True)),
    (SAM(rho=1.0, adaptive=True), SAM(rho=1.0, adaptive=True, eta=1.0)),
    (AWP(gamma=0.1), AWP(gamma=0.01)), (AWP(gamma=0.1), AWP(gamma=0.1, start=0.5)),
])  # fmt: skip
def test_every_setting_changes_the_weights(one, other):
    assert (trained(one)[0] - trained(other)[0]).abs().max() > 1e-6


@pytest.mark.parametrize(("start", "plainly"), [(0.5, 4), (1.0, 8), (0.0, 0)])
def test_awp_starts_when_it_is_to(start, plainly, monkeypatch):
    """Until then its updates are plain's, and cost one pass."""
    passes, inner = [], AWP.__call__

    def counted(self, forward, batch):
        passes.append(forward.round)
        return inner(self, forward, batch)

    monkeypatch.setattr(AWP, "__call__", counted)
    trained(AWP(gamma=0.1, start=start))
    assert passes.count(0) == 8 and passes.count(1) == 8 - plainly


@pytest.mark.parametrize("name", ALL)
def test_an_error_at_the_moved_weights_leaves_them_where_they_were(name):
    objective, model = ALL[name], WordBag()
    made = stepper(
        model, task().criterion(CLASSES, NAMES), CLASSES, optimizer=sgd(model), objective=objective
    )
    before = [p.detach().clone() for p in model.parameters()]
    moved, inner = [], type(objective).__call__

    def broken(self, forward, batch):
        if forward.round:
            moved.append(any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)))
            raise ZeroDivisionError
        return inner(self, forward, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(type(objective), "__call__", broken)
        made.update(next(iter(made.plan)))
    assert moved == [True]
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bit_numbers(name, precision):
    """The loss scale of fp16 moves the weights no farther."""
    amp, one = Amp(torch.device("cpu"), precision), AWP(gamma=0.02) if name == "awp" else ALL[name]
    (weights, losses, _), (exact, *_) = trained(one, amp=amp), trained(one)
    assert np.isfinite(losses).all()
    assert (weights - exact).abs().max() < 0.03


def test_of_a_large_table_only_rows_that_were_read_move_and_come_back():
    table = RowEmbedding(1000, 4)
    before = table.weight.detach().clone()
    table(torch.tensor([[3, 999, 3]])).square().sum().backward()
    detour = Detour()
    detour.move(table.weight, lambda weights, gradient: weights + gradient.sign())
    changed = (table.weight != before).any(1).nonzero().flatten().tolist()
    assert changed == [3, 999] and detour._left[0][2].shape == (2, 4)
    detour.back()
    assert torch.equal(table.weight, before)


def test_nothing_to_climb_is_no_error():
    """A window without a label has no gradient; SAM and AWP stay where they are."""
    for objective in ALL.values():
        model = WordBag()
        labels = np.full(len(CLASSES), -1)
        made = stepper(
            model,
            task().criterion(CLASSES, NAMES),
            labels,
            optimizer=sgd(model),
            objective=objective,
            duration="2st",
        )
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert torch.equal(run_steps(made)[0], before)
