"""Quick kernels do what torch's do: compared with torch's own, and with the formulas written out."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.model.architectures import ARCHITECTURES, HEAD, TRUTHS, batch_of, tiny
from torch import nn

from whet.engine.allocator import keep_freed_memory
from whet.model import kernels
from whet.model.kernels import (
    ATTENTION,
    QuickDropout,
    QuickLayerNorm,
    RowEmbedding,
    attention,
    clear_gradients,
    clip_gradients,
    dropout,
    keep_mask,
    quicken,
    touched_rows,
)
from whet.paths import Paths

RNG = np.random.default_rng(3)
FORMATS = [torch.float32, torch.bfloat16]


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


# ---------------------------------------------------------------- dropout


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_mask_keeps_its_share_independently(rate, size):
    torch.manual_seed(1)
    kept = keep_mask(torch.Size((400, 1001)), rate, size)
    assert kept.dtype.itemsize == size and set(kept.unique().tolist()) == {0, -1}
    drops = (kept == 0).double()
    sigma = math.sqrt(rate * (1 - rate) / drops.numel())
    assert abs(float(drops.mean()) - rate) < 5 * sigma
    for shift in (1, 2, 3, 4, 1001):  # no correlation with a neighbour, whichever word its bits are from
        flat = drops.flatten() - rate
        assert abs(float((flat[shift:] * flat[:-shift]).mean())) < 5 * rate * (1 - rate) / math.sqrt(
            len(flat)
        )


def test_masks_follow_from_torchs_seed_and_differ_from_call_to_call():
    def draw():
        torch.manual_seed(7)
        return keep_mask(torch.Size((64,)), 0.5, 2), keep_mask(torch.Size((64,)), 0.5, 2)

    (a, b), (c, d) = draw(), draw()
    assert torch.equal(a, c) and torch.equal(b, d) and not torch.equal(a, b)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("transposed", [False, True])
def test_dropout_scales_what_it_keeps_and_its_gradient_alike(dtype, transposed):
    values = torch.randn(31, 17).to(dtype)
    values = (values.t() if transposed else values).requires_grad_()
    out = dropout(values, 0.25)
    kept = out != 0
    assert 0.5 < float(kept.float().mean()) < 0.95
    assert torch.equal(out[kept], (values.detach() * (1 / 0.75))[kept])
    out.backward(torch.ones_like(out))
    assert torch.equal(
        values.grad, torch.where(kept, torch.tensor(1 / 0.75, dtype=dtype), torch.zeros((), dtype=dtype))
    )


def test_rates_at_the_ends():
    values = torch.randn(1000)
    assert torch.equal(dropout(values, 0.0), values)
    assert not dropout(values, 1.0).any()


def test_evaluation_drops_nothing_and_other_formats_go_to_torch():
    module = QuickDropout(0.5).eval()
    values = torch.randn(9)
    assert module(values) is values
    torch.manual_seed(0)
    ours = QuickDropout(0.5)(values.double())
    torch.manual_seed(0)
    assert torch.equal(ours, F.dropout(values.double(), 0.5))


# ---------------------------------------------------------------- layer norm


def test_layer_norm_is_torchs_without_autocast():
    values = torch.randn(5, 48)
    assert torch.equal(QuickLayerNorm(48)(values), nn.LayerNorm(48)(values))


@pytest.mark.parametrize("dtype", FORMATS)
def test_layer_norm_under_autocast_is_bf16_and_right(dtype):
    module, plain = QuickLayerNorm(48), nn.LayerNorm(48)
    for each in (module, plain):
        nn.init.normal_(each.weight, generator=torch.Generator().manual_seed(1))
    values = torch.randn(5, 48).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(values)
    assert out.dtype is torch.bfloat16
    assert torch.equal(out, plain(values.float()).to(torch.bfloat16))
    out.float().square().sum().backward()
    plain(values.float()).to(torch.bfloat16).float().square().sum().backward()
    assert torch.allclose(module.weight.grad, plain.weight.grad, rtol=0.01, atol=0.05)


# ---------------------------------------------------------------- attention


def written_out(q, k, v, mask):
    scores = np.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bhkd->bqhd", weights / weights.sum(-1, keepdims=True), v)


def given(dtype=torch.float32):
    q, k, v = (torch.from_numpy(RNG.normal(size=(3, 2, 7, 4))).to(dtype).requires_grad_() for _ in range(3))
    mask = torch.ones(3, 1, 7, 7, dtype=torch.bool)
    mask[1, :, :, 4:] = False
    return q, k, v, mask


@pytest.fixture(params=["whole", "portions"])
def way(request, monkeypatch):
    """Attention as it is computed for few scores, and as for many: here two texts at a time, then one."""
    if request.param == "portions":
        monkeypatch.setattr(kernels, "_BLOCKED", 0)
        monkeypatch.setattr(kernels, "_PORTION", 2 * 2 * 7 * 7)
    return request.param


@pytest.mark.parametrize("form", ["bool", "additive"])
@pytest.mark.parametrize("dtype", FORMATS)
def test_attention_is_the_formula_when_nothing_is_dropped(dtype, form, way):
    q, k, v, mask = given(dtype)
    bias = mask if form == "bool" else torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(dtype).min)
    out, _ = attention(nn.Module(), q, k, v, bias, dropout=1e-9, is_causal=False)
    right = written_out(*(x.detach().double().numpy() for x in (q, k, v)), mask.numpy())
    assert np.allclose(out.detach().double().numpy(), right, atol=1e-5 if dtype is torch.float32 else 0.03)


def test_attention_gradient_is_that_of_torchs_own(way):
    q, k, v, mask = given()
    ours, _ = attention(nn.Module(), q, k, v, mask, dropout=1e-9, is_causal=False, scaling=0.3)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3).transpose(1, 2)
    seed = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (q, k, v), seed), torch.autograd.grad(theirs, (q, k, v), seed), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)


def test_attention_drops_weights_not_outputs(way):
    torch.manual_seed(0)
    q, k, v, mask = (x.detach() for x in given())
    means = torch.stack(
        [attention(nn.Module(), q, k, v, mask, dropout=0.3, is_causal=False)[0] for _ in range(4000)]
    )
    right = attention(nn.Module(), q, k, v, mask, dropout=0.0, is_causal=False)[0]
    assert torch.allclose(means.mean(0), right, atol=0.1) and float(means.std(0).min()) > 0.05


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("masked", [True, False])
def test_attention_in_portions_against_the_formula_with_its_own_mask(dtype, masked, monkeypatch):
    """The signs say what was dropped; with that mask output and gradients are those of the formula."""
    monkeypatch.setattr(kernels, "_BLOCKED", 0)
    monkeypatch.setattr(kernels, "_PORTION", 1)
    torch.manual_seed(2)
    q, k, v, mask = given(dtype)
    out, _ = attention(nn.Module(), q, k, v, mask if masked else None, dropout=0.4, is_causal=False)
    signed = out.grad_fn.saved_tensors[-1]
    kept = ~torch.signbit(signed)
    assert 0.5 < float(kept.float().mean()) < 0.7
    q2, k2, v2 = (x.detach().double().requires_grad_() for x in (q, k, v))
    scores = q2 @ k2.transpose(-1, -2) / 2
    scores = scores.masked_fill(~mask, -torch.inf) if masked else scores
    right = ((torch.softmax(scores, -1) * kept / 0.6) @ v2).transpose(1, 2)
    seed = torch.randn(out.shape, dtype=torch.float64)
    ours = torch.autograd.grad(out, (q, k, v), seed.to(dtype))
    theirs = torch.autograd.grad(right, (q2, k2, v2), seed)
    for a, b in zip((out, *ours), (right, *theirs), strict=True):
        assert float((a.double() - b).norm() / b.norm()) < (1e-5 if dtype is torch.float32 else 0.02)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", FORMATS)
def test_marks_come_at_their_rate_and_change_signs_only(rate, dtype):
    weights = torch.rand(3, 111, 113).to(dtype)
    marked = weights.clone()
    kernels._mark(marked, rate, np.random.SFC64(5))
    assert torch.equal(marked.abs(), weights)
    assert float(torch.signbit(marked).float().mean()) == pytest.approx(rate, abs=0.01)
    again = weights.clone()
    kernels._mark(again, rate, np.random.SFC64(5))
    assert torch.equal(again.view(torch.uint8), marked.view(torch.uint8))
    neighbours = torch.signbit(marked).double().flatten()
    if 0 < rate < 1:  # no lane's carry shows in the next one
        assert abs(float(np.corrcoef(neighbours[1:], neighbours[:-1])[0, 1])) < 0.02


def without_drops(model):
    """Every dropout at a rate that drops nothing and yet counts as dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1e-9
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 1e-9)
    return model


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_says_the_same(name, paths):
    """In evaluation to the bit; in training, nothing dropped, to rounding, gradients too."""
    results = []
    for choice in ("torch", "auto"):
        torch.manual_seed(4)
        loaded = tiny(name, kernels=choice).load(HEAD, paths)
        model = tiny(name, kernels=choice).tuned(without_drops(loaded.model))
        assert (model.config._attn_implementation == ATTENTION) == (choice == "auto" and TRUTHS[name].sdpa)
        batch = batch_of(loaded.tokenizer)
        before = model.eval()(**batch.inputs).logits
        after = model.train()(**batch.inputs).logits
        after.square().sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        results.append((before, after, torch.cat([g.flatten() for g in grads])))
    (a, b, c), (d, e, f) = results
    assert torch.equal(a, d)
    assert torch.allclose(b, e, atol=1e-5) and torch.allclose(c, f, atol=1e-4 * float(c.abs().max()))


