"""Parameter groups against the formula, tensor by tensor."""

import functools

import pytest
import torch
from tests.model.architectures import ARCHITECTURES, HEAD, TRUTHS, tiny, true_depth

from whet.errors import ConfigError
from whet.optimizer.groups import parameter_groups
from whet.paths import Paths
from whet.peft.base import apply, freeze
from whet.peft.bitfit import bitfit
from whet.peft.lora import lora
from whet.peft.none import none
from whet.peft.top_layers import top_layers

LR, DECAY, SHRINK, HEAD_LR = 3e-4, 0.05, 0.8, 7e-3


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


def settings(groups):
    """id of each tensor → (rate, decay), each tensor once."""
    found = {}
    for group in groups:
        assert group["base_lr"] == group["lr"] and len(group["params"]) == len(group["param_names"])
        for tensor in group["params"]:
            assert id(tensor) not in found
            found[id(tensor)] = (group["lr"], group["weight_decay"])
    return found


def group(model, **changes):
    given = {"lr": LR, "weight_decay": DECAY, "layer_decay": SHRINK, "head_lr": HEAD_LR, **changes}
    return parameter_groups(model, **given)


def no_decay(name, tensor):
    return tensor.ndim == 1 or name.split(".")[-1].endswith("bias")


METHODS = {
    "none": none,
    "lora": functools.partial(lora, r=2),
    "top_layers": functools.partial(top_layers, layers=1),
    "bitfit": bitfit,
}
CASES = [(a, m) for a in ARCHITECTURES for m in METHODS if (a, m) != ("modernbert", "bitfit")]


@pytest.mark.parametrize(("architecture", "method"), CASES)
@pytest.mark.parametrize("head_lr", [None, HEAD_LR])
def test_rates_and_decay(architecture, method, head_lr, paths):
    truth = TRUTHS[architecture]
    model = apply(METHODS[method], tiny(architecture).load(HEAD, paths))
    groups = group(model, head_lr=head_lr)
    found = settings(groups)
    top = len(truth.blocks) + 1
    expected = {}
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            rate = LR
            for _ in range(top - true_depth(name, truth)):
                rate *= SHRINK
            rate = head_lr if head_lr and name in truth.head else rate
            expected[id(tensor)] = (pytest.approx(rate, rel=1e-12), 0.0 if no_decay(name, tensor) else DECAY)
    assert found == expected
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    assert all(names[id(t)] == n for g in groups for t, n in zip(g["params"], g["param_names"], strict=True))


def test_without_settings_there_are_two_groups(paths):
    model = apply(none, tiny("bert").load(HEAD, paths))
    groups = group(model, layer_decay=1.0, head_lr=None)
    assert sorted((g["lr"], g["weight_decay"]) for g in groups) == [(LR, 0.0), (LR, DECAY)]
    decayed = next(g for g in groups if g["weight_decay"])
    assert "bert.embeddings.word_embeddings.weight" in decayed["param_names"]
    assert not any("LayerNorm" in name or name.endswith("bias") for name in decayed["param_names"])


def test_norms_and_biases_keep_still_under_decay_alone(paths):
    """Zero gradients: what moves is decayed."""
    model = apply(none, tiny("xlnet").load(HEAD, paths))
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    for tensor in model.parameters():
        tensor.grad = torch.zeros_like(tensor)
    torch.optim.AdamW(group(model)).step()
    for name, tensor in model.named_parameters():
        still = no_decay(name, tensor) or not before[name].any()
        assert torch.equal(tensor, before[name]) == still, name


def test_a_smaller_share_slows_lower_blocks_more(paths):
    model = apply(none, tiny("bert", seed=3).load(HEAD, paths))
    rates = {name: g["lr"] for g in group(model, head_lr=None) for name in g["param_names"]}
    ladder = [
        "embeddings.word_embeddings",
        "encoder.layer.0.output.dense",
        "encoder.layer.1.output.dense",
        "pooler.dense",
    ]
    found = [rates[f"bert.{name}.weight"] for name in ladder]
    assert found == sorted(found) and found[-1] == rates["classifier.weight"] == LR
    assert found[0] == pytest.approx(LR * 0.512) and found[2] == pytest.approx(LR * 0.8)


def test_nothing_to_train(paths):
    model = tiny("bert").load(HEAD, paths).model
    freeze(model)
    with pytest.raises(ConfigError, match="^peft: nothing is left to train"):
        group(model)
