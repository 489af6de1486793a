"""LoRA against its equation, and its targets against a search by brute force."""

import math

import pytest
import torch
from tests.model.architectures import ARCHITECTURES, HEAD, TRUTHS, batch_of, logits_of, tiny, train
from torch import nn

from whet.errors import ModelError
from whet.paths import Paths
from whet.peft.base import apply
from whet.peft.lora import lora, target_names

R, ALPHA = 3, 7.0


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


def load(architecture, paths, seed=1):
    torch.manual_seed(seed)
    return tiny(architecture).load(HEAD, paths)


def method(model, **settings):
    return lora(model, **{"r": R, "alpha": ALPHA, "dropout": 0.0, **settings})


def wrapped(model):
    return {
        name.removesuffix(".lora_A"): None for name, _ in model.named_modules() if name.endswith(".lora_A")
    }


def shape(module):
    """(in, out) of a linear map; GPT-2's `Conv1D` keeps its matrix the other way round."""
    return (
        tuple(module.weight.shape) if type(module).__name__ == "Conv1D" else tuple(module.weight.shape)[::-1]
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_linear_map_of_the_blocks_gets_a_pair(architecture, paths):
    loaded, truth = load(architecture, paths), TRUTHS[architecture]
    brute = {
        name: shape(module)
        for name, module in loaded.model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D")
        and name.startswith(tuple(f"{b}." for b in truth.blocks))
    }
    before = logits_of(loaded.model, batch_of(loaded.tokenizer))
    model = apply(method, loaded)
    assert set(wrapped(model)) == set(brute) and len(brute) == truth.linear
    added = sum(tensor.numel() for name, tensor in model.named_parameters() if ".lora_" in name)
    assert added == sum(R * (wide + high) for wide, high in brute.values())
    trained = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == set(truth.head)
    assert torch.equal(logits_of(model, batch_of(loaded.tokenizer)), before), "B starts at zero"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trained_maps_follow_the_equation(architecture, paths):
    loaded = load(architecture, paths)
    old = {
        name: module
        for name, module in loaded.model.named_modules()
        if name in set(target_names(loaded.model, "all"))
    }
    weights = {name: module.weight.detach().clone() for name, module in old.items()}
    model = apply(method, loaded)
    train(model, loaded.tokenizer)
    model.eval()
    for name, module in old.items():
        layer = model.get_submodule(name)
        assert torch.equal(module.weight, weights[name])
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert a.shape[0] == b.shape[1] == R and b.abs().sum() > 0
        x = torch.randn(4, shape(module)[0])
        wide = (module.weight if type(module).__name__ == "Conv1D" else module.weight.T) + ALPHA / R * (
            b @ a
        ).T
        bias = 0 if module.bias is None else module.bias
        torch.testing.assert_close(layer(x), x @ wide + bias, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "bart", "funnel"])
def test_merged_by_hand_a_plain_model_says_the_same(architecture, paths):
    loaded = load(architecture, paths)
    model = apply(method, loaded)
    train(model, loaded.tokenizer)
    plain = load(architecture, paths, seed=2).model
    with torch.no_grad():
        for name in wrapped(model):
            layer, target = model.get_submodule(name), plain.get_submodule(name).weight
            update = ALPHA / R * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            target += (
                update if target.shape == update.shape and type(layer.base_layer) is nn.Linear else update.T
            )
        for name in TRUTHS[architecture].head:
            plain.get_parameter(name).copy_(model.get_parameter(name))
    batch = batch_of(loaded.tokenizer, seed=9)
    torch.testing.assert_close(logits_of(plain, batch), logits_of(model, batch), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_and_feed_forward_share_out_the_targets(architecture, paths):
    model, truth = load(architecture, paths).model, TRUTHS[architecture]
    rest = target_names(model, "feed_forward")
    assert len(rest) == truth.linear - truth.attention
    if not truth.attention:
        with pytest.raises(
            ModelError, match=r"peft\.targets=attention: matches nothing in XLNet.*layer_1, layer_2"
        ):
            target_names(model, "attention")
        return
    attention = target_names(model, "attention")
    assert sorted([*attention, *rest]) == sorted(target_names(model, "all"))
    assert len(attention) == truth.attention
    assert not any(
        part in name for name in rest for part in ("query", "q_proj", "q_lin", "c_attn", "Wqkv", "q_head")
    )


def test_patterns(paths):
    model = load("bert", paths).model
    found = target_names(model, ["*.query", "*.1.*.value"])
    assert found == [
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.1.attention.self.query",
        "bert.encoder.layer.1.attention.self.value",
    ]
    with pytest.raises(
        ModelError, match=r"\['\*\.quary'\]: matches nothing in Bert.*dense, key, query, value"
    ):
        target_names(model, ["*.query", "*.quary"])
    with pytest.raises(ModelError, match="matches nothing"):
        target_names(model, [])
    with pytest.raises(ModelError, match="matches nothing"):
        target_names(model, ["classifier"])


def test_patterns_decide_what_is_wrapped(paths):
    loaded = load("bert", paths)
    model = apply(lambda m: method(m, targets=["*.query"]), loaded)
    assert set(wrapped(model)) == {f"bert.encoder.layer.{n}.attention.self.query" for n in (0, 1)}


def test_more_than_twenty_targets_stay_exact(paths):
    """peft shortens long lists to suffixes: a partial choice must not spill over."""
    loaded = load("bart", paths)
    chosen = [name for name in target_names(loaded.model, "all") if not name.endswith("decoder.layers.1.fc2")]
    assert len(chosen) > 20
    assert set(wrapped(apply(lambda m: method(m, targets=chosen), loaded))) == set(chosen)


def test_dropout_and_alpha_reach_the_maps(paths):
    model = apply(lambda m: method(m, dropout=0.25, alpha=12.0), load("bert", paths))
    layer = model.bert.encoder.layer[0].intermediate.dense
    assert layer.lora_dropout["default"].p == 0.25 and layer.scaling["default"] == 12.0 / R
    a = layer.lora_A["default"].weight
    assert a.abs().max() <= 1 / math.sqrt(32) + 1e-6, "Kaiming's uniform of the reference implementation"
