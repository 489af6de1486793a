"""A model run from stored states gives what the whole model gives, or isn't cut."""

import contextlib
import functools
import random
import types

import pytest
import torch
from tests.model.architectures import ARCHITECTURES, HEAD, TRUTHS, batch_of, tiny
from torch import nn

from whet.data.states import STATES
from whet.model import trunk
from whet.paths import Paths
from whet.peft.base import apply
from whet.peft.linear_probe import linear_probe
from whet.peft.lora import lora
from whet.peft.top_layers import top_layers

TOP = functools.partial(top_layers, layers=1)
LAST = ("bart", "xlnet", "gpt2")
"""Architectures whose heads read a text's last token; the others read the first."""
WIDE = "funnel"
"""Its states are shorter than its text."""
ANY_WIDTH = "gpt2"
"""Its head runs over all tokens: whether that changes bits depends on the processor."""


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


def load(architecture, paths, method, **settings):
    torch.manual_seed(1)
    loaded = tiny(architecture, **settings).load(HEAD, paths)
    return apply(method, loaded), loaded.tokenizer


def loss_of(model, batch):
    return lambda inputs: nn.functional.cross_entropy(model(**inputs).logits, batch.labels)


def cut_of(model, batch):
    return trunk.find_cut(model, batch.inputs, loss_of(model, batch), contextlib.nullcontext, exact=True)


def learnt(model, batch, inputs):
    """Loss and gradients of a training pass whose random numbers are those of seed 5."""
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    loss = loss_of(model, batch)(inputs)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def with_states(model, cut, batch):
    """The batch's inputs and its states at the cut, those of other tokens than are kept being lost."""
    model.eval()
    states = trunk.states_at(model, cut, batch.inputs, contextlib.nullcontext)
    return trunk.given(cut, batch.inputs, trunk.restricted(states, cut, batch.inputs))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ["linear_probe", "top_layers"])
def test_above_the_cut_nothing_changes(architecture, method, paths):
    blocks = len(TRUTHS[architecture].blocks)
    model, tokenizer = load(
        architecture,
        paths,
        {"linear_probe": linear_probe, "top_layers": TOP}[method],
        **no_dropout(architecture),
    )
    first = batch_of(tokenizer, rows=5)
    if architecture == "albert" and method == "top_layers":  # its one block is every layer
        with pytest.raises(trunk.UncuttableError, match="the first block trains"):
            cut_of(model, first)
        return
    cut = cut_of(model, first)
    # a decoder's upper block looks at the encoder's states, too: there only the encoder is left out
    lower = 2 if architecture == "bart" else blocks - 1
    assert cut.block == (blocks if method == "linear_probe" else lower)
    assert cut.keep == ("all" if method == "top_layers" else "last" if architecture in LAST else "first")
    assert architecture == ANY_WIDTH or cut.alone == (method == "linear_probe" and architecture != WIDE)
    names = list(model.state_dict())
    other = batch_of(tokenizer, rows=7, seed=3)
    inputs = with_states(model, cut, other)
    plain = learnt(model, other, other.inputs)
    with trunk.started_above(model, cut):
        assert list(model.state_dict()) == names
        above, still = learnt(model, other, inputs), learnt(model, other, other.inputs)
    assert len(plain) == len(above) > 1
    assert all(torch.equal(a, b) for a, b in zip(plain, above, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, still, strict=True)), "without states it runs whole"
    assert list(model.state_dict()) == names


def no_dropout(architecture):
    return {} if architecture == "modernbert" else {"dropout": 0.0}


