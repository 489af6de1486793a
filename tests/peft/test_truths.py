"""Each method against its equation, written out on a model of its own."""

import copy
import math

import pytest
import torch
from tests.model.architectures import ARCHITECTURES, HEAD, TRUTHS, batch_of, logits_of, tiny, train
from torch import nn

from whet.errors import ConfigError, ModelError
from whet.paths import Paths
from whet.peft.base import apply, trained_names
from whet.peft.bottleneck import bottleneck
from whet.peft.compacter import compacter
from whet.peft.compose import compose
from whet.peft.dora import dora
from whet.peft.ia3 import ia3
from whet.peft.layer_norm import layer_norm
from whet.peft.lora import lora
from whet.peft.p_tuning import p_tuning
from whet.peft.prefix import prefix
from whet.peft.prompt import prompt, soft_tokens
from whet.peft.rslora import rslora
from whet.peft.unipelt import unipelt
from whet.peft.vera import vera


@pytest.fixture
def load(cache):
    def loaded(architecture, seed=1, **settings):
        torch.manual_seed(seed)
        return tiny(architecture, **settings).load(HEAD, Paths(cache=str(cache)))

    return loaded


def shake(model, scale=0.3):
    """Put random numbers into all that a method added."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.requires_grad and not name.startswith("classifier"):
                tensor.add_(torch.randn_like(tensor) * scale)


# ---------------------------------------------------------------- norms


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layer_norm_trains_norms_and_head(architecture, load):
    loaded, head = load(architecture), set(TRUTHS[architecture].head)
    brute = {
        f"{name}.{part}"
        for name, module in loaded.model.named_modules()
        if type(module) is nn.LayerNorm
        for part, _ in module.named_parameters()
    }
    model = apply(layer_norm, loaded)
    assert set(trained_names(model)) == brute | head
    assert len(brute) >= 2 * len(TRUTHS[architecture].blocks) or architecture == "modernbert"


def test_layer_norm_needs_norms(load):
    model = load("bert").model
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, nn.Identity())
    with pytest.raises(ModelError, match="^peft=layer_norm: matches nothing in Bert.*choose peft=lora"):
        layer_norm(model)


# ---------------------------------------------------------------- low rank


def maps_of(model):
    return [(name, m) for name, m in model.named_modules() if hasattr(m, "base_layer")]


def test_rslora_scales_by_the_root_of_the_rank(load):
    model = rslora(load("bert").model, r=4, alpha=6.0, dropout=0.0)
    shake(model)
    (_, layer), *_ = maps_of(model.eval())
    x = torch.randn(3, 32)
    update = x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 6.0 / math.sqrt(4) * update)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_dora_is_length_times_direction(architecture, load):
    model = dora(load(architecture).model, r=4, alpha=6.0, dropout=0.0)
    shake(model)
    for _, layer in maps_of(model.eval())[:3]:
        base, x = layer.base_layer, torch.randn(3, layer.in_features)
        weight = base.weight if isinstance(base, nn.Linear) else base.weight.T
        moved = weight + 6.0 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        length = layer.lora_magnitude_vector["default"].weight.flatten()
        expected = x @ (length[:, None] * moved / moved.norm(dim=1, keepdim=True)).T + base.bias
        torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_vera_shares_its_matrices_and_trains_vectors(architecture, load):
    model = vera(load(architecture).model, r=5, d_initial=0.2, projection_seed=3)
    shake(model)
    layers = maps_of(model.eval())
    assert len({id(layer.vera_A["default"]) for _, layer in layers}) == 1
    assert all(t.ndim == 1 for n, t in model.named_parameters() if t.requires_grad and "vera" in n)
    for _, layer in layers[:3]:
        x = torch.randn(3, layer.in_features)
        a, b = layer.vera_A["default"][:, : layer.in_features], layer.vera_B["default"][: layer.out_features]
        d, scale = layer.vera_lambda_d["default"], layer.vera_lambda_b["default"]
        torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ (scale[:, None] * b * d @ a).T)
    other = vera(load(architecture).model, r=5, projection_seed=4)
    assert not torch.equal(maps_of(other)[0][1].vera_A["default"], layers[0][1].vera_A["default"])


# ---------------------------------------------------------------- IA3


@pytest.mark.parametrize("targets", ["all", "attention", "feed_forward"])
def test_ia3_scales_keys_values_and_inner_activations(targets, load):
    loaded = load("bert")
    plain = copy.deepcopy(loaded.model)
    model = apply(lambda m: ia3(m, targets=targets), loaded)
    shake(model)
    with torch.no_grad():
        for block, other in zip(model.bert.encoder.layer, plain.bert.encoder.layer, strict=True):
            if targets != "feed_forward":
                for name in ("key", "value"):
                    factor = getattr(block.attention.self, name).ia3_l["default"].flatten()
                    target = getattr(other.attention.self, name)
                    target.weight.mul_(factor[:, None])
                    target.bias.mul_(factor)
            if targets != "attention":
                other.output.dense.weight.mul_(block.output.dense.ia3_l["default"].flatten())
    batch = batch_of(loaded.tokenizer)
    torch.testing.assert_close(logits_of(model, batch), logits_of(plain, batch))
    per_block = {"all": 32 + 32 + 64, "attention": 64, "feed_forward": 64}[targets]
    assert sum(t.numel() for n, t in model.named_parameters() if "ia3" in n) == 2 * per_block


def test_ia3_needs_linear_maps(load):
    with pytest.raises(
        ModelError, match="peft.targets=all: matches nothing in XLNet.*peft.targets=feed_forward"
    ):
        ia3(load("xlnet").model)
    model = ia3(load("xlnet").model, targets="feed_forward")
    assert len([name for name in trained_names(model) if "ia3" in name]) == 2


# ---------------------------------------------------------------- adapters


def adapters_of(model, kind="bottleneck"):
    return {n.removesuffix(f".{kind}"): m for n, m in model.named_modules() if n.endswith(f".{kind}")}


FUNCTIONS = {"relu": torch.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu, "tanh": torch.tanh}


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_an_adapter_adds_its_formula(placement, activation, load):
    """The outputs of a block's sublayers, recomputed from what entered them."""
    loaded = load("bert")
    model = apply(
        lambda m: bottleneck(m, placement=placement, width=5, activation=activation, scale=1.5), loaded
    )
    shake(model)
    seen = {}
    block = model.bert.encoder.layer[1]
    hooks = [
        module.register_forward_hook(lambda m, a, out, name=name: seen.update({name: (a[0], out)}))
        for name, module in (("attention", block.attention.output.dense), ("in", block.intermediate.dense),
                             ("out", block.output.dense))
    ]  # fmt: skip
    logits_of(model, batch_of(loaded.tokenizer))
    for hook in hooks:
        hook.remove()
    found = adapters_of(model)
    assert len(found) == (4 if placement == "houlsby" else 2)

    def formula(adapter, h):
        inner = FUNCTIONS[activation](h @ adapter.down.weight.T + adapter.down.bias)
        return 1.5 * (inner @ adapter.up.weight.T + adapter.up.bias)

    places = {
        "out": block.output.dense,
        **({"attention": block.attention.output.dense} if placement == "houlsby" else {}),
    }
    for name, module in places.items():
        inputs, output = seen[name]
        h = inputs @ module.weight.T + module.bias
        read = seen["in"][0] if placement == "parallel" else h
        torch.testing.assert_close(output, h + formula(module.bottleneck, read), atol=1e-5, rtol=1e-4)
    if placement != "houlsby":
        assert not hasattr(block.attention.output.dense, "bottleneck")


