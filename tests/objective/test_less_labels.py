"""Losses on unlabelled texts: naive references, every option, a task that they make easy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax
from tests.objective.unlabelled import (
    CPU,
    LETTERS,
    OUTPUTS,
    Bag,
    drawn,
    made,
    parts,
    rotated,
    said,
    texts,
    upper,
)

from whet.data.batch import Collator
from whet.data.batching import Batching
from whet.data.tokens import encode
from whet.errors import ConfigError
from whet.objective.base import passes
from whet.objective.fixmatch import FixMatch
from whet.objective.mean_teacher import MeanTeacher, grown
from whet.objective.plain import plain
from whet.objective.pseudo_label import PseudoLabel
from whet.objective.uda import Uda, released
from whet.task.binary import Binary
from whet.task.multi_label import MultiLabel
from whet.task.regression import Regression
from whet.task.single_label import SingleLabel

CLASSES = [SingleLabel, Binary]


def sharp(kind, scale=20.0):
    """A bag whose judgements range from unsure to sure."""
    model = Bag(OUTPUTS[kind])
    with torch.no_grad():
        model.head.weight.mul_(scale)
    return model


def logs(values, kind):
    return (
        np.stack([np.log(expit(-values[:, 0])), np.log(expit(values[:, 0]))], 1)
        if kind is Binary
        else log_softmax(values, 1)
    )


def unlabelled(setting, forward, count):
    return [setting.left[row] for row in drawn(setting, forward, count)]


# ---------------------------------------------------------------- the losses written out


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_pseudo_label(tmp_path, kind, threshold):
    objective, model = PseudoLabel(threshold=threshold, weight=2.0, start=0.25, end=0.75), sharp(kind)
    forward, batch, setting = made(tmp_path, objective, kind, model)
    supervised, *rest = parts(objective, forward, batch)
    assert supervised.item() == pytest.approx(plain(forward, batch).item())
    found = logs(said(model, unlabelled(setting, forward, 24)), kind)
    each = np.where(np.exp(found.max(1)) >= threshold, -found.max(1), 0)
    assert 0 < (each > 0).sum() < 24 or threshold == 0.0
    # mean over the texts, times 2, half risen, on the scale of a sum over 8 rows
    assert sum(rest).item() == pytest.approx(2 * 0.5 * 8 * each.mean(), rel=1e-4)


@pytest.mark.parametrize("kind", CLASSES)
def test_fixmatch(tmp_path, kind):
    objective, model = FixMatch(threshold=0.8, weight=0.5, augmentation=upper, ratio=4), sharp(kind)
    forward, batch, setting = made(tmp_path, objective, kind, model)
    supervised, *rest = parts(objective, forward, batch)
    assert supervised.item() == pytest.approx(plain(forward, batch).item())
    some = unlabelled(setting, forward, 32)
    judged = logs(said(model, some), kind)
    strong = logs(said(model, [(text.upper(),) for (text,) in some]), kind)
    each = -strong[np.arange(32), judged.argmax(1)] * (np.exp(judged.max(1)) >= 0.8)
    assert 0 < (each > 0).sum() < 32
    assert sum(rest).item() == pytest.approx(0.5 * 8 * each.mean(), rel=1e-4)


@pytest.mark.parametrize("kind", CLASSES)
def test_uda(tmp_path, kind):
    objective, model = Uda(threshold=0.7, temperature=0.5, augmentation=upper), sharp(kind)
    forward, batch, setting = made(tmp_path, objective, kind, model)
    supervised, *rest = parts(objective, forward, batch)
    assert supervised.item() == pytest.approx(plain(forward, batch).item())
    some = unlabelled(setting, forward, 24)
    own = said(model, some)
    target = logs(own / 0.5, kind)
    seen = logs(said(model, [(text.upper(),) for (text,) in some]), kind)
    kept = np.exp(logs(own, kind).max(1)) > 0.7
    each = (np.exp(target) * (target - seen)).sum(1) * kept
    assert 0 < kept.sum() < 24
    assert sum(rest).item() == pytest.approx(8 * each.mean(), rel=1e-4)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("annealing", ["linear", "log", "exp"])
def test_uda_anneals_the_training_signal(tmp_path, kind, annealing):
    labels = np.array([0, 1, 0, 1, 1, 0, -1, 1])
    objective, model = Uda(annealing=annealing, weight=0.0), sharp(kind, 8.0)
    forward, batch, setting = made(tmp_path, objective, kind, model, labels=labels)
    forward.step = 20
    found = logs(said(model, setting.train.texts), kind)
    limit = released(annealing, 0.2, 2)
    there = labels >= 0
    right = found[np.arange(8), np.maximum(labels, 0)]
    kept = there & (np.exp(right) <= limit)
    assert 0 < kept.sum() < 7
    (loss,) = parts(objective, forward, batch)
    assert loss.item() == pytest.approx(-right[kept].mean() * 7, rel=1e-4)


def test_release_schedules():
    """Figure 2 of the paper: from 1 / K to 1; exp releases last, log first."""
    for how in ("linear", "log", "exp"):
        assert released(how, 1.0, 5) == pytest.approx(1.0, abs=0.006)
        assert released(how, 0.0, 5) == pytest.approx(0.2, abs=0.006)
    assert released("exp", 0.5, 5) < released("linear", 0.5, 5) < released("log", 0.5, 5)
    assert released("linear", 0.5, 5) == pytest.approx(0.6)
    assert released("exp", 0.5, 5) == pytest.approx(math.exp(-2.5) * 0.8 + 0.2)
    assert released("none", 0.0, 5) == 1.0


@pytest.mark.parametrize("kind", [SingleLabel, Binary, MultiLabel, Regression])
def test_mean_teacher(tmp_path, kind):
    labels = {
        MultiLabel: np.eye(2, dtype=np.float32)[np.arange(8) % 2],
        Regression: np.arange(8, dtype=np.float32),
    }
    objective, model = MeanTeacher(weight=3.0, end=1.0), sharp(kind, 3.0)
    forward, batch, setting = made(tmp_path, objective, kind, model, labels=labels.get(kind))
    other = Bag(OUTPUTS[kind], seed=9)
    objective._teacher.load(dict(other.named_parameters()))
    losses = parts(objective, forward, batch)
    act = {SingleLabel: lambda z: softmax(z, 1), Regression: lambda z: z}.get(kind, expit)

    def apart(some):
        return ((act(said(model, some)) - act(said(other, some))) ** 2).mean(1).mean()

    factor = 3 * math.exp(-5 * 0.25) * float(forward.criterion.weights(setting.train.labels).sum())
    wanted = plain(forward, batch).item() + factor * apart(setting.train.texts)
    assert losses[0].item() == pytest.approx(wanted, rel=1e-4)
    assert sum(losses[1:]).item() == pytest.approx(factor * apart(unlabelled(setting, forward, 24)), rel=1e-4)


def test_the_teacher_is_the_moving_average(tmp_path):
    objective, model = MeanTeacher(decay=0.6), Bag()
    forward, _, _ = made(tmp_path, objective, model=model)
    wanted = model.head.bias.detach().double().numpy()
    for step in range(6):
        with torch.no_grad():
            model.head.bias.add_(step + 1.0)
        forward.step = step
        objective.after(forward)
        kept = min(0.6, 1 - 1 / (step + 2))
        wanted = kept * wanted + (1 - kept) * model.head.bias.detach().double().numpy()
    np.testing.assert_allclose(objective._teacher.values["head.bias"], wanted, rtol=1e-6)
    fresh = MeanTeacher(decay=0.6)
    made(tmp_path, fresh)
    fresh.load_tensors(objective.tensors())
    assert all(
        torch.equal(fresh._teacher.values[name], value) for name, value in objective._teacher.values.items()
    )


def test_mean_teacher_rises():
    assert grown(0.0, 0.5) == pytest.approx(math.exp(-5))
    assert grown(0.25, 0.5) == pytest.approx(math.exp(-1.25))
    assert grown(0.5, 0.5) == grown(0.9, 0.5) == grown(0.0, 0.0) == 1.0


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    "objective",
    [
        Uda(augmentation=upper, threshold=0.0),
        FixMatch(augmentation=upper, threshold=0.0),
        MeanTeacher(end=0.0),
    ],
    ids=lambda item: type(item).__name__,
)
def test_targets_get_no_gradient_under_autocast_either(tmp_path, objective):
    """The gradient that autocast gives is near the one of fp32: targets are constants, weights are not."""
    found = []
    for kind in (torch.float32, torch.bfloat16):
        model = sharp(SingleLabel, 5.0)
        forward, batch, _ = made(tmp_path, objective, model=model)
        if isinstance(objective, MeanTeacher):
            objective._teacher.load(dict(Bag(seed=9).named_parameters()))
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            losses = parts(objective, forward, batch)
        sum(losses).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=0.1, atol=0.1 * float(found[0].abs().max()))
    assert found[0].abs().sum() > 0


# ---------------------------------------------------------------- options

OPTIONS = [
    (PseudoLabel(threshold=0.0, end=0.8), {"weight": 2.0, "ratio": 1, "threshold": 0.7, "start": 0.4, "end": 0.9}),
    (Uda(augmentation=rotated, threshold=0.5), {"weight": 2.0, "ratio": 1, "threshold": 0.9, "temperature": 1.0,
                                                "annealing": "exp", "augmentation": upper}),
    (FixMatch(augmentation=rotated, threshold=0.5), {"weight": 2.0, "ratio": 1, "threshold": 0.9, "weak": upper,
                                                     "augmentation": upper}),
    (MeanTeacher(), {"weight": 2.0, "ratio": 1, "decay": 0.1, "end": 1.0, "augmentation": rotated}),
]  # fmt: skip


@pytest.mark.parametrize(("base", "changes"), OPTIONS, ids=lambda item: type(item).__name__)
def test_every_option_changes_the_loss(tmp_path, base, changes):
    def losses(objective):
        forward, batch, _ = made(tmp_path, objective, model=sharp(SingleLabel, 8.0), augmentation=rotated)
        with torch.no_grad():
            forward.model.head.bias.add_(0.1)
        objective.after(forward)
        return [loss.item() for loss in parts(objective, forward, batch)]

    known = losses(base)
    assert losses(replace(base)) == known
    for name, value in changes.items():
        assert losses(replace(base, **{name: value})) != known, name


def test_the_runs_augmentation_is_taken_where_none_is_given(tmp_path):
    found = []
    for objective in (Uda(threshold=0.0), Uda(threshold=0.0, augmentation=upper)):
        forward, batch, _ = made(tmp_path, objective, augmentation=upper)
        found.append([loss.item() for loss in parts(objective, forward, batch)])
    assert found[0] == found[1]


def test_an_end_before_the_start_is_refused():
    with pytest.raises(ConfigError, match=r"end=0.2: lies before start=0.5"):
        PseudoLabel(start=0.5, end=0.2)


# ---------------------------------------------------------------- what it is for


def spoilt(given, labels, rng):
    """Drops every letter with probability 0.3, but one."""
    kept = [("".join(c for c in text if rng.random() > 0.3) or text[0],) for (text,) in given]
    return kept, labels


def accuracy(tmp_path, objective):
    """On fresh texts, after training on eight labelled ones that know three letters of eight a class."""
    model = Bag(dropout=0.1, seed=1)
    few = texts(8, 0, tuple(letters[:3] for letters in LETTERS))
    labels = np.arange(8) % 2
    pool = texts(300, 2)
    holder = PseudoLabel() if objective is plain else objective
    forward, _, setting = made(tmp_path, holder, model=model, left=pool, augmentation=spoilt)
    forward.total = 40
    collator = Collator.of(encode(few, setting.tokenizer, 16), labels, setting.tokenizer, Batching())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    batch = collator(np.arange(8), CPU)
    model.train()
    for forward.step in range(40):
        optimizer.zero_grad()
        for loss in passes(objective(forward, batch)):
            (loss / 8).backward()
        optimizer.step()
        if objective is not plain:
            objective.after(forward)
    model.eval()
    fresh = texts(400, 5)
    return float((said(model, fresh).argmax(1) == np.arange(400) % 2).mean())


def test_unlabelled_texts_help(tmp_path):
    """Letters that no label explains stand beside those that one does."""
    base = accuracy(tmp_path, plain)
    objectives = [
        PseudoLabel(threshold=0.6, ratio=4),
        Uda(threshold=0.5, ratio=4),
        FixMatch(threshold=0.8, ratio=4),
        MeanTeacher(weight=10.0, decay=0.9, ratio=4, augmentation=spoilt),
    ]
    found = {type(objective).__name__: accuracy(tmp_path, objective) for objective in objectives}
    assert base < 0.9
    assert found.pop("MeanTeacher") > base + 0.01
    assert all(value > base + 0.06 for value in found.values()), (base, found)
