"""Methods that do something at each update: adalora and gradual_unfreezing."""

import functools

import pytest
import torch
from safetensors.torch import load_file
from tests.model.architectures import ARCHITECTURES, HEAD, TRUTHS, batch_of, tiny, true_depth
from torch import nn

from whet.cli.main import main
from whet.errors import ConfigError
from whet.paths import Paths
from whet.peft.adalora import Budget, adalora
from whet.peft.base import apply, companions, trained_names
from whet.peft.gradual_unfreezing import Thaw, gradual_unfreezing
from whet.types import Duration


@pytest.fixture
def load(cache):
    def loaded(architecture, **settings):
        torch.manual_seed(1)
        return tiny(architecture, **settings).load(HEAD, Paths(cache=str(cache)))

    return loaded


# ---------------------------------------------------------------- gradual unfreezing


def lowest(layers, thawed, start=0, blocks=1, steps=20):
    thaw = Thaw([], layers, Duration.parse(thawed), start, blocks)
    found = []
    for step in range(steps):
        thaw.before_update(step, steps, 5)
        found.append(thaw.lowest)
    return found


def test_the_schedule_point_by_point():
    """Depths from which all trains: 7 is above six blocks, 0 the embeddings."""
    assert lowest(6, "7st", steps=10) == [7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
    assert lowest(6, "14st", steps=16) == [7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]
    assert lowest(1, "2ep", steps=12) == [2] * 5 + [1] * 5 + [0] * 2
    assert lowest(6, 0.5, start=3, steps=8) == [4, 3, 2, 1, 0, 0, 0, 0]
    assert lowest(6, "4st", blocks=2, steps=5) == [7, 5, 3, 1, 0]
    assert lowest(2, "0st", steps=3) == [0, 0, 0]
    assert lowest(2, "6st", start=99, steps=7) == [0] * 7


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"funnel"}))
def test_only_what_has_thawed_gets_a_gradient(architecture, load):
    loaded, truth = load(architecture), TRUTHS[architecture]
    model = apply(functools.partial(gradual_unfreezing, thawed=Duration.parse("6st")), loaded)
    (thaw,) = companions(model)
    model.train()
    for depth in range(len(truth.blocks) + 1, -1, -1):
        thaw.lowest = depth
        model.zero_grad()
        batch = batch_of(loaded.tokenizer)
        nn.functional.cross_entropy(model(**batch.inputs).logits, batch.labels).backward()
        graded = {name for name, tensor in model.named_parameters() if tensor.grad is not None}
        expected = {n for n, _ in model.named_parameters() if true_depth(n, truth) >= depth} - truth.idle
        assert graded == expected
        assert trained_names(model) == [name for name, _ in model.named_parameters()], "as all else sees it"


def test_evaluation_sees_no_frozen_tensor(load):
    model = apply(gradual_unfreezing, load("bert")).eval()
    companions(model)[0].lowest = 3
    batch = batch_of(load("bert").tokenizer)
    model(**batch.inputs).logits.sum().backward()
    assert all(tensor.grad is not None for tensor in model.parameters())


# ---------------------------------------------------------------- adalora


def budget_of(model):
    (found,) = companions(model)
    return found


def test_the_budget_falls_with_the_cube_of_time(load):
    model = adalora(
        load("bert").model, r=6, target_r=2, warmup=Duration.parse("2st"), final=Duration.parse("4st")
    )
    budget = budget_of(model)
    budget.before_update(0, 16, 4)
    assert budget.phases == (2, 12)
    rooms = [budget._room(done) for done in range(2, 13)]
    assert rooms == [int(24 + 48 * (1 - x / 10) ** 3) for x in range(11)]
    assert (rooms[0], rooms[-1]) == (12 * 6, 12 * 2)


def fill(budget, seed=0):
    """Random tensors and gradients."""
    torch.manual_seed(seed)
    for tensor in budget._tensors():
        tensor.data.normal_()
        tensor.grad = torch.randn_like(tensor)


def test_importance_and_choice_by_brute_force(load):
    """Equations 7 to 9 number by number; then the best directions of all layers together."""
    model = adalora(
        load("bert").model, r=3, target_r=1, targets=["*.query", "*.0.*.value"], beta1=0.8, beta2=0.6
    )
    budget = budget_of(model)
    names = [name for name, module in model.named_modules() if hasattr(module, "lora_E")]
    mean = {id(t): torch.zeros_like(t) for t in budget._tensors()}
    apart = {key: tensor.clone() for key, tensor in mean.items()}
    for seed in range(3):
        fill(budget, seed)
        budget._observe()
        for t in budget._tensors():
            now = (t * t.grad).abs().detach()
            mean[id(t)] = 0.8 * mean[id(t)] + 0.2 * now
            apart[id(t)] = 0.6 * apart[id(t)] + 0.4 * (now - mean[id(t)]).abs()
    scores = []
    for name in names:
        layer = model.get_submodule(name)
        parts = [getattr(layer, f"lora_{x}")["default"] for x in "EAB"]
        e, a, b = (mean[id(t)] * apart[id(t)] for t in parts)
        scores += [(float(e[i, 0] + a[i].mean() + b[:, i].mean()), name, i) for i in range(3)]
    best = {(name, i) for _, name, i in sorted(scores, reverse=True)[:4]}
    budget._silence(budget._best(4))
    left = {(n, i) for n in names for i in range(3) if model.get_submodule(n).lora_E["default"][i, 0] != 0}
    assert left == best