def test_reduction_and_width(load):
    widths = [
        adapters_of(bottleneck(load("bert").model, **settings)).popitem()[1].down.out_features
        for settings in ({"reduction": 4}, {"reduction": 64}, {"reduction": 4, "width": 3})
    ]
    assert widths == [8, 1, 3]


def test_adapters_need_a_map_that_ends_the_sublayer(load):
    with pytest.raises(ModelError, match="peft.placement=houlsby: matches nothing in XLNet"):
        bottleneck(load("xlnet").model, placement="houlsby")
    assert len(adapters_of(bottleneck(load("xlnet").model))) == 2


def test_compacter_is_a_sum_of_kronecker_products(load):
    model = apply(lambda m: compacter(m, n=4, rank=2, width=8, scale=0.5, activation="tanh"), load("bert"))
    found = adapters_of(model, "compacter")
    assert len(found) == 4
    shake(model)
    rules = next(iter(found.values())).down.rules
    adapter = found["bert.encoder.layer.0.output.dense"]
    x = torch.randn(3, 32)

    def matrix(layer):
        assert layer.rules is rules, "all maps share the rules"
        return sum(torch.kron(rules[i], layer.s[i] @ layer.t[i]) for i in range(4))

    inner = torch.tanh(x @ matrix(adapter.down) + adapter.down.bias)
    expected = 0.5 * (inner @ matrix(adapter.up) + adapter.up.bias)
    torch.testing.assert_close(adapter(x), expected, atol=1e-5, rtol=1e-4)
    per_map = 4 * 2 * (32 // 4 + 8 // 4)
    added = sum(t.numel() for n, t in model.named_parameters() if "compacter" in n)
    assert added == 4**3 + 4 * (2 * per_map + 32 + 8)


def test_compacter_needs_multiples(load):
    with pytest.raises(
        ModelError, match="peft.n=5: hidden states are 32 wide and the bottleneck 5: both must be mult"
    ):
        compacter(load("bert").model, n=5)


# ---------------------------------------------------------------- prefix


def attention_by_hand(layer, hidden, prefix, mask):
    """BERT's self-attention with a prefix, from its definition."""
    batch, length, _ = hidden.shape
    q, k, v = (
        getattr(layer, name)(hidden).view(batch, length, 2, 16).transpose(1, 2)
        for name in ("query", "key", "value")
    )
    keys, values = prefix()
    k = torch.cat([keys.expand(batch, *keys.shape), k], 2)
    v = torch.cat([values.expand(batch, *values.shape), v], 2)
    scores = q @ k.transpose(-1, -2) / 4
    seen = torch.cat([torch.ones(batch, keys.shape[1]), mask.float()], 1)[:, None, None]
    weights = scores.masked_fill(seen == 0, -torch.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(batch, length, 32)


@pytest.mark.parametrize("settings", [{}, {"projection": 6}, {"init": "random"}])
def test_a_prefix_is_attended_to(settings, load):
    loaded = load("bert")
    model = apply(lambda m: prefix(m, tokens=3, **settings), loaded)
    shake(model)
    layer, seen = model.bert.encoder.layer[1].attention.self, {}
    hook = layer.register_forward_hook(lambda m, a, out: seen.update(h=a[0], out=out[0]))
    batch = batch_of(loaded.tokenizer)
    logits_of(model, batch)
    hook.remove()
    mask = batch.inputs["attention_mask"]
    expected = attention_by_hand(layer, seen["h"], layer.prefix, mask)
    torch.testing.assert_close(seen["out"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "modernbert", "albert", "bart"])
def test_a_prefix_of_words_is_what_the_model_makes_of_them(architecture, load):
    """Keys and values of the lowest layer, without anything trained."""
    loaded = load(architecture)
    plain = copy.deepcopy(loaded.model)
    model = apply(lambda m: prefix(m, tokens=4), loaded)
    layers = {n: m for n, m in model.named_modules() if type(m).__name__ == "Prefix"}
    assert all(part.shape == (2, 2, 4, 16) for part in (m.both for m in layers.values()))
    batch = batch_of(loaded.tokenizer)
    assert not torch.equal(logits_of(model, batch), logits_of(plain, batch))
    assert logits_of(model, batch).isfinite().all()


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "modernbert"])
def test_padding_beside_a_prefix_changes_nothing(architecture, load):
    """A text's logits are the same alone, where no mask is made, and beside longer ones."""
    loaded = load(architecture)
    model = apply(lambda m: prefix(m, tokens=3), loaded)
    shake(model)
    batch = batch_of(loaded.tokenizer)
    together = logits_of(model, batch)
    for row, mask in enumerate(batch.inputs["attention_mask"].bool()):
        alone = copy.copy(batch)
        alone.inputs = {name: tensor[row : row + 1, mask] for name, tensor in batch.inputs.items()}
        torch.testing.assert_close(logits_of(model, alone)[0], together[row], atol=1e-5, rtol=1e-4)


