"""FGM, FGSM, PGD, FreeLB, FREE and noise against their updates written out text by text."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.engine.test_step import CLASSES, sgd, stepper
from tests.engine.test_step import NAMES as STEP_NAMES
from tests.engine.test_step import Bag as StepBag
from tests.engine.test_step import run as run_steps
from tests.engine.test_step import task as step_task
from tests.objective.bag import (
    TASKS,
    WIDTH,
    Bag,
    batch_of,
    descend,
    forward_of,
    loss_of,
    naive,
    prepared,
    same,
    words_of,
)

from whet.errors import ConfigError
from whet.objective.fgm import FGM
from whet.objective.fgsm import FGSM
from whet.objective.free import Free
from whet.objective.freelb import FreeLB
from whet.objective.noise import Noise
from whet.objective.pgd import PGD
from whet.objective.plain import plain

KINDS = list(TASKS)


def one_text(kind, batch, row):
    return lambda logits: loss_of(kind, logits, batch.labels[row])


def climbed(model, words, loss, steps, length, radius, norm="l2"):
    """Perturbation [length, WIDTH] after so many projected steps, by the book."""
    by = torch.zeros_like(words)
    for _ in range(steps):
        by = by.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(model.of(words.detach() + by)), by)
        along = gradient / gradient.norm() if norm == "l2" else gradient.sign()
        by = by.detach() + length * along
        by = by * min(1.0, radius / by.norm().item()) if norm == "l2" else by.clamp(-radius, radius)
    return by


@pytest.mark.parametrize("kind", KINDS)
def test_fgm(kind):
    model, batch = Bag(TASKS[kind][1]), batch_of(kind)
    total = 0.0
    for row, words in enumerate(words_of(model, batch)):
        loss = one_text(kind, batch, row)
        by = climbed(model, words, loss, 1, 0.8, math.inf)
        total = total + loss(model.of(words)) + 0.5 * loss(model.of(words + by))
    objective = prepared(FGM(epsilon=0.8, weight=0.5), kind)
    same(descend(objective, model, batch, kind), naive(model, total))


def test_fgm_in_closed_form():
    """Of a linear model every token has the gradient W'(p - y) / n: the mean moves by epsilon / sqrt(n)."""
    model, batch = Bag(), batch_of()
    objective, found = prepared(FGM(epsilon=1.5)), 0.0
    with torch.no_grad():
        for words, label in zip(words_of(model, batch), batch.labels, strict=True):
            mean = words.mean(0)
            gradient = (model.head(mean).softmax(0) - torch.eye(3)[label]) @ model.head.weight
            moved = mean + 1.5 * gradient / gradient.norm() / math.sqrt(len(words))
            found += sum(loss_of("single_label", model.head(at), label).item() for at in (mean, moved))
    assert descend(objective, model, batch)[0] == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_fgsm(alpha):
    model, batch = Bag(), batch_of()
    total = 0.0
    for row, words in enumerate(words_of(model, batch)):
        loss = one_text("single_label", batch, row)
        by = climbed(model, words, loss, 1, 0.05, math.inf, "linf")
        total = total + alpha * loss(model.of(words)) + (1 - alpha) * loss(model.of(words + by))
    same(descend(prepared(FGSM(epsilon=0.05, alpha=alpha)), model, batch), naive(model, total))


