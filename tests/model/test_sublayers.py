"""Attention and feed-forward of every block, found by watching, against what people read in the code."""

import pytest
import torch
from tests.model.architectures import ARCHITECTURES, HEAD, TRUTHS, tiny

from whet.errors import ModelError
from whet.model.sublayers import Sublayer, sublayers
from whet.paths import Paths
from whet.peft.lora import lora

# architecture: below a block, (what attention reads), where it ends, (what feed-forward reads), where it ends
SELF = ("attention.self.query", "attention.self.key", "attention.self.value")
BERT = (SELF, "attention.output.dense", "intermediate.dense", "output.dense")
IN_BLOCK = {
    "bert": BERT,
    "roberta": BERT,
    "electra": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "deberta-v2": (tuple(f"{name}_proj" for name in SELF), *BERT[1:]),
    "distilbert": (
        tuple(f"attention.{x}_lin" for x in "qkv"), "attention.out_lin", "ffn.lin1", "ffn.lin2",
    ),
    "albert": (
        tuple(f"albert_layers.0.attention.{x}" for x in ("query", "key", "value")),
        "albert_layers.0.attention.dense", "albert_layers.0.ffn", "albert_layers.0.ffn_output",
    ),
    "mpnet": (tuple(f"attention.attn.{x}" for x in "qkv"), "attention.attn.o", *BERT[2:]),
    "modernbert": (("attn.Wqkv",), "attn.Wo", "mlp.Wi", "mlp.Wo"),
    "funnel": (
        tuple(f"attention.{x}_head" for x in "qkv"), "attention.post_proj", "ffn.linear_1", "ffn.linear_2",
    ),
    "gpt2": (("attn.c_attn",), "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
}  # fmt: skip


@pytest.fixture
def load(cache):
    def loaded(architecture):
        torch.manual_seed(1)
        return tiny(architecture).load(HEAD, Paths(cache=str(cache))).model

    return loaded


def under(block, *names):
    return tuple(f"{block}.{name}" for name in names)


@pytest.mark.parametrize("architecture", IN_BLOCK)
def test_each_block_has_one_of_each(architecture, load):
    found = sublayers(load(architecture))
    reads, end, start, last = IN_BLOCK[architecture]
    expected = []
    for block in TRUTHS[architecture].blocks:
        expected.append(Sublayer("attention", under(block, *reads), f"{block}.{end}"))
        expected.append(Sublayer("feed_forward", (f"{block}.{start}",), f"{block}.{last}"))
    assert found.found == tuple(expected)
    keys = [
        under(block, reads[-1] if len(reads) == 1 else reads[1])[0] for block in TRUTHS[architecture].blocks
    ]
    values = [under(block, reads[-1])[0] for block in TRUTHS[architecture].blocks]
    assert (list(found.keys), list(found.values)) == (keys, values)


def test_an_encoder_decoder_attends_twice(load):
    found, truth = sublayers(load("bart")), TRUTHS["bart"]
    expected = []
    for block in truth.blocks:
        for attention in ("self_attn", "encoder_attn")[: 1 + ("decoder" in block)]:
            reads = under(f"{block}.{attention}", "q_proj", "k_proj", "v_proj")
            expected.append(Sublayer("attention", reads, f"{block}.{attention}.out_proj"))
        expected.append(Sublayer("feed_forward", (f"{block}.fc1",), f"{block}.fc2"))
    assert found.found == tuple(expected)
    assert len(found.keys) == len(found.values) == 6
    assert all(name.endswith("k_proj") for name in found.keys)


def test_attention_without_linear_maps(load):
    found = sublayers(load("xlnet"))
    assert [s.kind for s in found.found] == ["feed_forward"] * 2
    assert [s.end for s in found.found] == [f"{block}.ff.layer_2" for block in TRUTHS["xlnet"].blocks]
    assert found.keys == found.values == ()


def test_all_architectures_are_looked_at():
    assert {*IN_BLOCK, "bart", "xlnet"} == set(ARCHITECTURES)


def test_a_wrapped_map_is_still_that_map(load):
    plain, wrapped = load("bert"), lora(load("bert"))
    state = torch.get_rng_state()
    assert sublayers(wrapped) == sublayers(plain)
    assert torch.equal(torch.get_rng_state(), state) and not [
        m for m in wrapped.modules() if m._forward_hooks
    ]


def test_no_blocks_no_sublayers(load):
    model = load("bert")
    with pytest.raises(
        ModelError, match="BertPooler doesn't run on tokens alone|no list of transformer blocks"
    ):
        sublayers(model.bert.pooler)
