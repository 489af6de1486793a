"""Packing, recomputation and compilation change the time and memory of a step, not its outcome."""

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

from whet.data.batch import Collator
from whet.data.batching import Batching
from whet.data.tokens import encode
from whet.engine.precision import Amp
from whet.engine.speed import (
    PAYS,
    checkpoint_gradients,
    compile_model,
    make_traceable,
    need_compiler,
    probe,
    uncompiled,
    use_packing,
)
from whet.errors import ConfigError
from whet.model.encoder import Encoder
from whet.model.kernels import ATTENTION, QuickDropout, RowEmbedding, quicken
from whet.model.packing import pack_model
from whet.model.tiny import TinyWeights
from whet.paths import Paths
from whet.peft.base import apply

CPU = torch.device("cpu")
FP32 = Amp(CPU, "fp32")


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


def load(architecture, paths):
    loaded = tiny(architecture).load(HEAD, paths)
    return loaded.model, loaded.tokenizer


def collator_of(tokenizer, rows=40, longest=60):
    rng = random.Random(0)
    texts = [("x" * rng.randint(1, longest),) for _ in range(rows)]
    return Collator.of(encode(texts, tokenizer, 64), np.arange(rows) % 3, tokenizer, Batching())


def gradients(model, batch, seed=0):
    torch.manual_seed(seed)
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(**batch.inputs).logits, batch.labels).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def calls_of(module):
    """Grows by one with every call of `module`."""
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    return seen


# ---------------------------------------------------------------- packing


def packs(model, collator):
    """Whether the blocks get one row."""
    shapes = []
    hook = model.bert.encoder.layer[1].attention.register_forward_pre_hook(
        lambda _, args: shapes.append(args[0].shape[0])
    )
    model.train()(**collator(np.arange(8), CPU).inputs)
    hook.remove()
    return shapes == [1]


@pytest.mark.parametrize(
    ("choice", "padding", "blocked", "packed", "because"),
    [
        ("off", 0.9, "", False, None),
        ("auto", PAYS, "", True, None),
        ("auto", 0.05, "", False, "only 5.0% of the batches is padding, packing pays from 20% on"),
        ("auto", 0.9, "engine.compile is on", False, "engine.compile is on"),
        ("on", 0.0, "", True, None),
    ],
)
def test_when_batches_are_packed(choice, padding, blocked, packed, because, paths, told, caplog):
    caplog.set_level("INFO", "whet")
    model, tokenizer = load("bert", paths)
    collator = collator_of(tokenizer)
    facts = use_packing(choice, model, collator, FP32, padding, blocked)
    assert packs(model, collator) == packed == (facts["packing"] == "on")
    assert facts.get("because") == because
    line = {True: "packing on: ", False: f"packing off: {because}"}[packed]
    assert [message for message in told if message.startswith(line)] or choice == "off"


def test_what_cannot_be_packed_is_told_or_refused(paths, told, caplog):
    caplog.set_level("INFO", "whet")
    model, tokenizer = load("deberta-v2", paths)
    collator = collator_of(tokenizer)
    facts = use_packing("auto", model, collator, FP32, 0.5)
    assert facts["packing"] == "off" and "attention apart" in facts["because"]
    assert any(message.startswith("packing off: transformers doesn't keep") for message in told)
    with pytest.raises(ConfigError, match=r"engine\.packing=on: deberta-v2 can't be packed: transformers"):
        use_packing("on", model, collator, FP32, 0.5)
    with pytest.raises(ConfigError, match=r"engine\.packing=on: deberta-v2 can't be packed: a reason"):
        use_packing("on", model, collator, FP32, 0.5, blocked="a reason")


@pytest.mark.parametrize("count", [1, 2, 5, 8, 100])
def test_probed_rows_span_all_lengths(count):
    lengths = np.random.default_rng(0).integers(3, 50, count)
    rows = probe(lengths)
    assert len(rows) == min(count, 8) == len(set(rows.tolist()))
    assert {lengths.min(), lengths.max()} <= set(lengths[rows].tolist())
    assert count < 5 or (np.diff(lengths[rows]) < 0).any(), "not sorted"


# ---------------------------------------------------------------- recomputation


WITHOUT = {"albert", "mpnet", "funnel", "xlnet"}
"""By transformers' model code: no `supports_gradient_checkpointing`."""


@pytest.mark.parametrize("kernels", ["torch", "quick"])
@pytest.mark.parametrize("architecture", sorted({*TRUTHS} - WITHOUT))
def test_recomputed_gradients_are_equal_to_the_bit(architecture, kernels, paths):
    """With dropout on."""
    loaded = tiny(architecture, dropout=0.1).load(HEAD, paths)
    model, tokenizer = loaded.model, loaded.tokenizer
    if kernels == "quick":
        quicken(model)
    batch = batch_of(tokenizer)
    wanted, other = gradients(model.train(), batch), gradients(model, batch, seed=1)
    assert not equal(wanted, other), "dropout is on"
    block = model.get_submodule(TRUTHS[architecture].blocks[0])
    calls = calls_of(next(part for part in block.modules() if isinstance(part, nn.LayerNorm)))
    checkpoint_gradients(model)
    assert equal(gradients(model, batch), wanted)
    assert len(calls) == 2, "the block ran again in the backward pass"