def test_a_decoder_sees_the_prefix_but_nothing_ahead(load):
    loaded = load("gpt2")
    model = apply(lambda m: prefix(m, tokens=3), loaded)
    batch = batch_of(loaded.tokenizer)
    ids = batch.inputs["input_ids"][-1:]
    model.eval()
    with torch.no_grad():
        states = [model.transformer(input_ids=ids[:, :n]).last_hidden_state for n in (4, ids.shape[1])]
    torch.testing.assert_close(states[0], states[1][:, :4], atol=1e-5, rtol=1e-4)


def test_eager_attention_is_told_to_go(load):
    with pytest.raises(
        ModelError, match="model.attention=eager: is eager, and a prefix needs sdpa: set model.att"
    ):
        prefix(load("bert", attention="eager").model)


@pytest.mark.parametrize("architecture", ["mpnet", "funnel", "xlnet", "deberta-v2"])
def test_attention_out_of_reach_is_refused(architecture, load):
    with pytest.raises(ModelError, match=f"peft=prefix: .*{architecture} out of reach; choose peft=prompt"):
        prefix(load(architecture).model)


# ---------------------------------------------------------------- prompts


def rows_of(batch):
    """Inputs of each text alone, without padding."""
    for row, mask in enumerate(batch.inputs["attention_mask"].bool()):
        yield {name: tensor[row : row + 1, mask] for name, tensor in batch.inputs.items()}


