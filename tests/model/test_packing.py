"""Packed rows against padded batches, texts alone, and formulas written out."""

import contextlib
import math
import random

import numpy as np
import pytest
import torch
from tests.model.architectures import (
    HEAD,
    METHODS,
    TRUTHS,
    batch_of,
    config,
    logits_of,
    parts_of,
    tiny,
    tiny_weights,
)
from torch import nn

from whet.model.encoder import Encoder
from whet.model.kernels import quicken
from whet.model.packing import (
    LENGTHS,
    Look,
    Segments,
    UnpackableError,
    attend,
    choose_kernel,
    jagged,
    pack_model,
    varlen,
)
from whet.model.tiny import TinyWeights
from whet.paths import Paths
from whet.peft.base import apply

PACKABLE = (
    "bert",
    "distilbert",
    "roberta",
    "albert",
    "electra",
    "xlm-roberta",
    "modernbert",
    "camembert",
    "gpt2",
)
"""By transformers' model code: attention is called through its interface, with nothing added to the scores."""


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


def load(architecture, paths, **settings):
    loaded = tiny(architecture, **settings).load(HEAD, paths)
    return loaded.model, loaded.tokenizer, loaded


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model.train()


def gradients(model, batch):
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(**batch.inputs).logits, batch.labels).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def shapes_into(module):
    """Shapes of what `module` gets from now on."""
    seen = []
    module.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    return seen


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("kernels", ["torch", "quick"])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_packed_logits_and_gradients_are_those_of_padded_batches(architecture, kernels, paths):
    model, tokenizer, _ = load(architecture, paths)
    without_dropout(model)
    if kernels == "quick":
        quicken(model)
    batch = batch_of(tokenizer)
    padded, wanted = logits_of(model, batch), gradients(model.train(), batch)
    packing = pack_model(model, batch.inputs, contextlib.nullcontext)
    top = model.get_submodule(TRUTHS[architecture].blocks[-1])
    seen = shapes_into(next(part for part in top.modules() if isinstance(part, nn.LayerNorm)))
    assert torch.equal(logits_of(model, batch), padded), "evaluation stays padded, to the bit"
    assert seen[-1][:2] == tuple(batch.inputs["input_ids"].shape)
    packing.everywhere = True
    packed = logits_of(model, batch)
    assert seen[-1][:2] == (1, batch.tokens), "the blocks see real tokens alone"
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-6)
    packing.everywhere = False
    found = gradients(model.train(), batch)
    assert seen[-1][:2] == (1, batch.tokens), "training is packed"
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("architecture", sorted({*TRUTHS} - {*PACKABLE}))
def test_other_architectures_are_refused_and_left_as_they_were(architecture, paths):
    model, tokenizer, _ = load(architecture, paths)
    batch = batch_of(tokenizer)
    before, attention = logits_of(model, batch), model.config._attn_implementation
    model.train()
    with pytest.raises(UnpackableError, match=r"attention apart from its blocks|decoder"):
        pack_model(model, batch.inputs, contextlib.nullcontext)
    assert model.training and model.config._attn_implementation == attention
    assert not model._forward_pre_hooks and torch.equal(logits_of(model, batch), before)


@pytest.mark.parametrize("architecture", PACKABLE)
def test_a_text_says_the_same_alone_and_whatever_stands_beside_it(architecture, paths):
    model, tokenizer, _ = load(architecture, paths)
    batch = batch_of(tokenizer)
    mask = batch.inputs["attention_mask"]
    packing = pack_model(model, batch.inputs, contextlib.nullcontext)
    packing.everywhere = True
    together = logits_of(model, batch)
    row, length = 1, int(mask[1].sum())
    others = batch.inputs["input_ids"].clone()
    change = (torch.arange(len(mask)) != row)[:, None] & (others > 4)
    batch.inputs["input_ids"] = torch.where(change, 5 + (others + 17) % 200, others)
    changed = logits_of(model, batch)
    assert torch.equal(changed[row], together[row]), "attention never crosses a boundary"
    assert not torch.isclose(changed[0], together[0]).all()
    alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.inputs.items()}
    packing.remove()
    with torch.no_grad():
        torch.testing.assert_close(model(**alone).logits[0], together[row], rtol=1e-4, atol=1e-6)