@pytest.mark.parametrize("architecture", sorted(WITHOUT))
def test_architectures_without_recomputation(architecture, paths):
    model, _ = load(architecture, paths)
    with pytest.raises(
        ConfigError, match=rf"engine\.gradient_checkpointing=True: .* for {architecture}; leave it false"
    ):
        checkpoint_gradients(model)


@pytest.mark.parametrize("method", METHODS)
def test_recomputation_under_every_method(method, paths):
    """Frozen embeddings still give gradients above; what lies below all trained parameters runs once."""
    loaded = tiny("bert").load(HEAD, paths)
    model = apply(parts_of(config(method, tiny_weights("bert")))[1], loaded).train()
    batch = batch_of(loaded.tokenizer)
    wanted = gradients(model, batch)
    calls = [calls_of(block.attention.output.LayerNorm) for block in model.bert.encoder.layer]
    checkpoint_gradients(model)
    found = gradients(model, batch)
    assert found and equal(found, wanted)
    assert [len(seen) for seen in calls] == ([1, 2] if method == "top_layers" else [2, 2])


def test_recomputation_saves_memory(paths):
    """Bytes that autograd keeps between the passes."""
    model, tokenizer = load("bert", paths)
    batch = batch_of(tokenizer, rows=12)

    def kept():
        held = {}

        def note(tensor):
            held[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model.train()(**batch.inputs)
        return sum(held.values())

    before = kept()
    checkpoint_gradients(model)
    assert kept() < before / 2


def test_packed_rows_are_recomputed_to_the_bit(paths):
    model, tokenizer = load("bert", paths)
    batch = batch_of(tokenizer)
    model.train()
    pack_model(model, batch.inputs, FP32.autocast)
    wanted = gradients(model, batch)
    checkpoint_gradients(model)
    assert equal(gradients(model, batch), wanted)


# ---------------------------------------------------------------- compilation


def small(paths, **options):
    """One block: little to compile."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    weights = TinyWeights(architecture="bert", options={"num_hidden_layers": 1, **still, **options})
    loaded = Encoder(name="small", weights=weights).load(HEAD, paths)
    return loaded.model, collator_of(loaded.tokenizer)


def assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.slow
def test_compiled_steps_are_close_in_few_graphs(paths):
    """Traced and differentiated as for any backend, then run by torch itself: no compiler needed."""
    from torch._dynamo.utils import counters

    model, collator = small(paths)
    quicken(model)
    sizes = [(0, 3), (3, 10), (10, 15), (15, 17), (17, 30), (30, 31)]
    batches = [collator(np.arange(*size), CPU) for size in sizes]
    assert len({batch.inputs["input_ids"].shape for batch in batches}) == len(batches)
    names, before = list(model.state_dict()), logits_of(model, batches[0])
    wanted = [gradients(model.train(), batch) for batch in batches]
    torch._dynamo.reset()
    counters.clear()
    compile_model(model, True, backend="aot_eager")
    for batch, gradient in zip(batches, wanted, strict=True):
        assert_close(gradients(model.train(), batch), gradient)
    assert counters["stats"]["unique_graphs"] == 2, "one for a single row, one for more"
    assert not counters["graph_break"]
    assert list(model.state_dict()) == names
    with uncompiled():
        assert torch.equal(logits_of(model, batches[0]), before), "evaluation is the exported model's"
    assert counters["stats"]["unique_graphs"] == 2


def test_the_mode_reaches_the_compiler(paths):
    model, collator = small(paths)
    seen = []

    def compiler(graph, _, mode=None):
        seen.append(mode)
        return graph.forward

    for choice in (True, "reduce-overhead"):
        torch._dynamo.reset()
        compile_model(model, choice, backend=compiler)
        model(**collator(np.arange(3), CPU).inputs)
    assert seen == [None, "reduce-overhead"]


def test_what_cannot_be_traced_gives_way(paths):
    model, tokenizer = load("bert", paths)
    quicken(model)
    batch = batch_of(tokenizer)
    before = logits_of(model, batch)
    model.bert.embeddings.word_embeddings.__class__ = RowEmbedding
    make_traceable(model)
    kinds = {type(module) for module in model.modules()}
    assert not kinds & {QuickDropout, RowEmbedding} and {nn.Dropout, nn.Embedding} <= kinds
    assert model.config._attn_implementation != ATTENTION
    assert torch.equal(logits_of(model, batch), before)


def test_false_compiles_nothing(paths):
    model, _ = small(paths)
    quicken(model)
    compile_model(model, False)
    assert model._compiled_call_impl is None and model.config._attn_implementation == ATTENTION


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"engine\.compile=True: needs a C\+\+ compiler, and there is no g"):
        need_compiler(CPU)
    monkeypatch.setenv("CXX", "nocompiler")
    with pytest.raises(ConfigError, match="there is no nocompiler"):
        need_compiler(CPU)
    compiler = tmp_path / "nocompiler"
    compiler.write_text("#!/bin/sh\n", encoding="utf-8")
    compiler.chmod(0o755)
    need_compiler(CPU)


def test_a_gpu_needs_triton(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(ConfigError, match=r"engine\.compile=True: needs the package triton"):
        need_compiler(torch.device("cuda"))
