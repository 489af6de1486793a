"""Cutting loses nothing; inserting and deleting touch one place."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.augmentation.material import TEXTS, around

from whet.augmentation.words import Cutter, Words, language_of, like, some

LETTERS = st.text(alphabet="ab Zé'-.,!?\n0😀的好看我 电影", max_size=30)


@pytest.fixture(scope="module")
def cut():
    return {language: Cutter(language, around()) for language in ("auto", "en", "zh")}


@given(LETTERS, st.sampled_from(["auto", "en", "zh"]))
@settings(max_examples=150, deadline=None)
@example("😀", "zh")
@example("", "en")
def test_the_parts_make_the_text(cut, text, language):
    words = cut[language](text)
    assert words.text() == text
    assert len(words.gaps) == len(words) + 1
    assert all(any(letter.isalnum() for letter in word) for word in words.words)


def test_words_of_both_languages(cut):
    assert cut["auto"]("It's a well-made film, 10/10.").words == (
        "It's",
        "a",
        "well-made",
        "film",
        "10",
        "10",
    )
    found = cut["auto"]("这部电影很好看，我喜欢。")
    assert {"电影", "好看", "喜欢"} <= set(found.words)
    assert found.gaps[-1] == "。"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a good film", "en"),
        ("很好看", "zh"),
        ("我喜欢 iPhone", "zh"),
        ("the word 好", "en"),
        ("", "en"),
        ("123 😀", "en"),
    ],
)
def test_language_by_the_characters(text, language):
    assert language_of(text) == language


@given(LETTERS, st.integers(0, 40), st.data())
@settings(max_examples=100)
def test_an_inserted_word_is_one_word_more(cut, text, place, data):
    words = cut["en"](text)
    place = min(place, len(words))
    made = words.inserted(place, "new")
    assert made.words == (*words.words[:place], "new", *words.words[place:])
    assert cut["en"](made.text()).words == made.words or "'" in text or "-" in text
    assert text in {made.text().replace(new, "", 1) for new in ("new ", " new", "new")}


def test_insertion_in_chinese_needs_no_space(cut):
    words = cut["zh"]("我喜欢电影。")
    assert words.inserted(1, "很").text() == "我很喜欢电影。"
    assert words.inserted(len(words), "好").text() == "我喜欢电影好。"
    latin = Words(("iPhone", "好"), ("", "", ""), "zh")
    assert latin.inserted(0, "new").text() == "new iPhone好"


@pytest.mark.parametrize(
    ("text", "stays", "left"),
    [
        ("a good film", [0, 1, 1], "good film"),
        ("a good film", [1, 0, 1], "a film"),
        ("a good film", [1, 1, 0], "a good"),
        ("a good film.", [1, 1, 0], "a good ."),
        ("  a good", [0, 1], "good"),
        ("one, two", [0, 1], ", two"),
        (" kept  as is ", [1, 1, 1], " kept  as is "),
    ],
)
def test_deleted_words_leave_no_double_space(cut, text, stays, left):
    assert cut["en"](text).kept([bool(stay) for stay in stays]).text() == left


def test_how_many_words_a_share_is():
    assert [some(0.1, n) for n in (0, 1, 4, 14, 16, 100)] == [0, 1, 1, 1, 2, 10]
    assert some(0.0, 50) == 0


def test_case_is_carried_over():
    assert [like("movie", old) for old in ("film", "Film", "FILM", "F")] == [
        "movie",
        "Movie",
        "MOVIE",
        "Movie",
    ]


@pytest.mark.parametrize("name", TEXTS)
def test_awkward_texts(cut, name):
    assert cut["auto"](TEXTS[name]).text() == TEXTS[name]