def test_the_penalty_pulls_towards_orthogonality(load):
    model = adalora(load("bert").model, r=3, target_r=3, targets=["*.query"], orthogonality=0.5)
    budget = budget_of(model)
    fill(budget)
    before = [tensor.grad.clone() for tensor in budget._tensors()]
    budget.after_gradient()
    tensors = [t.detach().clone().requires_grad_(True) for t in budget._tensors()]
    total = 0
    for _, q, p in zip(*[iter(tensors)] * 3, strict=True):
        total = total + (q @ q.T - torch.eye(3)).square().sum().sqrt()
        total = total + (p.T @ p - torch.eye(3)).square().sum().sqrt()
    (0.5 * total / 4).backward()
    for tensor, own, old in zip(tensors, budget._tensors(), before, strict=True):
        torch.testing.assert_close(
            own.grad - old, torch.zeros_like(old) if tensor.grad is None else tensor.grad
        )


def test_the_update_is_divided_by_the_first_rank(load):
    model = adalora(load("gpt2").model, r=4, target_r=2, alpha=6.0).eval()
    fill(budget_of(model))
    layer = model.transformer.h[0].attn.c_attn
    x = torch.randn(3, 32)
    e, a, b = (getattr(layer, f"lora_{name}")["default"] for name in "EAB")
    expected = layer.base_layer(x) + 6.0 / (4 + 1e-5) * x @ a.T @ torch.diag(e[:, 0]) @ b.T
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device_state", [False, True])
def test_state_comes_back(load, device_state):
    def make():
        return budget_of(adalora(load("bert").model, r=3, target_r=1))

    budget, other = make(), make()
    fill(budget)
    budget._observe()
    if device_state:
        budget.kept = budget._best(7)
    other.load_state(budget.state())
    for name in ("importance", "fluctuation"):
        assert all(map(torch.equal, getattr(budget, name), getattr(other, name)))
    assert (other.kept is None) == (budget.kept is None)
    assert budget.kept is None or torch.equal(budget.kept, other.kept)


def test_what_cannot_be(load):
    with pytest.raises(ConfigError, match="peft.target_r=9: must be at most peft.r, which is 4"):
        adalora(load("bert").model, r=4, target_r=9)
    budget = Budget([], 1, Duration.parse(0.6), Duration.parse(0.4), 1, 0.8, 0.8, 0.1)
    with pytest.raises(
        ConfigError, match="peft.warmup=0.6: of 10 updates, 4 are peft.final: there is no time"
    ):
        budget.before_update(0, 10, 5)


# ---------------------------------------------------------------- runs


def run(keys, *more):
    assert main(["train", *keys, *more]) == 0


def test_a_run_ends_with_the_target_rank(workplace, quick):
    run(quick, "peft=adalora", "peft.r=4", "peft.target_r=1", "peft.every=2", "engine.duration=20st",
        "peft.final=0.2", "optimizer.lr=1e-2", "engine.evaluate_every=20st", "name=run")  # fmt: skip
    saved = load_file(workplace / "outputs" / "runs" / "run" / "model" / "trained.safetensors")
    values = [tensor for name, tensor in saved.items() if "lora_E" in name]
    assert len(values) == 12
    assert sum(int((tensor != 0).sum()) for tensor in values) == 12


def test_a_frozen_block_is_not_even_decayed(workplace, quick, load):
    """One block never thaws: it is the pretrained one to the bit, as are the embeddings."""
    run(quick, "peft=gradual_unfreezing", "peft.thawed=99ep", "peft.layers=1", "optimizer.weight_decay=0.5",
        "engine.evaluate_every=4st", "engine.duration=4st", "optimizer.lr=1e-2", "name=run")  # fmt: skip
    new = load_file(workplace / "outputs" / "runs" / "run" / "model" / "model.safetensors")
    old = load("bert").model.state_dict()
    moved = {n for n in new if new[n].shape != old[n].shape or not torch.equal(new[n], old[n])}
    head = {"classifier.weight", "classifier.bias"}
    assert moved == head | {n for n in new if ".layer.1." in n or ".pooler." in n}
