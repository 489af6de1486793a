"""Every optimizer learns, every setting counts, every implementation makes the same update."""

import pytest
import torch

from whet.config import build
from whet.errors import ConfigError
from whet.model.encoder import Encoder
from whet.model.tiny import TinyWeights
from whet.optimizer.adafactor import adafactor
from whet.optimizer.adam import adam
from whet.optimizer.adamw import adamw
from whet.optimizer.sgd import sgd
from whet.paths import Paths
from whet.task.base import Head

torch.set_num_threads(1)
ALL = {"adamw": adamw, "adam": adam, "sgd": sgd, "adafactor": adafactor}
FAST = {"adamw": 1e-3, "adam": 1e-3, "sgd": 1e-1, "adafactor": 1e-2}


@pytest.fixture(scope="module")
def start(cache):
    head = Head(2, "single_label_classification", ("a", "b"))
    torch.manual_seed(0)
    loaded = Encoder(name="tiny", weights=TinyWeights(), dropout=0.0, head_dropout=0.0).load(
        head, Paths(cache=str(cache))
    )
    model = loaded.model.train()
    return model, {name: tensor.clone() for name, tensor in model.state_dict().items()}


IDS = torch.randint(5, 261, (8, 12), generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 2


def loss_of(model):
    logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return torch.nn.functional.cross_entropy(logits, LABELS)


def trained(start, optimizer, steps=4, **settings):
    """Parameters after a few updates, and the losses on the way."""
    model, state = start
    model.load_state_dict(state)
    made, losses = optimizer(model, **settings), []
    for _ in range(steps):
        made.zero_grad()
        loss = loss_of(model)
        loss.backward()
        made.step()
        losses.append(loss.item())
    return {name: p.detach().clone() for name, p in model.named_parameters()}, losses


def distance(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("name", ALL)
def test_it_learns(start, name):
    _, losses = trained(start, ALL[name], steps=15, lr=FAST[name])
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("other", ["foreach", "loop"])
def test_implementations_agree(start, name, other):
    settings = {"lr": FAST[name], "weight_decay": 0.1}
    fused, _ = trained(start, ALL[name], implementation="fused", **settings)
    assert distance(fused, trained(start, ALL[name], implementation=other, **settings)[0]) < 1e-6
    flags = ALL[name](start[0], implementation=other).param_groups[0]
    assert (bool(flags["fused"]), bool(flags["foreach"])) == (False, other == "foreach")


SETTINGS = [
    *((name, key, value) for name in ALL for key, value in [("weight_decay", 0.5), ("layer_decay", 0.5), ("head_lr", 0.1)]),
    *((name, key, value) for name in ("adamw", "adam") for key, value in [("betas", (0.5, 0.999)), ("betas", (0.9, 0.8)), ("eps", 1e-2)]),
    ("sgd", "momentum", 0.5),
    ("sgd", "nesterov", True),
    ("adafactor", "beta2_decay", -0.3),
    ("adafactor", "clip", 1.5),
    *((name, "lr", 3e-3) for name in ALL),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "value"), SETTINGS)
def test_every_setting_changes_the_update(start, name, key, value):
    base = {"lr": 1e-3}
    plain, changed = trained(start, ALL[name], **base), trained(start, ALL[name], **{**base, key: value})
    assert distance(plain[0], changed[0]) > 1e-7


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_decoupled_decay_takes_a_share_off_matrices_alone(start, name):
    after = idle(start, ALL[name], lr=0.1, weight_decay=0.5)
    for key, tensor in start[0].named_parameters():
        kept = 1 - 0.1 * 0.5 if tensor.ndim > 1 else 1.0
        torch.testing.assert_close(after[key], start[1][key] * kept, rtol=1e-6, atol=1e-7, msg=key)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_l2_decay_moves_matrices_alone(start, name):
    after = idle(start, ALL[name], lr=0.1, weight_decay=0.5)
    norms = [key for key in after if "LayerNorm" in key]
    assert norms
    for key, tensor in after.items():
        moved = not torch.equal(tensor, start[1][key])
        assert moved == (tensor.ndim > 1), key
    if name == "sgd":
        key = "classifier.weight"
        torch.testing.assert_close(after[key], start[1][key] * (1 - 0.1 * 0.5))


def idle(start, optimizer, **settings):
    """Parameters after one update with gradients of zero."""
    model, state = start
    model.load_state_dict(state)
    made = optimizer(model, **settings)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_adamw_by_hand(start):
    """Two updates of one tensor against algorithm 2 of the paper, written out."""
    model, state = start
    model.load_state_dict(state)
    lr, decay, (b1, b2), eps = 1e-2, 0.1, (0.8, 0.95), 1e-6
    made = adamw(model, lr=lr, weight_decay=decay, betas=(b1, b2), eps=eps)
    name = "classifier.weight"
    expected = state[name].double()
    m = v = torch.zeros_like(expected)
    for t in (1, 2):
        made.zero_grad()
        loss_of(model).backward()
        g = model.get_parameter(name).grad.double()
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        step = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
        expected = expected - lr * decay * expected - lr * step
        made.step()
    torch.testing.assert_close(model.get_parameter(name).detach().double(), expected, rtol=0, atol=1e-6)


def test_groups_carry_their_base_rate(start):
    for optimizer in ALL.values():
        groups = optimizer(start[0], lr=1e-3, head_lr=5e-3).param_groups
        assert {group["base_lr"] for group in groups} == {1e-3, 5e-3}
        assert all(group["lr"] == group["base_lr"] for group in groups)


def test_what_torch_would_refuse_is_refused_by_name(start):
    with pytest.raises(ConfigError, match=r"optimizer.nesterov.*momentum"):
        sgd(start[0], momentum=0.0, nesterov=True)
    for key, value in [("beta2_decay", 0.1), ("clip", 0.5)]:
        with pytest.raises(ConfigError, match=f"optimizer.{key}"):
            build({key: value}, adafactor, "optimizer")
    with pytest.raises(ConfigError, match="optimizer.betas"):
        build({"betas": [0.9, 1.0]}, adamw, "optimizer")
    with pytest.raises(ConfigError, match="fused"):
        build({"implementation": "fast"}, adamw, "optimizer")