@pytest.mark.parametrize(
    "architecture", ["bert", "roberta", "deberta-v2", "modernbert", "distilbert", "electra"]
)
@pytest.mark.parametrize("method", [prompt, p_tuning])
def test_soft_tokens_stand_after_the_first(architecture, method, load):
    """The same as giving the plain model the vectors of [first, soft tokens, rest], a text at a time."""
    loaded = load(architecture)
    plain = copy.deepcopy(loaded.model).eval()
    model = apply(lambda m: method(m, tokens=3), loaded)
    assert soft_tokens(model) == 3 and soft_tokens(plain) == 0
    shake(model)
    batch = batch_of(loaded.tokenizer)
    for name in TRUTHS[architecture].head:
        plain.get_parameter(name).data.copy_(model.get_parameter(name))
    table, found = plain.get_input_embeddings(), logits_of(model, batch)
    soft = model.get_input_embeddings().prompt()[None]
    for row, inputs in enumerate(rows_of(batch)):
        words = table(inputs["input_ids"])
        longer = {"inputs_embeds": torch.cat([words[:, :1], soft, words[:, 1:]], 1)}
        longer["attention_mask"] = torch.ones(longer["inputs_embeds"].shape[:2])
        if "token_type_ids" in inputs:
            types = inputs["token_type_ids"]
            longer["token_type_ids"] = torch.cat([types[:, :1], types[:, :1].expand(-1, 3), types[:, 1:]], 1)
        with torch.no_grad():
            torch.testing.assert_close(plain(**longer).logits[0], found[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "xlnet"])
def test_soft_tokens_of_texts_read_to_their_end(architecture, load):
    """A decoder gets them first; XLNet pads on the left and reads its answer from the last token."""
    loaded = load(architecture)
    plain = copy.deepcopy(loaded.model).eval()
    model = apply(lambda m: prompt(m, tokens=3), loaded)
    shake(model)
    for name in TRUTHS[architecture].head:
        plain.get_parameter(name).data.copy_(model.get_parameter(name))
    table, batch = plain.get_input_embeddings(), batch_of(loaded.tokenizer)
    soft, found, first = (
        model.get_input_embeddings().prompt()[None],
        logits_of(model, batch),
        architecture == "gpt2",
    )
    for row, inputs in enumerate(rows_of(batch)):
        words, kept = table(inputs["input_ids"]), 0 if first else 1
        vectors = torch.cat([words[:, :kept], soft, words[:, kept:]], 1)
        with torch.no_grad():
            if first:
                expected = plain.score(plain.transformer(inputs_embeds=vectors).last_hidden_state[:, -1])
            else:
                types = inputs["token_type_ids"]
                types = torch.cat([types[:, :1], types[:, :1].expand(-1, 3), types[:, 1:]], 1)
                expected = plain(inputs_embeds=vectors, token_type_ids=types).logits
        torch.testing.assert_close(expected[0], found[row], atol=1e-4, rtol=1e-3)


def test_a_square_batch_of_a_model_that_turns_it(load):
    """As many texts as tokens: which way XLNet reads can't be seen from the shape."""
    loaded = load("xlnet")
    model = apply(lambda m: prompt(m, tokens=3), loaded)
    batch = batch_of(loaded.tokenizer, rows=8)
    inputs = {name: tensor[:, -5:].contiguous() for name, tensor in batch.inputs.items()}
    inputs["attention_mask"][:] = 1
    model.eval()
    with torch.no_grad():
        square, one = model(**inputs).logits, model(**{n: t[:1] for n, t in inputs.items()}).logits
    torch.testing.assert_close(square[:1], one, atol=1e-5, rtol=1e-4)