def test_the_frozen_layers_are_really_left_out(paths):
    model, tokenizer = load("bert", paths, TOP, dropout=0.0)
    batch = batch_of(tokenizer, rows=5)
    cut = cut_of(model, batch)
    inputs = with_states(model, cut, batch)
    ran = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    with trunk.started_above(model, cut):
        model(**inputs)
    assert "bert.encoder.layer.1" in ran
    assert not [name for name in ran if name.startswith(("bert.embeddings", "bert.encoder.layer.0"))]
    logits = model.eval()(**batch.inputs).logits
    with trunk.started_above(model, cut):
        inputs[STATES] = inputs[STATES] + 1
        assert not torch.equal(model(**inputs).logits, logits), "and the states are really used"


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "gpt2", "bart"])
def test_dropout_below_forbids_the_cut_and_rest_allows_it(architecture, paths):
    model, tokenizer = load(architecture, paths, TOP)
    batch = batch_of(tokenizer, rows=5)
    with pytest.raises(trunk.UncuttableError, match="random numbers are drawn in the frozen layers"):
        cut_of(model, batch)
    trunk.keep_at_rest(model, trunk.resting(model, batch.inputs))
    cut = cut_of(model, batch)
    inputs = with_states(model, cut, batch)
    plain = learnt(model, batch, batch.inputs)
    with trunk.started_above(model, cut):
        above = learnt(model, batch, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, above, strict=True))
    model.train()
    losses = {float(loss_of(model, batch)(batch.inputs).detach()) for _ in range(4)}
    assert len(losses) == 4, "the layers that train keep their dropout"


def test_only_what_lies_below_rests(paths):
    model, tokenizer = load("bert", paths, TOP)
    trunk.keep_at_rest(model, trunk.resting(model, batch_of(tokenizer).inputs))
    model.train()
    model(**batch_of(tokenizer).inputs)
    resting = {name for name, module in model.named_modules() if not module.training}
    assert {
        "bert.embeddings.dropout",
        "bert.encoder.layer.0",
        "bert.encoder.layer.0.output.dropout",
    } <= resting
    moving = (
        "",
        "bert",
        "bert.encoder",
        "bert.encoder.layer.1",
        "bert.encoder.layer.1.output.dropout",
        "dropout",
    )
    assert not resting & set(moving)


def test_a_trained_block_keeps_the_dropout_before_its_adapters(paths):
    model, tokenizer = load("bert", paths, functools.partial(lora, targets=["bert.encoder.layer.0.*.query"]))
    names = {module: name for name, module in model.named_modules()}
    rests = {names[module] for module in trunk.resting(model, batch_of(tokenizer).inputs)}
    assert "bert.embeddings.dropout" in rests
    assert not [name for name in rests if "encoder.layer" in name]


def test_adapters_on_top_are_cut_below_them(paths):
    model, tokenizer = load(
        "bert", paths, functools.partial(lora, targets=["bert.encoder.layer.1.*"]), dropout=0.0
    )
    assert cut_of(model, batch_of(tokenizer, rows=5)).block == 1


@pytest.mark.parametrize(
    ("method", "features"),
    [(linear_probe, True), (TOP, False), (functools.partial(top_layers, layers=0), True)],
)
def test_features_are_extracted_where_no_block_trains(method, features, paths):
    assert trunk.extracts_features(load("bert", paths, method)[0]) is features


def test_an_error_in_a_pass_puts_the_layers_back(paths):
    model, tokenizer = load("bert", paths, linear_probe, dropout=0.0)
    batch = batch_of(tokenizer, rows=5)
    cut = cut_of(model, batch)
    inputs = with_states(model, cut, batch)
    names = list(model.state_dict())
    with trunk.started_above(model, cut):
        with pytest.raises(RuntimeError):
            model(**{**inputs, STATES: torch.zeros(2, 3, 5)})
        assert list(model.state_dict()) == names
        assert torch.equal(model.eval()(**batch.inputs).logits, model(**inputs).logits)


# ---------------------------------------------------------------- models that don't play along


class Block(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.map = kind, nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8) if kind == "batch norm" else nn.Identity()
        self.rare = kind == "rare"

    def forward(self, hidden):
        if self.training and self.rare and torch.rand(()) < 1e-9:  # a layer that is hardly ever left out
            return hidden
        if self.training and self.kind == "python" and random.random() < 1e-9:
            return hidden
        hidden = self.norm(hidden.transpose(1, 2)).transpose(1, 2)
        return hidden + torch.tanh(self.map(hidden))


