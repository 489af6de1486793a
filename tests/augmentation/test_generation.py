"""Drawing tokens against their probabilities; texts that models made, kept on disk."""

import sqlite3

import numpy as np
import pytest
import torch
from tests.augmentation.material import SPECIAL, around, items, save

from whet.augmentation.base import Item
from whet.augmentation.generation import drawing, load
from whet.augmentation.store import Store, stored
from whet.errors import ModelError
from whet.model.tiny import TinyWeights
from whet.model.weights import LocalWeights

SCORES = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def drawn(count, temperature, top_p):
    rngs = [np.random.default_rng(seed) for seed in range(count)]
    chosen = drawing(rngs, temperature, top_p)(
        torch.zeros(count, 1, dtype=torch.long), SCORES.expand(count, 4)
    )
    return np.bincount(chosen.argmax(-1).numpy(), minlength=4) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_by_their_probabilities(temperature):
    wanted = torch.softmax(SCORES / temperature, -1).numpy()
    spread = np.sqrt(wanted * (1 - wanted) / 3000)
    assert (np.abs(drawn(3000, temperature, 1.0) - wanted) < 4 * spread).all()


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.7, 2), (0.9, 3)])
def test_only_the_likeliest_are_drawn(top_p, kept):
    shares = drawn(1000, 1.0, top_p)
    assert (shares[:kept] > 0).all()
    assert (shares[kept:] == 0).all()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {kind: save(base / kind, kind) for kind in ("CausalLM", "Seq2SeqLM")}


@pytest.mark.parametrize("kind", ["CausalLM", "Seq2SeqLM"])
def test_temperature_0_is_greedy_search(kind, folders, tmp_path):
    writer = load(
        LocalWeights(path=str(folders[kind])), kind, around(tmp_path), "weights", left=kind == "CausalLM"
    )
    texts = ["the film is good", "odd", "a bad story of an actor"]
    rngs = [np.random.default_rng(0)] * 3
    for text, found in zip(texts, writer.write(texts, rngs, 0.0, 1.0), strict=True):
        inputs = writer.encoded([text])
        length = inputs["input_ids"].shape[1]
        longest = min(2 * length + 16, writer.room)
        ids = writer.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=longest)[0]
        own = ids[length:] if kind == "CausalLM" else ids
        assert found == writer.tokenizer.decode(own, skip_special_tokens=True).strip()
        assert not set(found.split()) & set(SPECIAL)


@pytest.mark.parametrize("kind", ["CausalLM", "Seq2SeqLM"])
def test_a_text_does_not_depend_on_its_batch(kind, folders, tmp_path):
    writer = load(
        LocalWeights(path=str(folders[kind])), kind, around(tmp_path), "weights", left=kind == "CausalLM"
    )
    texts = ["the film is good", "odd", "not a bad story of"]

    def write(some):
        return writer.write([texts[n] for n in some], [np.random.default_rng(n) for n in some], 1.0, 0.9)

    together = write([0, 1, 2])
    assert len(set(together)) == 3
    assert [write([n])[0] for n in range(3)] == together


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (LocalWeights(path="nowhere"), r"augmentation\.weights\.path=nowhere"),
        (TinyWeights(), r"augmentation\.weights=tiny bert: .*MaskedLM"),
    ],
)
def test_weights_that_will_not_do(weights, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        load(weights, "MaskedLM", around(tmp_path), "weights")


# ---------------------------------------------------------------- the store


def shouting(calls):
    def make(parts):
        calls.append([part.text for part in parts])
        return [part.text.upper() + str(part.rng().integers(10**6)) for part in parts]

    return make


def change(path, calls, settings=None, size=2, key=lambda part: part.key):
    return stored(Store(path), settings or {"method": "shout"}, key, shouting(calls), size)


def test_each_text_is_made_once(tmp_path):
    calls, path = [], tmp_path / "texts.sqlite"
    given = items(["a", "bbb", "cc", "dddd", "e"])
    first = change(path, calls)(given)
    assert calls == [
        ["dddd", "bbb"],
        ["cc", *sorted(calls[1][1:])],
        calls[2],
    ]  # those of like length together
    assert change(path, calls)(given[::-1])[::-1] == first
    assert len(calls) == 3
    change(path, calls)([*given, Item(("new",), 0, (9, 9, 9, 9))])
    assert calls[3:] == [["new"]]


@pytest.mark.parametrize(
    "other", [{"settings": {"method": "other"}}, {"seed": 2}, {"epoch": 1}], ids=["settings", "seed", "epoch"]
)
def test_what_a_text_depends_on_is_in_its_key(tmp_path, other):
    calls, path = [], tmp_path / "texts.sqlite"
    change(path, calls)(items(["a"]))
    settings = other.pop("settings", None)
    change(path, calls, settings)(items(["a"], **other))
    assert len(calls) == 2


def test_texts_of_a_pair_are_made_apart(tmp_path):
    calls = []
    ((first, second),) = change(tmp_path / "texts.sqlite", calls)([Item(("a", "a"), 0, (1, 0, 0, 1))])
    assert first[0] == second[0] == "A"
    assert first != second


def test_texts_come_from_the_file(tmp_path):
    path = tmp_path / "texts.sqlite"
    change(path, [])(items(["a"]))
    with sqlite3.connect(path) as base:
        base.execute("UPDATE made SET text = 'from the file'")
    assert change(path, [])(items(["a"])) == [("from the file",)]
    with sqlite3.connect(path) as base:
        base.execute("UPDATE made SET text = ' '")
    assert change(path, [])(items(["a"])) == [("a",)]  # nothing was written: the text stays


def test_a_file_that_is_none_is_told_once_and_done_without(tmp_path, told):
    path = tmp_path / "texts.sqlite"
    path.write_bytes(b"no database, but long enough to look like one " * 50)
    calls = []
    found = change(path, calls)(items(["a", "b", "c"]))
    assert [text[0] for (text,) in found] == ["A", "B", "C"]
    assert len(told) == 1
    assert "texts.sqlite: can't be used" in told[0]