def test_prompts_start_from_words_or_not(load):
    table = load("bert").model.get_input_embeddings().weight
    words = prompt(load("bert").model, tokens=4).get_input_embeddings().prompt()
    random = prompt(load("bert").model, tokens=4, init="random").get_input_embeddings().prompt()
    assert all((row == table).all(1).any() for row in words)
    assert not any((row == table).all(1).any() for row in random) and random.abs().max() <= 0.5


def test_the_encoder_of_p_tuning(load):
    lstm, mlp = (p_tuning(load("bert").model, tokens=2, encoder=kind, hidden=6) for kind in ("lstm", "mlp"))
    assert any("lstm" in name for name in trained_names(lstm)) and not any(
        "lstm" in n for n in trained_names(mlp)
    )
    assert lstm.get_input_embeddings().prompt.encoder.lstm_head.hidden_size == 6


def test_soft_tokens_need_room(load):
    with pytest.raises(ModelError, match="peft.tokens=598: bert has 600 positions in all"):
        prompt(load("bert").model, tokens=598)
    loaded = load("bert")
    model = apply(lambda m: prompt(m, tokens=580), loaded)
    with pytest.raises(
        ModelError, match=r"peft.tokens=580: .*the model has 600 positions; set task.max_length=20"
    ):
        logits_of(model, batch_of(loaded.tokenizer))


def test_an_encoder_decoder_reads_twice(load):
    with pytest.raises(
        ModelError, match="peft=p_tuning: bart reads a text in encoder and decoder; choose peft=pre"
    ):
        p_tuning(load("bart").model)


# ---------------------------------------------------------------- together


def test_parts_train_together(load):
    parts = [lambda m: lora(m, r=2, dropout=0.0), layer_norm, lambda m: bottleneck(m, reduction=4)]
    model = apply(lambda m: compose(m, parts=parts), load("bert"))
    kinds = {"lora": 0, "LayerNorm": 0, "bottleneck": 0, "classifier": 0}
    for name in trained_names(model):
        kinds[next(kind for kind in kinds if kind in name)] += 1
    assert kinds == {"lora": 24, "LayerNorm": 10, "bottleneck": 8, "classifier": 2}


def test_parts_must_be_methods(load):
    from functools import partial

    from whet.optimizer.sgd import sgd

    with pytest.raises(ConfigError, match="peft.parts=.*: lists no method"):
        compose(load("bert").model, parts=[])
    with pytest.raises(ConfigError, match=r"peft.parts.1=whet.optimizer.sgd: a part is built by whet.peft"):
        compose(load("bert").model, parts=[partial(lora), partial(sgd)])
    with pytest.raises(ModelError, match="peft.parts: there are two of one kind at one place"):
        compose(load("bert").model, parts=[partial(bottleneck), partial(bottleneck)])


def gates_of(model):
    return [m for m in model.modules() if type(m).__name__ == "Gate"]


def set_gates(model, value):
    with torch.no_grad():
        for gate in gates_of(model):
            gate.map.weight.zero_()
            gate.map.bias.fill_(value)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_closed_gates_leave_the_pretrained_model_and_open_ones_the_parts(architecture, load):
    loaded = load(architecture)
    plain = copy.deepcopy(loaded.model)
    model = apply(unipelt, loaded)
    assert len(gates_of(model)) == (8 if architecture == "bert" else 6)  # query, value, adapter, prefix
    train(model, loaded.tokenizer)
    for name in TRUTHS[architecture].head:
        plain.get_parameter(name).data.copy_(model.get_parameter(name))
    batch = batch_of(loaded.tokenizer)
    set_gates(model, -1e4)
    torch.testing.assert_close(logits_of(model, batch), logits_of(plain, batch), atol=1e-5, rtol=1e-4)
    set_gates(model, 1e4)
    opened = logits_of(model, batch)
    assert not torch.allclose(opened, logits_of(plain, batch), atol=1e-3)
    for module in model.modules():  # the same parts without gates
        if type(module).__name__ in ("Prefix", "Adapter"):
            module.gate = None
        elif hasattr(module, "lora_B") and hasattr(module, "gate"):
            module.lora_B["default"]._forward_hooks.clear()
    torch.testing.assert_close(logits_of(model, batch), opened, atol=1e-5, rtol=1e-4)


def test_unipelt_needs_linear_maps_in_attention(load):
    with pytest.raises(ModelError, match="peft=unipelt: matches nothing in XLNet.*choose peft=lora"):
        unipelt(load("xlnet").model)
