"""What each method lets train, and what training then moves."""

import functools

import pytest
import torch
from tests.model.architectures import (
    ARCHITECTURES,
    HEAD,
    TRUTHS,
    batch_of,
    tiny,
    true_depth,
)
from torch import nn

from whet.errors import ModelError
from whet.paths import Paths
from whet.peft.base import apply, freeze, trained_names
from whet.peft.bitfit import bitfit
from whet.peft.linear_probe import linear_probe
from whet.peft.lora import lora
from whet.peft.none import none
from whet.peft.top_layers import top_layers


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


def load(architecture, paths):
    torch.manual_seed(1)
    return tiny(architecture).load(HEAD, paths)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_top_layers_are_exactly_the_last_k(architecture, paths):
    truth = TRUTHS[architecture]
    for k in range(len(truth.blocks) + 1):
        model = apply(functools.partial(top_layers, layers=k), load(architecture, paths))
        lowest = len(truth.blocks) + 1 - k
        assert trained_names(model) == [
            n for n, _ in model.named_parameters() if true_depth(n, truth) >= lowest
        ]
        assert not model.get_input_embeddings().weight.requires_grad
    with pytest.raises(ModelError, match=rf"peft\.layers={k + 1}: .* has {k} blocks"):
        top_layers(load(architecture, paths).model, layers=k + 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_linear_probe_trains_the_head_alone(architecture, paths):
    model = apply(linear_probe, load(architecture, paths))
    assert trained_names(model) == list(TRUTHS[architecture].head)


def test_a_linear_probe_needs_a_head(paths):
    trunk = load("bert", paths).model.bert
    with pytest.raises(ModelError, match=r"^peft=linear_probe: matches nothing in BertModel; it has no head"):
        linear_probe(trunk)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"modernbert"}))
def test_bitfit_is_the_biases_and_the_head(architecture, paths):
    truth = TRUTHS[architecture]
    model = apply(bitfit, load(architecture, paths))
    expected = {n for n, _ in model.named_parameters() if n.split(".")[-1].endswith("bias")} | set(truth.head)
    assert set(trained_names(model)) == expected
    vectors = [model.get_parameter(name) for name in expected - set(truth.head)]
    biased = [m for m in model.modules() if getattr(m, "bias", None) is not None and m.bias.requires_grad]
    assert len(vectors) >= 8 and len(biased) >= 8
    assert all(t.ndim == 1 or architecture in ("xlnet", "funnel") for t in vectors)


def test_bitfit_needs_biases(paths):
    with pytest.raises(ModelError, match=r"^peft=bitfit: matches nothing in ModernBert.*choose peft=lora"):
        apply(bitfit, load("modernbert", paths))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_none_thaws_everything(architecture, paths):
    loaded = load(architecture, paths)
    freeze(loaded.model)
    assert trained_names(loaded.model) == []
    model = apply(none, loaded)
    assert trained_names(model) == [name for name, _ in model.named_parameters()]


def rename_and_freeze(model):
    """A method of the worst kind: it moves a new tensor elsewhere and freezes by name."""
    model.bert.pooler.extra = nn.Sequential(model.bert.pooler.dense)
    del model.bert.pooler.dense
    model.bert.pooler.dense = model.bert.pooler.extra[0]
    freeze(model)
    return model


def test_new_tensors_train_whatever_a_method_does(paths):
    loaded = load("bert", paths)
    loaded.new |= {"bert.pooler.dense.weight"}
    model = apply(rename_and_freeze, loaded)
    assert set(trained_names(model)) == {"bert.pooler.extra.0.weight", "classifier.weight", "classifier.bias"}


def test_a_head_that_the_weights_brought_trains_too(paths):
    loaded = load("bert", paths)
    loaded.new = frozenset()
    assert trained_names(apply(freeze_all, loaded)) == ["classifier.weight", "classifier.bias"]


def freeze_all(model):
    freeze(model)
    return model


TRAINERS = {
    "none": none,
    "lora": functools.partial(lora, r=4),
    "bitfit": bitfit,
    "top_layers": functools.partial(top_layers, layers=1),
    "linear_probe": linear_probe,
}


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "gpt2"])
@pytest.mark.parametrize("method", TRAINERS)
def test_one_batch_is_learnt(architecture, method, paths):
    loaded = load(architecture, paths)
    model = apply(TRAINERS[method], loaded).eval()
    optimizer = torch.optim.Adam([t for t in model.parameters() if t.requires_grad], lr=1e-2)
    batch, losses = batch_of(loaded.tokenizer), []
    batch.labels[:4] = 2  # random trunks say nearly the same of every text: let one class be frequent
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(**batch.inputs).logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