@pytest.mark.parametrize(("norm", "length", "radius"), [("l2", 0.4, 0.9), ("linf", 0.1, 0.25)])
@pytest.mark.parametrize("steps", [1, 4])
def test_pgd(norm, length, radius, steps):
    """Four steps leave the ball and are brought back; those between give the parameters nothing."""
    model, batch = Bag(), batch_of()
    total = 0.0
    for row, words in enumerate(words_of(model, batch)):
        loss = one_text("single_label", batch, row)
        by = climbed(model, words, loss, steps, length, radius, norm)
        order = 2 if norm == "l2" else torch.inf
        assert by.norm(p=order).item() == pytest.approx(min(steps * length, radius), rel=1e-6)
        total = total + loss(model.of(words)) + 0.7 * loss(model.of(words + by))
    objective = PGD(steps=steps, alpha=length, epsilon=radius, norm=norm, weight=0.7)
    same(descend(prepared(objective), model, batch), naive(model, total))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_freelb(norm):
    """Algorithm 1, with the very numbers that it starts from."""
    model, batch = Bag(), batch_of()
    objective = prepared(FreeLB(steps=3, step_size=0.4, epsilon=0.9, init=0.5, norm=norm))
    torch.manual_seed(0)
    start = objective.scattered(forward_of(model), batch, 0.5)
    total = 0.0
    for row, words in enumerate(words_of(model, batch)):
        loss, by = one_text("single_label", batch, row), start[row, : len(words)]
        assert by.abs().max() <= 0.5 / math.sqrt(words.numel())
        for step in range(3):
            by = by.detach().requires_grad_(True)
            total = total + loss(model.of(words + by.detach())) / 3
            (gradient,) = torch.autograd.grad(loss(model.of(words.detach() + by)), by)
            along = gradient / gradient.norm() if norm == "l2" else gradient.sign()
            by = by.detach() + 0.4 * along
            by = by * min(1.0, 0.9 / by.norm().item()) if norm == "l2" else by.clamp(-0.9, 0.9)
            assert step < 2 or by.norm() > 0.8
    same(descend(objective, model, batch), naive(model, total))


@pytest.mark.parametrize("objective", [FreeLB(steps=1, epsilon=0.0), FreeLB(steps=3, epsilon=0.0), Free(replays=1),
                                       PGD(weight=0.0), FGM(weight=0.0), FGSM(alpha=1.0), Noise(alpha=0.0)])  # fmt: skip
def test_without_a_radius_or_weight_it_is_plain(objective):
    model, batch = Bag(), batch_of()
    same(descend(prepared(objective), model, batch), descend(plain, model, batch))


def test_freelb_drops_the_same_elements_in_every_pass():
    """With no radius all passes are one and the same: only the dropout can tell them apart."""
    batch, model = batch_of(), Bag(dropout=0.5)
    model.drop.register_forward_hook(lambda _, __, output: kept.append(output == 0))
    for same_dropout in (True, False):
        kept = []
        descend(prepared(FreeLB(steps=3, epsilon=0.0, same_dropout=same_dropout)), model, batch)
        assert len(kept) == 3 and all(torch.equal(kept[0], other) == same_dropout for other in kept[1:])


def test_noise_has_the_published_size():
    model, batch = Bag(), batch_of(lengths=(400, 100), labels=torch.tensor([0, 1]))
    objective, seen = prepared(Noise(alpha=5.0)), []
    objective.loss = lambda forward, batch, by: seen.append(by) or by.sum()
    objective(forward_of(model), batch)
    for by, length in zip(seen[0], (400, 100), strict=True):
        bound, moved = 5 / math.sqrt(length * WIDTH), by[:length]
        assert moved.abs().max() <= bound and moved.abs().max() > 0.98 * bound
        assert moved.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert abs(moved.mean().item()) < 0.1 * bound


# ---------------------------------------------------------------- FREE: several steps of the optimizer


def test_free_by_the_book():
    """Algorithm 1 with plain gradient descent: step and perturbation from one gradient, m times a batch."""
    objective = prepared(Free(replays=3, step_size=0.5, epsilon=0.8))
    model, other = WordBag(), WordBag()
    made = stepper(model, step_task().criterion(CLASSES, STEP_NAMES), CLASSES, objective=objective,
                   optimizer=sgd(model, lr=0.2), clip=None, schedule=lambda *_: 1.0)  # fmt: skip
    updates = list(made.plan)[:3]
    losses = [made.update(update).loss for update in updates]
    for update, told in zip(updates, losses, strict=True):
        rows = np.concatenate(update.micro_batches)
        batch = made.collator(rows, torch.device("cpu"))
        real = batch.inputs["attention_mask"].bool()
        by = [torch.zeros(int(n), 8) for n in real.sum(1)]
        for replay in range(3):
            by = [one.detach().requires_grad_(True) for one in by]
            means = [(other.table(ids[there]) + one).mean(0)
                     for ids, there, one in zip(batch.inputs["input_ids"], real, by, strict=True)]  # fmt: skip
            loss = torch.nn.functional.cross_entropy(other.head(torch.stack(means)), batch.labels)
            other.zero_grad()
            loss.backward()
            if not replay:
                assert told == pytest.approx(loss.item(), abs=1e-5)
            with torch.no_grad():
                for p in other.parameters():
                    p -= 0.2 * p.grad
                moved = [one + 0.5 * one.grad / one.grad.norm() for one in by]
                by = [one * min(1.0, 0.8 / one.norm().item()) for one in moved]
    for one, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, theirs, rtol=1e-4, atol=1e-5)


