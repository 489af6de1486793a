"""Fourteen architectures and what is true of them, written down by hand from transformers' model code.

Nothing here is computed with whet: the tests compare what whet finds by looking with these tables.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from whet.config import Method, build
from whet.data.batch import Collator
from whet.data.batching import Batching
from whet.data.tokens import encode
from whet.model.encoder import Encoder
from whet.model.tiny import TinyWeights
from whet.task.base import Head, Task

torch.set_num_threads(1)

NAMES = ("bad", "fair", "good")
HEAD = Head(3, "single_label_classification", NAMES)


@dataclass(frozen=True)
class Truth:
    """What a person reads in the code of one architecture."""

    blocks: tuple[str, ...]
    """Module of each block, bottom first."""
    above: tuple[str, ...] = ()
    """Parameters of the trunk above its blocks."""
    head: tuple[str, ...] = ("classifier.weight", "classifier.bias")
    linear: int = 12
    """Linear maps in all blocks."""
    attention: int = 8
    """Those of them that belong to attention."""
    sdpa: bool = True
    """transformers has scaled_dot_product_attention for it."""
    head_dropout: bool = True
    idle: frozenset[str] = frozenset()
    """Parameters that no classification gives a gradient."""
    options: dict[str, Any] = field(default_factory=dict)


def two(prefix):
    return (f"{prefix}.0", f"{prefix}.1")


def dense(*names):
    return tuple(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))


POOLED = dense("classifier.dense", "classifier.out_proj")
TRUTHS = {
    "bert": Truth(two("bert.encoder.layer"), above=dense("bert.pooler.dense")),
    "distilbert": Truth(two("distilbert.transformer.layer"), head=dense("pre_classifier", "classifier")),
    "roberta": Truth(two("roberta.encoder.layer"), head=POOLED),
    "albert": Truth(
        ("albert.encoder.albert_layer_groups.0",), above=dense("albert.pooler"), linear=6, attention=4
    ),
    "electra": Truth(two("electra.encoder.layer"), head=POOLED),
    "deberta-v2": Truth(two("deberta.encoder.layer"), head=dense("pooler.dense", "classifier"), sdpa=False),
    "mpnet": Truth(two("mpnet.encoder.layer"), head=POOLED, sdpa=False),
    "xlm-roberta": Truth(two("roberta.encoder.layer"), head=POOLED),
    "modernbert": Truth(
        two("model.layers"),
        above=("model.final_norm.weight",),
        head=("head.dense.weight", "head.norm.weight", *dense("classifier")),
        linear=8,
        attention=4,
    ),
    "funnel": Truth(
        ("funnel.encoder.blocks.0.0", "funnel.encoder.blocks.0.1", "funnel.encoder.blocks.1.0"),
        head=dense("classifier.linear_hidden", "classifier.linear_out"),
        linear=18,
        attention=12,
        sdpa=False,
        # only <cls> is read from the last block, and `cls_mask` blanks its position and segment terms there
        idle=frozenset(
            f"funnel.encoder.blocks.1.0.attention.{name}"
            for name in ("r_r_bias", "r_kernel", "r_s_bias", "seg_embed")
        ),
        options={"block_sizes": [2, 1]},
    ),
    "camembert": Truth(two("roberta.encoder.layer"), head=POOLED),
    "bart": Truth(
        (*two("model.encoder.layers"), *two("model.decoder.layers")),
        head=dense("classification_head.dense", "classification_head.out_proj"),
        linear=12 + 20,
        attention=8 + 16,
    ),
    "xlnet": Truth(
        two("transformer.layer"),
        head=dense("sequence_summary.summary", "logits_proj"),
        linear=4,
        attention=0,
        sdpa=False,
        idle=frozenset({"transformer.mask_emb"}),  # stands for predicted words of the pretraining
    ),
    "gpt2": Truth(
        two("transformer.h"),
        above=dense("transformer.ln_f"),
        head=("score.weight",),
        linear=8,
        attention=4,
        head_dropout=False,
    ),
}
ARCHITECTURES = {name: truth.options for name, truth in TRUTHS.items()}
"""Name → options for TinyWeights(architecture=…, options=…)."""
METHODS = {
    "none": {"_target_": "whet.peft.none.none"},
    "lora": {"_target_": "whet.peft.lora.lora", "r": 2, "alpha": 6.0},
    "top_layers": {"_target_": "whet.peft.top_layers.top_layers", "layers": 1},
    "bitfit": {"_target_": "whet.peft.bitfit.bitfit"},
}


def true_depth(name, truth):
    """Depth of a parameter by the table."""
    for number, prefix in enumerate(truth.blocks, 1):
        if name.startswith(f"{prefix}."):
            return number
    return len(truth.blocks) + 1 if name in (*truth.above, *truth.head) else 0


def tiny(architecture, seed=0, **settings):
    """An encoder with tiny random weights."""
    weights = TinyWeights(architecture=architecture, options=ARCHITECTURES[architecture], seed=seed)
    return Encoder(name=architecture, weights=weights, **settings)


def config(method, weights, **model):
    """The part of a composed config that a model directory's card keeps."""
    return {
        "task": {
            "_target_": "whet.task.single_label.SingleLabel",
            "name": "toy",
            "data": {"_target_": "whet.data.files.Files", "path": "nowhere.csv"},
        },
        "model": {"_target_": "whet.model.encoder.Encoder", "name": "toy", "weights": weights, **model},
        "peft": METHODS[method],
    }


def tiny_weights(architecture, **settings):
    """Config node of tiny weights."""
    node = {"_target_": "whet.model.tiny.TinyWeights", "architecture": architecture}
    return {**node, "options": ARCHITECTURES[architecture], **settings}


def local_weights(folder):
    """Config node of weights in a folder."""
    return {"_target_": "whet.model.weights.LocalWeights", "path": str(folder)}


def parts_of(node):
    """(encoder, method) built from a config, as the command line builds them."""
    parts = build(node, signature).keywords
    return parts["model"], parts["peft"]


def signature(*, task: Task, model: Encoder, peft: Method):
    """What `config` is checked against."""


def batch_of(tokenizer, rows=6, seed=0, pairs=True):
    """Random texts of unequal length through whet's own tokenising and padding."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefgh äß", k=rng.randint(1, 6))) for _ in range(60)]
    texts = [
        tuple(" ".join(rng.choices(words, k=2 + n)) for n in (row, 1)[: 1 + pairs]) for row in range(rows)
    ]
    tokens = encode(texts, tokenizer, 32)
    collator = Collator.of(tokens, np.arange(rows) % 3, tokenizer, Batching())
    batch = collator(np.arange(rows), torch.device("cpu"))
    assert (batch.inputs["attention_mask"] == 0).any(), "some rows are padded"
    return batch


def logits_of(model, batch):
    """Logits in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return model(**batch.inputs).logits


def train(model, tokenizer, steps=3):
    """A few updates; no weight decay, so that only a gradient can move a tensor."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    model.train()
    for step in range(steps):
        batch = batch_of(tokenizer, seed=step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**batch.inputs).logits, batch.labels).backward()
        optimizer.step()
