"""Before and after, side by side."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.evaluation.changes import marked, render_changes, wrapped
from whet.evaluation.describe import width


@pytest.mark.parametrize(
    ("before", "after", "left", "right"),
    [
        ("a good film", "a fine film", "a [good] film", "a [fine] film"),
        ("a film", "a film !", "a film", "a film [!]"),
        ("a very good film", "a film", "a [very good] film", "a film"),
        ("same", "same", "same", "same"),
        ("我喜欢电影", "我喜爱电影", "我喜[欢]电影", "我喜[爱]电影"),
        ("two\nlines", "two lines", "two lines", "two lines"),
        ("", "new", "", "[new]"),
    ],
)
def test_what_differs_is_in_brackets(before, after, left, right):
    assert marked(before, after) == (left, right)


@given(st.text("ab 好.", max_size=40), st.text("ab 好.", max_size=40))
def test_without_brackets_it_is_the_text(before, after):
    for text, shown in zip((before, after), marked(before, after), strict=True):
        assert shown.replace("[", "").replace("]", "") == " ".join(text.split())


@given(st.text("ab 好.", max_size=60), st.integers(10, 30))
def test_lines_are_narrow_and_whole(text, columns):
    lines = wrapped(text, columns)
    assert all(width(line) <= columns for line in lines)
    if all(len(word) <= columns for word in text.split()):
        assert "".join("".join(lines).split()).rstrip("…") == "".join(text.split()) or "…" in "".join(lines)


def test_two_columns():
    row = {"id": "row-1#1", "before": ["a good film " * 6, "pair"], "after": ["a fine film " * 6, "pair !"]}
    found = {"loading_seconds": 0.5, "milliseconds_per_text": 1.25, "changed": 1.0, "rows": [row]}
    lines = render_changes(found, 60).splitlines()
    assert "1.25 ms a text" in lines[0]
    assert all(width(line) <= 60 for line in lines[1:])
    starts = {line.index("a [fine]") for line in lines if "a [fine]" in line}
    assert 2 + 28 + 2 in starts
    assert "pair [!]" in lines[-1]