class Toy(nn.Module):
    """Two frozen blocks and a head; `kind` says how it is out of the ordinary."""

    base_model_prefix = "trunk"

    def __init__(self, kind="plain"):
        super().__init__()
        self.kind = kind
        self.trunk = nn.ModuleDict(
            {"embed": nn.Embedding(270, 8), "blocks": nn.ModuleList(Block(kind) for _ in range(2))}
        )
        self.head = nn.Linear(8, 3)
        self.trunk.requires_grad_(False)
        if kind == "blocks train":
            self.trunk.blocks.requires_grad_(True)

    def forward(self, input_ids, attention_mask, **_):
        entered = self.trunk["embed"](input_ids)
        hidden = entered
        for block in self.trunk["blocks"]:
            hidden = block(hidden)
        mask = attention_mask[..., None].float()
        if self.kind == "skip":
            hidden = hidden + entered
        if self.kind == "padding counts":
            mask = torch.ones_like(mask)
        return types.SimpleNamespace(logits=self.head((hidden * mask).sum(1) / mask.sum(1)))


def toy(kind, paths):
    torch.manual_seed(2)
    return Toy(kind), batch_of(load("bert", paths, linear_probe)[1], rows=5)


def test_a_plain_one_is_cut(paths):
    model, batch = toy("plain", paths)
    cut = cut_of(model, batch)
    assert (cut.block, cut.keep, cut.entrance) == (2, "all", "trunk.embed")


def test_what_looks_past_the_blocks_keeps_its_entrance(paths):
    model, batch = toy("skip", paths)
    cut = cut_of(model, batch)
    assert (cut.block, cut.entrance) == (2, None)
    inputs = with_states(model, cut, batch)
    plain = model.eval()(**batch.inputs).logits
    with trunk.started_above(model, cut):
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("rare", "random numbers are drawn"),
        ("python", "random numbers are drawn"),
        ("batch norm", "doesn't give the same"),
        ("padding counts", "doesn't give the same"),
        ("blocks train", "the first block trains"),
    ],
)
def test_what_would_come_out_wrong_is_not_cut(kind, reason, paths):
    model, batch = toy(kind, paths)
    with pytest.raises(trunk.UncuttableError, match=reason):
        cut_of(model, batch)


def test_an_objective_that_reaches_below_is_seen(paths):
    model, tokenizer = load("bert", paths, linear_probe, dropout=0.0)
    batch, table = batch_of(tokenizer, rows=5), model.get_input_embeddings().weight

    def adversarial(inputs):
        clean = loss_of(model, batch)(inputs)
        with torch.no_grad():
            table.add_(0.1 * table.sign())
        return clean + loss_of(model, batch)(inputs)

    with pytest.raises(trunk.UncuttableError, match="doesn't give the same"):
        trunk.find_cut(model, batch.inputs, adversarial, contextlib.nullcontext, exact=True)


# ---------------------------------------------------------------- key


def test_the_fingerprint_covers_what_the_states_depend_on(paths):
    def of(change=lambda model: None, **settings):
        model, tokenizer = load("bert", paths, TOP, **{"dropout": 0.0, **settings})
        batch = batch_of(tokenizer, rows=5)
        cut = cut_of(model, batch)
        with torch.no_grad():
            change(model)
        return trunk.fingerprint(model, cut)

    def shift(name):
        return lambda model: model.get_parameter(name)[..., -1:].add_(1e-6)

    def buffer(model):
        model.bert.embeddings.register_buffer("extra", torch.zeros(1))

    same = of()
    assert of() == same
    below = [shift("bert.embeddings.word_embeddings.weight"), shift("bert.encoder.layer.0.output.dense.bias")]
    for change in (*below, shift("bert.encoder.layer.0.attention.self.query.weight"), buffer):
        assert of(change) != same
    assert of(attention="eager") != same
    for change in (shift("classifier.weight"), shift("bert.encoder.layer.1.output.dense.bias")):
        assert of(change) == same
    assert of(head_dropout=0.3) == same