def test_left_padding_and_holes(paths):
    """Whatever the mask leaves out isn't seen."""
    model, tokenizer, _ = load("gpt2", paths)
    batch = batch_of(tokenizer)
    mask = batch.inputs["attention_mask"].flip(1).clone()
    mask[-1, 3] = 0
    batch.inputs = {name: tensor.flip(1) for name, tensor in batch.inputs.items()} | {"attention_mask": mask}
    padded = logits_of(model, batch)
    pack_model(model, batch.inputs, contextlib.nullcontext).everywhere = True
    torch.testing.assert_close(logits_of(model, batch), padded, rtol=1e-4, atol=1e-6)
    assert all(torch.isfinite(g).all() for g in gradients(model.train(), batch).values())


def test_windows_of_modernbert(paths):
    """Texts much longer than the window of its local layers."""
    options = {
        "local_attention": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "classifier_pooling": "mean",
    }
    weights = TinyWeights(architecture="modernbert", options=options)
    loaded = Encoder(name="x", weights=weights).load(HEAD, paths)
    batch = batch_of(loaded.tokenizer)
    padded = logits_of(loaded.model, batch)
    pack_model(loaded.model, batch.inputs, contextlib.nullcontext).everywhere = True
    torch.testing.assert_close(logits_of(loaded.model, batch), padded, rtol=1e-4, atol=1e-6)
    found = gradients(loaded.model.train(), batch)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_packed(method, paths):
    torch.manual_seed(0)
    _, tokenizer, loaded = load("bert", paths)
    model = apply(parts_of(config(method, tiny_weights("bert")))[1], loaded)
    without_dropout(model)
    batch = batch_of(tokenizer)
    wanted = gradients(model, batch)
    pack_model(model, batch.inputs, contextlib.nullcontext)
    found = gradients(model, batch)
    assert found.keys() == wanted.keys() and found
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_under_16_bit_autocast(paths):
    model, tokenizer, _ = load("bert", paths)
    quicken(without_dropout(model))
    batch = batch_of(tokenizer)

    def autocast():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    with autocast():
        padded = logits_of(model, batch).float()
    packing = pack_model(model, batch.inputs, autocast)
    packing.everywhere = True
    with autocast():
        packed = logits_of(model, batch).float()
    torch.testing.assert_close(packed, padded, rtol=2e-2, atol=1e-3)


def test_a_block_that_looks_across_the_row_is_found_out(paths):
    model, tokenizer, _ = load("bert", paths)
    batch = batch_of(tokenizer)
    block = model.get_submodule("bert.encoder.layer.0")
    block.output.register_forward_hook(lambda _, args, output: output + output.mean(1, keepdim=True))
    before = logits_of(model, batch)
    with pytest.raises(UnpackableError, match="packed logits differ from padded ones by up to"):
        pack_model(model, batch.inputs, contextlib.nullcontext)
    assert torch.equal(logits_of(model, batch), before)
    assert not block._forward_pre_hooks and model.config._attn_implementation == "sdpa"


def test_a_step_that_is_no_number_is_found_out(paths):
    """Some kernels are used with dropout only: so one training step is tried too."""
    model, tokenizer, _ = load("bert", paths)
    batch = batch_of(tokenizer)
    norm = model.bert.encoder.layer[0].output.LayerNorm
    norm.register_full_backward_pre_hook(lambda _, grads: tuple(grad / 0 for grad in grads))
    state = torch.random.get_rng_state()
    with pytest.raises(UnpackableError, match="gradients of packed rows aren't finite"):
        pack_model(model.train(), batch.inputs, contextlib.nullcontext)
    assert torch.equal(torch.random.get_rng_state(), state) and not model._forward_pre_hooks


def test_a_block_that_breaks_on_a_row_is_named(paths):
    model, tokenizer, _ = load("bert", paths)
    batch = batch_of(tokenizer)
    width = batch.inputs["input_ids"].shape[1]
    block = model.get_submodule("bert.encoder.layer.1")
    block.register_forward_hook(lambda _, args, output: output + torch.zeros(width, 1))
    with pytest.raises(UnpackableError, match=r"don't run on a packed row \(The size of tensor"):
        pack_model(model, batch.inputs, contextlib.nullcontext)
    assert not model._forward_pre_hooks


def test_a_model_with_eager_attention_keeps_it(paths):
    model, tokenizer, _ = load("bert", paths, attention="eager")
    with pytest.raises(UnpackableError, match="runs eager attention, not sdpa"):
        pack_model(model, batch_of(tokenizer).inputs, contextlib.nullcontext)


