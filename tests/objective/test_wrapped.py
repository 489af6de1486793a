"""Mixup and cutoff around other objectives, against what they are when written out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.engine.test_step import CLASSES, NAMES, run, sgd, stepper, task
from tests.model.architectures import HEAD, tiny
from tests.model.architectures import batch_of as texts_of
from tests.objective.bag import (
    TASKS,
    Bag,
    batch_of,
    descend,
    loss_of,
    naive,
    prepared,
    same,
    task_of,
    words_of,
)
from tests.objective.test_adversarial import WordBag

from whet.errors import ConfigError
from whet.model.tiny import byte_tokenizer
from whet.objective.base import Forward, Objective
from whet.objective.cut import Cutoff
from whet.objective.fgm import FGM
from whet.objective.focal import Focal
from whet.objective.mixed import Mixup
from whet.objective.plain import plain
from whet.objective.rdrop import RDrop
from whet.objective.sam import SAM
from whet.objective.smart import SMART
from whet.objective.wrapped import Wrapped
from whet.paths import Paths


def test_a_wrapped_objective_is_all_that_it_was():
    model = Bag()
    inner = prepared(SMART(), model=model)
    outer = Wrapped(inner)
    assert set(outer.tensors()) == set(dict(model.named_parameters()))
    names = [name for name in vars(Objective) if not name.startswith("_")]
    assert set(names) <= set(vars(Wrapped)), "every part of the protocol is handed on"
    assert (Wrapped(SAM()).rounds, Wrapped(FGM()).moves_words, Wrapped(Focal()).reads_labels) == (
        2,
        True,
        True,
    )
    batch = batch_of()
    same(descend(Wrapped(prepared(FGM())), model, batch), descend(prepared(FGM()), model, batch))


# ---------------------------------------------------------------- mixup


@pytest.mark.parametrize("kind", TASKS)
def test_mixup_of_words(kind):
    """Of this model the mean over the union of both texts' places."""
    model, batch = Bag(TASKS[kind][1]), batch_of(kind)
    torch.manual_seed(1)
    share, order = float(torch.distributions.Beta(0.7, 0.7).sample()), torch.randperm(4)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    assert 0.01 < share < 0.99 and order.tolist() != [0, 1, 2, 3]
    total = 0.0
    for row, other in enumerate(order):
        words = share * model.table(ids[row]) + (1 - share) * model.table(ids[other])
        logits = model.of(words[mask[row] | mask[other]])
        total = total + share * loss_of(kind, logits, batch.labels[row])
        total = total + (1 - share) * loss_of(kind, logits, batch.labels[other])
    outer = Mixup(plain, 0.7)
    outer.check(task_of(kind))
    same(descend(outer, model, batch, kind, seed=1), naive(model, total))
    assert descend(Mixup(plain, 20.0), model, batch, kind, seed=1)[0] != pytest.approx(total.item())


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("layer", [1, 2])
def test_mixup_of_states(architecture, layer, cache):
    """Behind the last block the head sees mixed states; behind an earlier one the later blocks do."""
    loaded = tiny(architecture, dropout=0.0).load(HEAD, Paths(cache=str(cache)))
    batch = texts_of(loaded.tokenizer)
    made = task_of().criterion(np.array([0, 1, 2]), ("a", "b", "c"))
    torch.manual_seed(0)
    share, order = float(torch.distributions.Beta(0.7, 0.7).sample()), torch.randperm(6)
    seen = {}
    blocks = loaded.model.bert.encoder.layer if architecture == "bert" else loaded.model.transformer.h
    take = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731
    blocks[layer - 1].register_forward_hook(lambda _, __, output: seen.update(own=take(output)))
    mixer = Mixup(lambda forward, batch: forward(batch).sum(), 0.7, layer)
    last = loaded.model.bert.pooler if architecture == "bert" else loaded.model.transformer.ln_f
    entering = (blocks[1] if layer == 1 else last).register_forward_pre_hook
    entering(
        lambda _, arguments, named: seen.update(mixed=(*arguments, *named.values())[0]), with_kwargs=True
    )
    torch.manual_seed(0)
    mixer(Forward(loaded.model, made), batch)
    torch.testing.assert_close(seen["mixed"], share * seen["own"] + (1 - share) * seen["own"][order])
    assert mixer.reads_states and not mixer.moves_words
    assert not blocks[layer - 1]._forward_hooks or len(blocks[layer - 1]._forward_hooks) == 1