class WordBag(StepBag):
    """A bag that shows its table."""

    def get_input_embeddings(self):
        return self.table


def trained(objective, accumulate=1, **settings):
    """Weights and losses after two epochs of gradient descent."""
    from whet.data.batching import Batching

    model = WordBag()
    batching = Batching(size=8 // accumulate, tokens=None)
    made = stepper(model, step_task().criterion(CLASSES, STEP_NAMES), CLASSES, batching, accumulate,
                   objective=objective, optimizer=sgd(model, lr=0.2), **settings)  # fmt: skip
    weights, results = run_steps(made)
    return weights, [r.loss for r in results], made


@pytest.mark.parametrize("objective", [
    FGM(), FGSM(), PGD(), FreeLB(init=0.0, epsilon=2.0, step_size=0.5), Free(),
])  # fmt: skip
def test_accumulation_is_the_big_batch(objective):
    """Every perturbation depends on its own text alone."""
    big, small = (trained(prepared(replace(objective)), k) for k in (1, 4))
    torch.testing.assert_close(big[0], small[0], rtol=1e-4, atol=1e-6)
    assert big[1] == pytest.approx(small[1], rel=1e-4)


def test_free_keeps_perturbations_between_replays_and_not_between_updates():
    objective = prepared(Free(replays=3, step_size=0.5))
    trained(objective, 4, duration="3st")
    assert {key[0] for key in objective._kept} == {2, 3}
    assert (
        sum(len(np.frombuffer(rows, dtype=np.int64)) for number, rows in objective._kept if number == 3) == 8
    )


@pytest.mark.parametrize("changed", [
    (FGM(), {"epsilon": 0.2}), (FGM(), {"weight": 2.0}),
    (FGSM(), {"epsilon": 0.2}), (FGSM(), {"alpha": 0.9}),
    (PGD(), {"steps": 1}), (PGD(), {"alpha": 0.01}), (PGD(), {"epsilon": 0.3}), (PGD(), {"norm": "linf"}),
    (PGD(), {"weight": 2.0}),
    (FreeLB(), {"steps": 2}), (FreeLB(), {"step_size": 0.4}), (FreeLB(), {"init": 0.6}),
    (FreeLB(), {"epsilon": 0.05}), (FreeLB(), {"norm": "linf"}),
    (Free(), {"replays": 2}), (Free(), {"step_size": 0.1}), (Free(), {"epsilon": 0.05}), (Free(), {"init": 2.0}),
    (Free(), {"norm": "linf"}),
    (Noise(), {"alpha": 1.0}),
], ids=str)  # fmt: skip
def test_every_setting_changes_the_weights(changed):
    """`special_tokens` and `same_dropout` have tests of their own."""
    objective, settings = changed
    ends = []
    for one in (objective, replace(objective, **settings)):
        torch.manual_seed(0)
        ends.append(trained(prepared(replace(one)), duration="3st")[0])
    assert (ends[0] - ends[1]).abs().max() > 1e-6


@pytest.mark.parametrize("objective", [FGM(), FGSM(), PGD(), FreeLB(), Free(), Noise()])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bit_numbers(objective, precision):
    """The loss falls; perturbations stay fp32 and get gradients that aren't flushed away."""
    from whet.engine.precision import Amp

    _, losses, made = trained(
        prepared(replace(objective)),
        2,
        amp=Amp(torch.device("cpu"), precision),
        duration="10ep",
        schedule=lambda *_: 1.0,
    )
    assert np.isfinite(losses).all() and np.mean(losses[-4:]) < np.mean(losses[:4])
    assert made.scaler.is_enabled() == (precision == "fp16")


def test_fgsm_needs_the_plain_pass():
    from whet.config import build

    with pytest.raises(ConfigError, match="objective.alpha=0"):
        build({"alpha": 0.0}, FGSM, "objective")