def test_skipped_blocks_are_an_error_not_a_wrong_answer(paths):
    model, tokenizer, _ = load("bert", paths)
    batch = batch_of(tokenizer)
    pack_model(model, batch.inputs, contextlib.nullcontext)
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    with pytest.raises((UnpackableError, RuntimeError, IndexError)):
        model.train()(**batch.inputs)


def test_nothing_of_it_is_saved(paths, tmp_path):
    model, tokenizer, _ = load("bert", paths)
    names = list(model.state_dict())
    pack_model(model, batch_of(tokenizer).inputs, contextlib.nullcontext)
    model.config.save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert list(model.state_dict()) == names


def test_batches_without_padding_stay_batches(paths):
    model, tokenizer, _ = load("bert", paths)
    batch = batch_of(tokenizer)
    pack_model(model, batch.inputs, contextlib.nullcontext)
    full = {name: tensor[-1:].repeat(3, 1) for name, tensor in batch.inputs.items()}
    width = int(full["attention_mask"][0].sum())
    full = {name: tensor[:, :width] for name, tensor in full.items()}
    seen = shapes_into(model.bert.encoder.layer[1].intermediate)
    model.train()(**full)
    assert seen[-1][:2] == (3, width)


# ---------------------------------------------------------------- boundaries


def masks():
    rng = random.Random(0)
    right = torch.tensor([[1] * n + [0] * (7 - n) for n in (3, 7, 1, 3)])
    holes = torch.tensor([[rng.randint(0, 1) for _ in range(7)] for _ in range(5)])
    return {
        "right": right,
        "left": right.flip(1),
        "holes": holes,
        "an empty text": torch.tensor([[1, 1], [0, 0], [1, 0]]),
        "one text": torch.ones(1, 4),
    }


@pytest.mark.parametrize("name", masks())
def test_segments_against_a_loop(name):
    mask = masks()[name].long()
    batch, width = mask.shape
    segments = Segments.of(mask)
    values = torch.randn(batch, width, 2, dtype=torch.float64)
    tokens = [values[b, w] for b in range(batch) for w in range(width) if mask[b, w]]
    row = segments.pack(values)
    assert torch.equal(row, torch.stack(tokens)[None])
    assert torch.equal(segments.unpack(row), values * mask[..., None])
    ends = np.cumsum([0, *mask.sum(1).tolist()])
    assert segments.starts.tolist() == list(ends) and segments.starts.dtype == torch.int32
    assert segments.lengths == tuple(mask.sum(1).tolist()) and segments.shape == (batch, width)
    tight = segments.tight
    longest = int(mask.sum(1).max())
    assert tight.shape == (batch, longest)
    for text, real, spread in zip(values, mask.bool(), tight.unpack(row), strict=True):
        assert torch.equal(spread[: real.sum()], text[real]) and not spread[real.sum() :].any()
    assert torch.equal(tight.pack(tight.unpack(row)), row)
    same = torch.randn(1, width, 3)
    assert torch.equal(segments.pack(same), segments.pack(same.expand(batch, width, 3)))


def test_known_lengths_are_not_read_from_the_device():
    """A tensor on `meta` has no values to read."""
    mask = torch.ones(3, 5, device="meta")
    setattr(mask, LENGTHS, [2, 5, 1])
    segments = Segments.of(mask)
    assert segments.lengths == (2, 5, 1) and segments.places.shape == (8,)
    with pytest.raises((RuntimeError, NotImplementedError)):
        Segments.of(torch.ones(3, 5, device="meta"))


# ---------------------------------------------------------------- attention


class Layer(nn.Module):
    """What an attention layer is asked for."""

    def __init__(self, is_causal=False, groups=1):
        super().__init__()
        self.is_causal, self.num_key_value_groups = is_causal, groups


