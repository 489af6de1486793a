"""Norms, directions and projections against torch on one text at a time; padding and special tokens."""

from dataclasses import replace

import pytest
import torch
from tests.model import architectures
from tests.model.architectures import HEAD, tiny
from tests.objective.bag import WIDTH, Bag, batch_of, descend, forward_of, prepared, same

from whet.objective.base import Forward, UnreachedError
from whet.objective.fgm import FGM
from whet.objective.fgsm import FGSM
from whet.objective.free import Free
from whet.objective.freelb import FreeLB
from whet.objective.noise import Noise
from whet.objective.perturbation import Rewind, direction, project, sizes
from whet.objective.pgd import PGD
from whet.objective.smart import SMART
from whet.objective.vat import VAT
from whet.paths import Paths

ALL = {
    "fgm": FGM(), "fgsm": FGSM(epsilon=0.3), "pgd": PGD(), "free": Free(init=1.0), "freelb": FreeLB(),
    "noise": Noise(), "smart": SMART(proximal=0.0), "vat": VAT(),
}  # fmt: skip


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_sizes_directions_and_projections_are_those_of_each_text(norm):
    torch.manual_seed(0)
    values = torch.randn(6, 4, 3) * torch.tensor([1e-20, 1e-4, 1.0, 10.0, 1e4, 1e15])[:, None, None]
    order = 2 if norm == "l2" else torch.inf
    for text, size, along, near in zip(
        values.double(), sizes(values, norm), direction(values, norm), project(values, 0.7, norm), strict=True
    ):
        flat = text.flatten()
        if flat.square().sum() > 1e-30:  # fp32 has no smaller squares
            torch.testing.assert_close(size.double().item(), flat.norm(p=order).item(), rtol=1e-5, atol=0)
        expected = flat / flat.norm() if norm == "l2" else flat.sign()
        torch.testing.assert_close(along.double().flatten(), expected, rtol=1e-5, atol=1e-7)
        inside = flat.norm(p=order) <= 0.7
        cut = flat.clamp(-0.7, 0.7) if norm == "linf" else flat if inside else 0.7 * flat / flat.norm()
        torch.testing.assert_close(near.double().flatten(), cut, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_text_without_a_usable_gradient_stays(norm):
    values = torch.ones(4, 2, 3)
    values[0] = 0
    values[1, 0, 0], values[2, 0, 0] = torch.inf, torch.nan
    found = direction(values, norm)
    assert (found[:3] == 0).all() and (found[3] != 0).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(name, left):
    model = Bag()
    objective = prepared(ALL[name], model=model)
    narrow = descend(objective, model, batch_of(left=left))
    wide = descend(objective, model, batch_of(width=12, left=left))
    same(narrow, wide, rtol=1e-9, atol=1e-12)


@pytest.fixture
def met(monkeypatch):
    """Everything that is added to word embeddings, [batch, length, hidden] a pass."""
    found, inner = [], Forward.embedding

    def embedding(self, change):
        def both(words):
            moved = change(words)
            found.append((moved - words).detach())
            return moved

        return inner(self, both)

    monkeypatch.setattr(Forward, "embedding", embedding)
    return found


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_what_may_move_moves_and_nothing_else_does(name, every, met):
    """Never padding; special tokens by choice."""
    batch, model = batch_of(lengths=(4, 6, 3), special=True), Bag()
    real = batch.inputs["attention_mask"].bool()
    special = real & (batch.inputs["input_ids"] < 5)
    assert special.sum() == 6
    objective = prepared(replace(ALL[name], special_tokens=every), model=model)
    descend(objective, model, batch)
    total = torch.stack([change.abs().sum(-1) for change in met]).sum(0)
    assert (total[~real] == 0).all()
    assert (total[real & ~special] > 0).all()
    assert ((total[special] > 0) == every).all()


def test_random_numbers_reach_real_tokens_in_their_order():
    objective, model = prepared(Noise()), Bag()
    batch = batch_of(left=True)
    found = objective.drawn(
        forward_of(model), batch, lambda empty: empty.copy_(torch.arange(empty.numel()).view_as(empty))
    )
    assert found[batch.inputs["attention_mask"].bool()].flatten().tolist() == list(range(15 * WIDTH))
    assert (found[~batch.inputs["attention_mask"].bool()] == 0).all()


def test_a_model_that_computes_no_embeddings_is_told():
    model = Bag()
    model.forward = lambda **_: None
    with pytest.raises(UnreachedError, match="didn't compute them"), forward_of(model).embedding(lambda w: w):
        pass
    assert not model.table._forward_hooks


def test_rewind_gives_the_same_numbers_again():
    again = Rewind(torch.device("cpu"))
    first = torch.rand(5)
    again()
    assert torch.equal(first, torch.rand(5))
    assert not torch.equal(first, torch.rand(5))


@pytest.mark.parametrize("architecture", ["xlnet", "bert"])
@pytest.mark.parametrize("rows", [3, 8])
def test_words_are_the_texts_whatever_the_models_order(architecture, rows, cache):
    """XLNet looks words up as [length, batch]; with 8 texts of 8 tokens only the ids tell."""
    loaded = tiny(architecture).load(HEAD, Paths(cache=str(cache)))
    torch.manual_seed(0)
    batch = architectures.batch_of(loaded.tokenizer, rows=rows)
    ids = torch.randint(5, 200, (rows, 8))
    batch.inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model = loaded.model.eval()
    table = model.get_input_embeddings().weight
    forward, met = Forward(model, None), []

    def change(words):
        met.append(torch.equal(words, table[ids]))
        moved = words.clone()
        moved[1] += 1.0  # one text alone
        return moved

    plain = forward(batch)
    with forward.embedding(change):
        moved = forward(batch)
    assert met == [True]
    assert [not torch.equal(a, b) for a, b in zip(plain, moved, strict=True)] == [
        row == 1 for row in range(rows)
    ]
