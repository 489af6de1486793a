"""Which methods a copy goes through, and in which order."""

import pytest
from tests.augmentation.material import around, items

from whet.augmentation.aeda import Aeda
from whet.augmentation.char_noise import CharNoise
from whet.augmentation.compose import Compose
from whet.errors import ConfigError

TEXT = "the film is good"
METHODS = {"marks": Aeda(), "letters": CharNoise(kinds=["double"])}


def made(count=400, **settings):
    change = Compose(methods=dict(METHODS), **settings).open(around())
    return [text for (text,) in change(items([TEXT] * count))]


def has_marks(text):
    return any(mark in text for mark in ".;?:!,")


def has_letters(text):
    return sum(map(str.isalpha, text)) > sum(map(str.isalpha, TEXT))


def shares(texts):
    return [sum(map(test, texts)) / len(texts) for test in (has_marks, has_letters)]


def test_all_of_them_unless_told_otherwise():
    assert shares(made()) == [1.0, 1.0]


def test_each_with_its_probability():
    marks, letters = shares(made(probabilities={"marks": 0.25, "letters": 0.7}))
    assert abs(marks - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    assert abs(letters - 0.7) < 4 * (0.7 * 0.3 / 400) ** 0.5


def test_one_of_them():
    texts = made(probabilities={"marks": 0.2, "letters": 0.6}, pick="one")
    assert all(has_marks(text) != has_letters(text) for text in texts)
    assert abs(shares(texts)[0] - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


def test_the_order_is_that_of_the_config():
    """Deleting what was inserted needs the other order."""
    first = Compose(methods={"a": Aeda(), "b": Aeda(rate=1.0)}).open(around())
    second = Compose(methods={"b": Aeda(rate=1.0), "a": Aeda()}).open(around())
    assert first(items([TEXT] * 5)) != second(items([TEXT] * 5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probabilities": {"mark": 0.5}}, r"probabilities\.mark=0.5: no such method; did you mean marks"),
        ({"probabilities": {"marks": 0.0, "letters": 0.0}}, "methods=.*none of them ever takes part"),
        ({"methods": {}}, "methods=.*none of them"),
        ({"methods": {"m": Aeda(copies=2)}}, r"methods\.m\.copies=2: set it for all .* augmentation\.copies"),
        ({"methods": {"m": Aeda(editions="once")}}, r"methods\.m\.editions=once"),
        ({"methods": {"m": Aeda(keep=False)}}, r"methods\.m\.keep=False"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        Compose(**{"methods": dict(METHODS), **settings})