# ---------------------------------------------------------------- embeddings


@pytest.fixture
def tables():
    """An ordinary table and a quick one of the same numbers."""
    plain, quick = nn.Embedding(50, 6, padding_idx=0), nn.Embedding(50, 6, padding_idx=0)
    quick.load_state_dict(plain.state_dict())
    quick.__class__ = RowEmbedding
    return plain, quick


IDS = [torch.tensor([[3, 3, 0], [7, 9, 3]]), torch.tensor([[4, 9, 0]]), torch.tensor([[0, 0, 0]])]


def test_the_gradient_is_the_dense_one_and_adds_up(tables):
    for table in tables:
        for ids in IDS:
            (table(ids) * torch.arange(6.0)).square().sum().backward()
    plain, quick = tables
    assert torch.allclose(plain.weight.grad, quick.weight.grad, atol=1e-6)
    assert touched_rows(quick.weight).tolist() == [0, 3, 4, 7, 9] and touched_rows(plain.weight) is None


def test_cleared_it_is_zero_in_the_same_memory(tables):
    _, quick = tables
    quick(IDS[0]).sum().backward()
    place = quick.weight.grad.data_ptr()
    clear_gradients([quick.weight])
    assert quick.weight.grad.data_ptr() == place and not quick.weight.grad.any()
    assert touched_rows(quick.weight).numel() == 0
    quick(IDS[1]).sum().backward()
    assert quick.weight.grad.nonzero()[:, 0].unique().tolist() == [4, 9]


