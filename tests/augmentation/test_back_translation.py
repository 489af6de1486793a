"""There and back through two tiny translators."""

import pytest
from tests.augmentation.material import around, items, save

from whet.augmentation.back_translation import BackTranslation
from whet.augmentation.generation import load
from whet.model.weights import LocalWeights

TEXTS = ["the film is good", "a bad story", "odd actor !"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    base = tmp_path_factory.mktemp("translators")
    return {
        name: LocalWeights(path=str(save(base / name, "Seq2SeqLM", seed)))
        for name, seed in (("forth", 1), ("back", 2))
    }


def made(pair, folder, texts=TEXTS, seed=1, **settings):
    change = BackTranslation(**pair, **settings).open(around(folder))
    return [text for (text,) in change(items(texts, seed=seed))]


def test_without_chance_it_is_one_model_after_the_other(pair, tmp_path):
    forth, back = (load(pair[name], "Seq2SeqLM", around(tmp_path), name) for name in ("forth", "back"))
    there = forth.write(TEXTS, [], 0.0, 1.0)
    expected = back.write(there, [], 0.0, 1.0)
    assert made(pair, tmp_path, temperature=0.0, batch=3) == [
        new or old for new, old in zip(expected, TEXTS, strict=True)
    ]
    assert made(pair, tmp_path / "b", seed=2, temperature=0.0, batch=3) == made(
        pair, tmp_path, temperature=0.0, batch=3
    )


def test_with_chance_it_goes_by_the_seed(pair, tmp_path):
    first = made(pair, tmp_path / "a")
    assert made(pair, tmp_path / "b") == first
    assert made(pair, tmp_path / "a", seed=2) != first
    assert all(first)


def test_every_setting_counts(pair, tmp_path):
    settings = (
        {},
        {"forth_prefix": "good story: "},
        {"back_prefix": "odd: "},
        {"temperature": 3.0},
        {"top_p": 0.05},
    )
    assert len({tuple(made(pair, tmp_path, **one)) for one in settings}) == len(settings)


def test_an_empty_text_stays_one(pair, tmp_path):
    assert made(pair, tmp_path, ["", "film"])[1]