def test_mixup_goes_around_objectives_of_many_kinds():
    """Perturbations on top of mixed words; the same pairs in both gradients of SAM."""
    model, batch = Bag(dropout=0.3), batch_of()
    for inner in (FGM(), RDrop(), SMART(proximal=0.0)):
        inner.check(task_of())
        outer = Mixup(inner, 0.7)
        value, gradients = descend(outer, model, batch)
        assert np.isfinite(value) and value != pytest.approx(descend(inner, model, batch)[0])
        assert all(torch.isfinite(g).all() for g in gradients.values())
    pairs, inner = [], Mixup._pairing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Mixup, "_pairing", lambda self, f, b: pairs.append((f.round, inner(self, f, b))) or pairs[-1][1]
        )
        model = WordBag()
        run(stepper(model, task().criterion(CLASSES, NAMES), CLASSES, objective=Mixup(SAM(), 0.7), duration="3st",
                    optimizer=sgd(model)))  # fmt: skip
    firsts = [pair for turn, pair in pairs if not turn]
    seconds = [pair for turn, pair in pairs if turn]
    assert len(firsts) == len(seconds) == 3 and len({share for share, _ in firsts}) == 3
    assert all(
        one[0] == two[0] and torch.equal(one[1], two[1]) for one, two in zip(firsts, seconds, strict=True)
    )


def test_mixup_is_refused_where_each_label_is_looked_at():
    with pytest.raises(ConfigError, match="Focal: looks at each text's own label"):
        Mixup(Focal(), 0.4).check(task_of())


# ---------------------------------------------------------------- cutoff


def cutting(inner=plain, kind="single_label", **settings):
    outer = Cutoff(inner, **{"part": "token", "rate": 0.3, "alpha": 1.0, "beta": 1.0, **settings})
    outer.check(task_of(kind))
    outer.prepare(SimpleNamespace(tokenizer=byte_tokenizer(), model=None))
    return outer


@pytest.mark.parametrize("part", ["token", "feature", "span"])
@pytest.mark.parametrize("left", [False, True])
def test_what_is_erased(part, left):
    lengths = (12, 3, 7, 22)
    batch = batch_of(lengths=lengths, special=True, left=left, labels=torch.zeros(4, dtype=torch.long))
    words = batch.inputs["attention_mask"].bool() & (batch.inputs["input_ids"] >= 5)
    for seed in range(20):
        torch.manual_seed(seed)
        gone = cutting(part=part).kept(Forward(Bag(), None), batch) == 0
        assert not gone[~words].any()
        for row, length in enumerate(lengths):
            inside = gone[row][words[row]]
            if part == "feature":
                assert (inside == inside[0]).all() and inside[0].sum() == round(0.3 * 5)
                continue
            places = inside.squeeze(1).nonzero().flatten().tolist()
            assert len(places) == max(1, round(0.3 * (length - 2)))
            if part == "span":
                assert places == list(range(places[0], places[0] + len(places)))


@pytest.mark.parametrize("kind", TASKS)
def test_cutoff_by_the_book(kind):
    from tests.objective.bag import divergence_of

    model, batch = Bag(TASKS[kind][1], scale=4.0), batch_of(kind)
    outer = cutting(kind=kind, alpha=0.5, beta=2.0)
    torch.manual_seed(0)
    kept = outer.kept(Forward(model, None), batch)
    total = 0.0
    for row, words in enumerate(words_of(model, batch)):
        one, other = model.of(words), model.of(words * kept[row, : len(words)])
        if kind == "regression":
            apart = (one - other).square().mean() / 8
        else:
            squash = (lambda z: z.softmax(0)) if kind == "single_label" else torch.sigmoid
            middle = (squash(one) + squash(other)) / 2
            middle = middle.log() if kind == "single_label" else middle.logit()
            apart = (divergence_of(kind, one, middle) + divergence_of(kind, other, middle)) / 2
        label = batch.labels[row]
        total = total + loss_of(kind, one, label) + 0.5 * loss_of(kind, other, label) + 2.0 * apart
    same(descend(outer, model, batch, kind), naive(model, total), rtol=1e-3, atol=1e-5)


def test_every_setting_of_cutoff_counts():
    model, batch = Bag(scale=4.0), batch_of()
    base = descend(cutting(), model, batch)[0]
    for other in (
        {"part": "feature"},
        {"part": "span", "rate": 0.6},
        {"rate": 0.9},
        {"alpha": 2.0},
        {"beta": 9.0},
    ):
        assert descend(cutting(**other), model, batch)[0] != pytest.approx(base, rel=1e-5)
    same(descend(cutting(alpha=0.0, beta=0.0), model, batch), descend(plain, model, batch))
    added = descend(cutting(FGM(), beta=0.0), model, batch)[0] - descend(cutting(beta=0.0), model, batch)[0]
    assert added == pytest.approx(
        descend(prepared(FGM()), model, batch)[0] - descend(plain, model, batch)[0], rel=1e-4
    )
