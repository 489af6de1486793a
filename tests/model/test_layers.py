"""What whet finds in a model by looking, against tables written by hand."""

import pytest
import torch
from tests.model.architectures import ARCHITECTURES, HEAD, TRUTHS, tiny, true_depth
from torch import nn

from whet.errors import ModelError
from whet.model.layers import anatomy, describe_training, head_parameters, linear_layers
from whet.paths import Paths
from whet.peft.base import freeze


@pytest.fixture
def paths(cache):
    return Paths(cache=str(cache))


def load(architecture, paths):
    return tiny(architecture).load(HEAD, paths).model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_has_its_depth(architecture, paths):
    model, truth = load(architecture, paths), TRUTHS[architecture]
    parts = anatomy(model)
    assert parts.blocks == tuple((prefix,) for prefix in truth.blocks)
    assert parts.layers == len(truth.blocks)
    assert parts.depth == {name: true_depth(name, truth) for name, _ in model.named_parameters()}
    assert parts.head == set(truth.head) == set(head_parameters(model))
    assert {parts.depth[name] for name in truth.head} == {parts.layers + 1}
    assert parts.depth[name_of(model, model.get_input_embeddings().weight)] == 0


def name_of(model, wanted):
    return next(name for name, tensor in model.named_parameters() if tensor is wanted)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_linear_layers_are_those_inside_the_blocks(architecture, paths):
    model, truth = load(architecture, paths), TRUTHS[architecture]
    brute = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D")
        and name.startswith(tuple(f"{b}." for b in truth.blocks))
    ]
    assert linear_layers(model) == brute
    assert len(brute) == truth.linear


class Trunk(nn.Module):
    """XLM's layout: parts of a block in sibling lists."""

    def __init__(self):
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(4))
        self.table = nn.Embedding(5, 4)
        self.norm_of_table = nn.LayerNorm(4)
        self.attentions = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))
        self.fillers = nn.ModuleList(nn.Identity() for _ in range(7))
        self.ln = nn.LayerNorm(4)
        self.positions = nn.Embedding(5, 4)
        self.norm_of_positions = nn.LayerNorm(4)
        self.last = nn.Linear(4, 4)


class Whole(nn.Module):
    base_model_prefix = "trunk"

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])
        self.trunk = Trunk()


def test_sibling_lists_are_parts_of_the_same_blocks():
    parts = anatomy(Whole())
    assert parts.blocks == tuple((f"trunk.attentions.{n}", f"trunk.norms.{n}") for n in range(3))
    found = {
        name.removesuffix(".weight"): depth for name, depth in parts.depth.items() if name.endswith("weight")
    }
    assert parts.depth["trunk.mask"] == 0
    assert found == {
        "heads.0": 4,
        "heads.1": 4,
        "trunk.table": 0,
        "trunk.norm_of_table": 0,
        **{f"trunk.attentions.{n}": n + 1 for n in range(3)},
        **{f"trunk.norms.{n}": n + 1 for n in range(3)},
        "trunk.ln": 4,
        "trunk.positions": 0,
        "trunk.norm_of_positions": 0,
        "trunk.last": 4,
    }


@pytest.mark.parametrize("architecture", ["opt", "xlm", "mobilebert"])
def test_further_layouts(architecture, paths):
    from whet.model.encoder import Encoder
    from whet.model.tiny import TinyWeights

    model = Encoder(name="x", weights=TinyWeights(architecture=architecture)).load(HEAD, paths).model
    parts = anatomy(model)
    assert parts.layers == 2
    where = {
        "opt": {
            "model.decoder.final_layer_norm.weight": 3,
            "model.decoder.embed_positions.weight": 0,
            "score.weight": 3,
        },
        "xlm": {"transformer.layer_norm_emb.weight": 0, "transformer.ffns.1.lin1.weight": 2},
        "mobilebert": {"mobilebert.encoder.layer.0.ffn.1.output.dense.weight": 1},
    }[architecture]
    assert {name: parts.depth[name] for name in where} == where


def test_no_blocks_is_an_error():
    with pytest.raises(ModelError, match=r"no list of transformer blocks found in Sequential"):
        anatomy(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_table_of_what_trains_adds_up(architecture, paths):
    model, truth = load(architecture, paths), TRUTHS[architecture]
    freeze(model)
    for name in truth.head:
        model.get_parameter(name).requires_grad_(True)
    rows = describe_training(model, frozenset(truth.head))
    assert sum(total for _, total, _ in rows) == sum(tensor.numel() for tensor in model.parameters())
    assert {part: trained for part, _, trained in rows if trained} == {
        "head": sum(model.get_parameter(name).numel() for name in truth.head)
    }
    blocks = [f"block {number}" for number in range(1, len(truth.blocks) + 1)]
    assert [part for part, _, _ in rows] == [
        "embeddings",
        *blocks,
        *["after the blocks"][: bool(truth.above)],
        "head",
    ]


def test_the_table_names_a_new_pooler(paths):
    model = load("bert", paths)
    rows = {
        part: total for part, total, _ in describe_training(model, frozenset({"bert.pooler.dense.weight"}))
    }
    assert rows["after the blocks, new"] == 32 * 32 and rows["after the blocks"] == 32
    assert torch.is_tensor(model.bert.pooler.dense.weight)
