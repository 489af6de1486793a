"""Words that a masked language model proposes, against the model itself."""

import numpy as np
import pytest
import torch
from tests.augmentation.material import WORDS, around, items, save

from whet.augmentation.contextual import Contextual, Filler, Masked, negates
from whet.augmentation.generation import load
from whet.augmentation.words import Cutter, some
from whet.errors import ModelError
from whet.model.tiny import TinyWeights
from whet.model.weights import LocalWeights

TEXT = "The film is not good , the bad story is odd !"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return LocalWeights(path=str(save(tmp_path_factory.mktemp("masked"), "MaskedLM")))


@pytest.fixture
def writer(weights, tmp_path):
    return load(weights, "MaskedLM", around(tmp_path), "weights")


def made(weights, folder, texts, seed=1, **settings):
    change = Contextual(weights=weights, **settings).open(around(folder))
    return [text for (text,) in change(items(texts, seed=seed))]


def best(writer, text, place, old):
    """By brute force: the likeliest whole word, other than the old one, for one mask."""
    inputs = writer.tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        logits = writer.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[
            0
        ]
    (spots,) = torch.where(inputs["input_ids"][0] == writer.tokenizer.mask_token_id)
    words = [word for word in WORDS if word.isascii() == old.isascii() and word != old.lower()]
    scores = {
        word: float(logits[spots[place], writer.tokenizer.convert_tokens_to_ids(word)]) for word in words
    }
    return max(scores, key=scores.get)


@pytest.mark.parametrize("text", [TEXT, "很好看"])
def test_top_1_is_the_likeliest_other_word(writer, tmp_path, text):
    filler = Filler(writer, 1, 1.0)
    masked = Masked.of(Cutter("auto", around(tmp_path))(text), 0.3, np.random.default_rng(3))
    given = masked.text("[MASK]")
    assert given.count("[MASK]") == len(masked.pieces()) > 0
    (found,) = filler.filled([masked], [np.random.default_rng(0)])
    expected = given
    for place, old in enumerate(masked.pieces()):
        word = best(writer, given, place, old)
        expected = expected.replace("[MASK]", word.capitalize() if old[0].isupper() else word, 1)
    assert found == expected


def test_only_so_many_words_change_and_negations_stay(weights, tmp_path):
    for rate in (0.1, 0.4, 1.0):
        for text in made(weights, tmp_path, [TEXT] * 4, rate=rate):
            pairs = list(zip(TEXT.split(), text.split(), strict=True))
            assert sum(old != new for old, new in pairs) == min(9, some(rate, 10))
            assert dict(pairs)["not"] == "not"
            assert all(new.lower() in WORDS for old, new in pairs if old != new)


def test_words_that_negate():
    assert all(map(negates, ["not", "No", "don't", "isn’t", "NEVER", "不", "没有"]))
    assert not any(map(negates, ["note", "knot", "good", "很"]))


def test_top_k_and_temperature_widen_the_choice(weights, tmp_path):
    def variety(**settings):
        return len(set(made(weights, tmp_path, ["the film is good"] * 25, **settings)))

    assert variety(top_k=1) <= 4 < variety(top_k=10, temperature=5.0)
    assert variety(top_k=10, temperature=0.05) < variety(top_k=10, temperature=5.0)


def test_the_same_seed_the_same_texts_whatever_the_batch(weights, tmp_path):
    texts = [f"the {word} film is good" for word in WORDS[:8]] + ["好看"]
    whole = made(weights, tmp_path / "a", texts, batch=9)
    assert made(weights, tmp_path / "b", texts, batch=2) == whole
    assert made(weights, tmp_path / "c", texts, seed=2) != whole
    assert whole != texts


def test_awkward_texts(weights, tmp_path):
    texts = ["", "😀", "...", "not", "good", "good " * 200]
    found = made(weights, tmp_path, texts)
    assert found[:4] == texts[:4]
    assert found[4] != "good"
    assert len(found[5].split()) == 200


def test_no_mask_token(tmp_path):
    with pytest.raises(ModelError, match=r"augmentation\.weights"):
        Contextual(weights=TinyWeights(architecture="gpt2")).open(around(tmp_path))