def brute(query, key, value, lengths, look):
    """Attention text by text and query by query."""
    groups = query.shape[1] // key.shape[1]
    out, start = torch.zeros(query.shape[2], query.shape[1], query.shape[3], dtype=query.dtype), 0
    scale = 1 / math.sqrt(query.shape[3]) if look.scaling is None else look.scaling
    for length in lengths:
        for head in range(query.shape[1]):
            for i in range(length):
                seen = [
                    j
                    for j in range(length)
                    if (j <= i or not look.causal) and (look.window is None or abs(i - j) < look.window)
                ]
                k, v = (t[0, head // groups, start : start + length][seen] for t in (key, value))
                weights = torch.softmax(k @ query[0, head, start + i] * scale, 0)
                out[start + i, head] = weights @ v
        start += length
    return out[None]


def sdpa():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward


LOOKS = {
    "all": Look(0.0, None, False, None),
    "scaled": Look(0.0, 0.7, False, None),
    "causal": Look(0.0, None, True, None),
    "window": Look(0.0, None, False, 3),
    "causal window": Look(0.0, None, True, 2),
}
LENGTHS_OF_TEXTS = (4, 9, 0, 1, 9)


def tensors(groups=1, heads=4, dim=8, **kind):
    torch.manual_seed(0)
    total = sum(LENGTHS_OF_TEXTS)
    shapes = [(1, heads, total, dim), *[(1, heads // groups, total, dim)] * 2]
    return [torch.randn(shape, **kind).requires_grad_() for shape in shapes]


def segments_of(lengths=LENGTHS_OF_TEXTS, device="cpu"):
    width = max(lengths) + 1
    rows = [[1] * n + [0] * (width - n) for n in lengths]
    return Segments.of(torch.tensor(rows, device=device))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", LOOKS)
def test_attention_against_a_loop(name, groups):
    look = LOOKS[name]
    query, key, value = tensors(groups, dtype=torch.float64)
    found, weights = attend(
        sdpa(), Layer(look.causal, groups), query, key, value, None,
        scaling=look.scaling, sliding_window=look.window, segments=segments_of(),
    )  # fmt: skip
    wanted = brute(query, key, value, LENGTHS_OF_TEXTS, look)
    assert weights is None
    torch.testing.assert_close(found, wanted)
    given = (query, key, value)
    made, true = (torch.autograd.grad(out.square().sum(), given) for out in (found, wanted))
    torch.testing.assert_close(made, true)


@pytest.mark.parametrize("name", ["all", "scaled"])
def test_nested_tensors_against_a_loop(name):
    """What is around the nested tensors; on a CPU torch has no causal kernel for them."""
    look = LOOKS[name]
    lengths = tuple(length for length in LENGTHS_OF_TEXTS if length)
    query, key, value = tensors(dtype=torch.float64)
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    found = jagged(*rows, segments_of(lengths), look)
    torch.testing.assert_close(found[None], brute(query, key, value, lengths, look))


def test_dropout_of_packed_weights():
    """On average the weights stay: mean over many passes; and each pass differs."""
    query, key, value = tensors(dtype=torch.float64)
    segments = segments_of()

    def once(dropout):
        return attend(sdpa(), Layer(), query, key, value, None, dropout=dropout, segments=segments)[
            0
        ].detach()

    passes = torch.stack([once(0.5) for _ in range(400)])
    assert not torch.equal(passes[0], passes[1])
    error = passes.std(0) / math.sqrt(len(passes))
    assert ((passes.mean(0) - once(0.0)).abs() <= 6 * error + 1e-12).all()


@pytest.mark.parametrize("name", ["position_bias", "softcap"])
def test_changed_scores_are_refused(name):
    with pytest.raises(UnpackableError, match=f"adds {name} to the scores"):
        attend(sdpa(), Layer(), *tensors(), None, segments=segments_of(), **{name: torch.ones(1)})


def test_kernels_by_device():
    """A CPU has none for texts of unequal length."""
    assert choose_kernel(torch.zeros(3, 2, 8), LOOKS["all"]) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", LOOKS)
def test_cuda_kernels_against_a_loop(name):
    look = LOOKS[name]
    query, key, value = tensors()
    wanted = brute(query, key, value, LENGTHS_OF_TEXTS, look)
    half = [tensor[0].transpose(0, 1).cuda().bfloat16() for tensor in (query, key, value)]
    assert choose_kernel(half[0], look) is varlen
    found = varlen(*half, segments_of(device="cuda"), look)
    torch.testing.assert_close(found[None].float().cpu(), wanted, rtol=2e-2, atol=2e-2)
    if look.window is None:
        whole = [tensor.float() for tensor in half]
        assert choose_kernel(whole[0], look) is jagged
        found = jagged(*whole, segments_of(device="cuda"), look)
        torch.testing.assert_close(found[None].cpu(), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("architecture", PACKABLE)
def test_packed_on_cuda(architecture, paths):
    model, tokenizer, _ = load(architecture, paths)
    model.cuda()
    batch = batch_of(tokenizer)
    batch.inputs = {key: tensor.cuda() for key, tensor in batch.inputs.items()}
    pack_model(model, batch.inputs, lambda: torch.autocast("cuda", dtype=torch.bfloat16))