def test_updates_are_those_of_the_ordinary_table(tables):
    for table in tables:
        optimizer = torch.optim.AdamW(table.parameters(), lr=0.1, weight_decay=0.1, fused=True)
        for ids in IDS * 3:
            clear_gradients(table.parameters())
            table(ids).sin().sum().backward()
            clip_gradients(list(table.parameters()), 0.7)
            optimizer.step()
    assert torch.allclose(tables[0].weight, tables[1].weight, atol=1e-6)


def test_frozen_or_unwatched_it_leaves_no_gradient(tables):
    _, quick = tables
    with torch.no_grad():
        quick(IDS[0])
    quick.weight.requires_grad_(False)
    assert not quick(IDS[0]).requires_grad and quick.weight.grad is None


@pytest.mark.parametrize("most", [0.5, 1e9, math.inf])
def test_clipping_is_torchs(tables, most):
    norms = []
    for table in tables:
        linear = nn.Linear(6, 2, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.arange(12.0).view(2, 6))
        linear(table(IDS[0])).square().sum().backward()
        parameters = [*table.parameters(), *linear.parameters()]
        clip = clip_gradients if isinstance(table, RowEmbedding) else nn.utils.clip_grad_norm_
        norms.append((float(clip(parameters, most)), [p.grad for p in parameters]))
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-5)
    assert all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-6)
        for a, b in zip(norms[0][1], norms[1][1], strict=True)
        if a.shape != (2,)
    )


# ---------------------------------------------------------------- the exchange


def test_small_tables_odd_modules_and_names_stay(monkeypatch):
    class Mine(nn.LayerNorm):
        pass

    model = nn.ModuleDict({"a": nn.Embedding(10, 4), "b": Mine(4), "c": nn.Dropout(), "d": nn.LayerNorm(4)})
    names = list(model.state_dict())
    quicken(model)
    assert [type(m) for m in model.values()] == [nn.Embedding, Mine, QuickDropout, QuickLayerNorm]
    monkeypatch.setattr(kernels, "_LARGE", 40)
    quicken(model)
    assert type(model["a"]) is RowEmbedding and list(model.state_dict()) == names


def test_eager_attention_stays_eager(paths):
    encoder = tiny("bert", attention="eager")
    model = encoder.tuned(encoder.load(HEAD, paths).model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.skipif("linux" not in __import__("sys").platform, reason="glibc's allocator")
def test_the_allocator_takes_the_settings():
    assert keep_freed_memory()
