"""Batches hold what the tokenizer would have padded, on the side it pads."""

import numpy as np
import pytest
import torch

from whet.data.batch import Collator, Examples
from whet.data.batching import Batching
from whet.data.tokens import encode
from whet.model.tiny import byte_tokenizer

TEXTS = [("a", "bcd"), ("hello", "x"), ("", "é"), ("longest of them", "all")]
CPU = torch.device("cpu")


@pytest.fixture
def tokenizer():
    made = byte_tokenizer()
    made.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return made


def batch(tokenizer, rows, labels=None, **settings):
    tokens = encode(TEXTS, tokenizer, 64)
    labels = np.arange(len(TEXTS)) if labels is None else labels
    return Collator.of(tokens, labels, tokenizer, Batching(**settings))(np.array(rows), CPU)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad_to", [None, 40, 5])
def test_equals_the_tokenizers_own_padding(tokenizer, side, pad_to):
    tokenizer.padding_side = side
    rows = [3, 0, 2]
    found = batch(tokenizer, rows, pad_to=pad_to)
    first, second = zip(*(TEXTS[row] for row in rows), strict=True)
    longest = max(len(ids) for ids in tokenizer(list(first), list(second))["input_ids"])
    padding = {"padding": "max_length", "max_length": max(longest, pad_to or 0)}
    expected = tokenizer(list(first), list(second), return_tensors="pt", **padding)
    assert set(found.inputs) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found.inputs[name], tensor), name
    assert found.tokens == int(expected["attention_mask"].sum())
    assert found.rows.tolist() == rows and found.labels.tolist() == rows


def test_types_only_where_the_tokenizer_names_them(tokenizer):
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert set(batch(tokenizer, [0]).inputs) == {"input_ids", "attention_mask"}


def test_padding_id_and_type(tokenizer):
    tokenizer.pad_token = "[MASK]"
    tokenizer._pad_token_type_id = 3  # XLNet's
    inputs = batch(tokenizer, [0, 3]).inputs
    out = inputs["attention_mask"][0] == 0
    assert out.any()
    assert set(inputs["input_ids"][0][out].tolist()) == {tokenizer.mask_token_id}
    assert set(inputs["token_type_ids"][0][out].tolist()) == {3}


@pytest.mark.parametrize("labels", [np.array([0.5, 1, 2, 3], np.float32), np.eye(4, dtype=np.float32)])
def test_labels_keep_shape_and_type(tokenizer, labels):
    found = batch(tokenizer, [2, 1], labels).labels
    np.testing.assert_array_equal(found.numpy(), labels[[2, 1]])
    assert found.dtype == torch.float32


def test_examples_take():
    examples = Examples("train", np.array(["a", "b", "c", "d"]), TEXTS, np.arange(4))
    taken = examples.take(np.array([3, 0]))
    assert (taken.ids.tolist(), taken.texts, taken.labels.tolist()) == (
        ["d", "a"],
        [TEXTS[3], TEXTS[0]],
        [3, 0],
    )
    assert (len(taken), taken.split) == (2, "train")
