"""Synonym replacement against the lexicon's lines."""

import numpy as np
import pytest
from tests.augmentation.material import ENGLISH, LONG, STOP, TEXTS, around, items, lexicons, synonyms_of

from whet.augmentation.synonym import Synonym, choices, replaced
from whet.augmentation.words import Cutter, some
from whet.errors import ConfigError


@pytest.fixture
def cut():
    return Cutter("auto", around())


def thesaurus(folder, name="english"):
    return lexicons(folder)[name].open(around(folder).paths)


@pytest.mark.parametrize(
    ("name", "text"), [("english", LONG), ("english", TEXTS["plain"]), ("chinese", TEXTS["chinese"])]
)
def test_only_words_that_have_synonyms_change_and_only_into_them(tmp_path, cut, name, text):
    words = cut(text)
    for seed in range(10):
        made = replaced(words, 4, thesaurus(tmp_path, name), np.random.default_rng(seed))
        assert made.gaps == words.gaps
        changed = [(old, new) for old, new in zip(words.words, made.words, strict=True) if old != new]
        able = [word for word in words.words if synonyms_of(word.lower()) and word.lower() not in STOP]
        assert len(changed) == min(4, len(able))
        assert all(new.lower() in synonyms_of(old.lower()) for old, new in changed)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_the_rate_is_the_share_of_words(tmp_path, cut, rate):
    text = "film story good bad odd actor " * 10
    change = Synonym(**lexicons(tmp_path), rate=rate).open(around())
    for (made,) in change(items([text] * 5)):
        differ = sum(one != two for one, two in zip(cut(text).words, cut(made).words, strict=True))
        assert differ == some(rate, 60) == round(rate * 60)


def test_case_names_and_articles(tmp_path, cut):
    known = thesaurus(tmp_path)
    words = cut("GOOD film. Bad Story, an odd actor")
    found = {word: set(choices(words, place, known)) for place, word in enumerate(words.words)}
    assert found["GOOD"] == {"great", "fine"}
    assert found["Bad"] == {"poor", "awful"}  # it starts a sentence
    assert found["Story"] == set()  # a name, as far as one can see
    assert found["odd"] == {"unusual"}
    assert found["an"] == set()
    assert set(choices(cut("a bad film"), 1, known)) == {"poor"}  # not: a awful
    made = replaced(words, 9, known, np.random.default_rng(0)).text()
    assert made.split()[0].isupper()
    assert made.split()[2][0].isupper()


def test_stop_words_stay(tmp_path, cut):
    path = tmp_path / "all.txt"
    path.write_text("the this\nfilm movie", encoding="utf-8")
    own = {**lexicons(tmp_path)}
    own["english"].path = str(path)
    made = [text for (text,) in Synonym(**own, rate=1.0).open(around())(items(["the film"] * 5))]
    assert set(made) == {"the movie"}


def test_each_language_has_its_lexicon(tmp_path):
    change = Synonym(**lexicons(tmp_path), rate=1.0).open(around())
    ((english,), (chinese,)) = change(items(["good film", "电影好看"]))
    assert set(english.split()) <= {word for line in ENGLISH for word in line.split()}
    assert chinese != "电影好看"
    forced = Synonym(**lexicons(tmp_path), rate=1.0, language="zh").open(around())
    assert forced(items(["good film"])) == [("good film",)]


def test_a_lexicon_that_is_not_there_is_named(tmp_path):
    own = lexicons(tmp_path)
    own["english"].path = str(tmp_path / "nowhere.txt")
    change = Synonym(**own).open(around())
    with pytest.raises(ConfigError, match=r"augmentation\.english\.path=.*: no such file"):
        change(items(["good film"]))
