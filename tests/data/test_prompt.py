"""Patterns: what they refuse, and that nothing of them is ever cut off."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.data.files import Files
from whet.data.prompt import Prompt
from whet.errors import ConfigError
from whet.model.tiny import byte_tokenizer
from whet.task.single_label import SingleLabel

TOKENIZER = byte_tokenizer()
WORDS = {"a": "x", "b": ["y", "z"]}


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("{text} it was", "needs {text} and {mask} once each"),
        ("{mask}", "needs {text} and {mask} once each"),
        ("{text} {mask} {mask}", "once each"),
        ("{text} {maks}", "knows no {maks}; did you mean mask"),
        ("{text {mask}", "can't be read"),
    ],
)
def test_patterns_that_say_nothing(pattern, told):
    with pytest.raises(ConfigError, match="pattern") as caught:
        Prompt(pattern=pattern, words=WORDS)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"a": "x"}, "has no word for the label b"),
        ({"a": "x", "b": []}, "has no word for the label b"),
        ({"a": "x", "b": "y", "c": "z"}, "not a label"),
        ({"a": "x", "b": "yz"}, "must be one token of this tokenizer, and is y z"),
    ],
)
def test_words_that_dont_fit(words, told):
    with pytest.raises(ConfigError, match=r"task\.prompt\.words") as caught:
        Prompt(pattern="{text} {mask}", words=words).ids(TOKENIZER, ("a", "b"))
    assert told in str(caught.value)


def test_ids_of_words():
    found = Prompt(pattern="{text} {mask}!", words=WORDS).ids(TOKENIZER, ("b", "a"))
    assert [TOKENIZER.convert_ids_to_tokens(ids) for ids in found] == [["y", "z"], ["x"]]


def test_a_pair_needs_a_pattern_of_two():
    shared = {"name": "t", "data": Files(path="unused.csv")}
    single, pair = (Prompt(pattern=p, words=WORDS) for p in ("{text} {mask}", "{text}? {mask}, {text2}"))
    assert SingleLabel(**shared, text=["p", "q"], prompt=pair).prompt is pair
    for columns, prompt in ((["p", "q"], single), ("p", pair)):
        with pytest.raises(ConfigError, match=r"prompt\.pattern"):
            SingleLabel(**shared, text=columns, prompt=prompt)


def test_no_room():
    with pytest.raises(ConfigError, match=r"task\.max_length=8: no room beside the 8 tokens of the pattern"):
        Prompt(pattern="{text} so {mask}.", words=WORDS).cut([("a",)], TOKENIZER, 8)


TEXT = st.text(max_size=40) | st.sampled_from(["[MASK]", "a [MASK] b", "", "{text}", "{mask}", "😀" * 9])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.integers(16, 60), st.booleans())
def test_the_whole_pattern_is_always_there(rows, length, pair):
    rows = rows if pair else [row[:1] for row in rows]
    pattern = "{text}? {mask}, {text2}!" if pair else "{text} so {mask}."
    prompt = Prompt(pattern=pattern, words=WORDS)
    texts, cut = prompt.cut(rows, TOKENIZER, length)
    for row, text, is_cut in zip(rows, texts, cut, strict=True):
        ids = TOKENIZER(text)["input_ids"]
        assert len(ids) <= length and ids.count(TOKENIZER.mask_token_id) == 1
        whole = prompt.filled([part.replace("[MASK]", "MASK") for part in row], "[MASK]")
        assert is_cut or (text == whole and len(TOKENIZER(whole)["input_ids"]) <= length)
        literal = [", ", "!"] if pair else [" so ", "."]
        assert all(piece in text for piece in literal)
        if is_cut:
            assert len(ids) > length - 12, "no more is cut than must be"
