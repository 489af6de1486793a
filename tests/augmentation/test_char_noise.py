"""One letter a word, of the kind that was asked for."""

import numpy as np
import pytest
from tests.augmentation.material import around, items

from whet.augmentation.char_noise import CONFUSED, KINDS, NEAR, CharNoise, slipped
from whet.augmentation.words import Cutter, some
from whet.errors import ConfigError

WORDS = ["film", "Story", "GOOD", "ab", "well-made", "it's", "电影院", "2015"]


def pairs(word, kind, count=40):
    made = {slipped(word, [kind], np.random.default_rng(seed)) for seed in range(count)}
    return made - {None}


@pytest.mark.parametrize("word", WORDS)
def test_a_neighbouring_key(word):
    for made in pairs(word, "keyboard"):
        ((old, new),) = [(a, b) for a, b in zip(word, made, strict=True) if a != b]
        assert new.lower() in NEAR[old.lower()]
        assert new.isupper() == old.isupper()


@pytest.mark.parametrize("word", WORDS)
def test_a_letter_taken_for_another(word):
    for made in pairs(word, "ocr"):
        ((old, new),) = [(a, b) for a, b in zip(word, made, strict=True) if a != b]
        assert new in CONFUSED[old]


@pytest.mark.parametrize("word", WORDS)
def test_slips(word):
    neighbours = {word[:n] + word[n + 1] + word[n] + word[n + 2 :] for n in range(len(word) - 1)} - {word}
    assert pairs(word, "swap", 200) == neighbours
    assert pairs(word, "drop", 200) == {word[:n] + word[n + 1 :] for n in range(len(word))}
    assert pairs(word, "double", 200) == {word[:n] + word[n] + word[n:] for n in range(len(word))}


def test_the_keyboard():
    assert set(NEAR["g"]) == set("tyfhvb")
    assert set(NEAR["q"]) == set("wa")
    assert all(one in NEAR[other] for one, near in NEAR.items() for other in near)


@pytest.mark.parametrize("kind", ["keyboard", "ocr"])
def test_chinese_has_no_such_kind(kind):
    assert slipped("电影", [kind], np.random.default_rng(0)) is None


def test_single_letters_and_double_letters_stay():
    assert slipped("a", list(KINDS), np.random.default_rng(0)) is None
    assert slipped("oo", ["swap"], np.random.default_rng(0)) is None


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_the_rate_is_the_share_of_words(rate):
    text = " ".join(["film", "story", "actor", "picture"] * 5)
    cut = Cutter("en", around())
    for (made,) in CharNoise(rate=rate).open(around())(items([text] * 10)):
        assert sum(a != b for a, b in zip(text.split(), made.split(), strict=True)) == some(rate, 20)
        assert len(cut(made)) == 20


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_kinds_that_are_named(kind):
    ((made,),) = CharNoise(kinds=[kind], rate=1.0).open(around())(items(["film"]))
    assert made in pairs("film", kind, 300)


def test_no_kind_is_refused():
    with pytest.raises(ConfigError, match="kinds=.*name at least one of keyboard"):
        CharNoise(kinds=[])
