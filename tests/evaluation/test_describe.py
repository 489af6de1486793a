"""Descriptions by hand, and text that keeps to its columns in any script."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.data.audit import Audit
from whet.data.table import Table
from whet.evaluation.describe import cut, describe, pad, percentiles, render, shorten, width, words


def table(texts, labels, prefix="r"):
    return Table([f"{prefix}{i}" for i in range(len(texts))], [(text,) for text in texts], list(labels))


@pytest.fixture
def splits():
    train = table(
        ["good film", "bad", "这部电影很好看 " * 20, "😀😀", "a b c"], ["pos", "neg", "pos", "pos", "中性"]
    )
    return {"train": train, "test": table(["x", "y"], ["neg", None], "t")}


# ---------------------------------------------------------------- width


@pytest.mark.parametrize(
    ("text", "columns"), [("abc", 3), ("电影", 4), ("😀", 2), ("e\u0301", 1), ("", 0), ("ｆ", 2)]
)
def test_width(text, columns):
    assert width(text) == columns


@given(st.text(max_size=40), st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_short_text_keeps_to_its_columns(text, columns):
    short = shorten(text, columns)
    assert width(short) <= columns
    assert len(short.splitlines()) <= 1
    assert width(pad(text, columns)) == width(pad(text, columns, right=True)) == columns
    if width(cut(text, 99)) <= columns and text.isprintable() and text == " ".join(text.split()):
        assert short == text


def test_cutting_leaves_a_mark_and_the_indentation():
    assert shorten("很好看的电影", 7) == "很好看…"
    assert cut("  ab  cdef", 8) == "  ab  c…"
    assert shorten("a\tb\n c\x1b[31m", 20) == "a b c [31m"


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("text", "count"), [("two words", 2), ("电影好看", 4), ("GPT4 很 good!", 3), ("ひらがな", 4), ("...", 0)]
)
def test_words(text, count):
    assert words(text) == count


def test_percentiles_by_hand():
    found = percentiles(list(range(101)))
    assert found == {"p5": 5, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100, "mean": 50}
    assert percentiles([]) == {}


def test_figures_by_hand(splits):
    found = describe(
        splits, {"train": np.array([4, 3, 9, 4, 5])}, {"train": 1}, max_length=9, padding={"train": 0.25}
    )
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert (train["rows"], train["unlabelled"], test["unlabelled"]) == (5, 0, 1)
    assert train["balance"] == [
        {"label": "pos", "count": 3, "share": 0.6},
        {"label": "neg", "count": 1, "share": 0.2},
        {"label": "中性", "count": 1, "share": 0.2},
    ]
    assert test["balance"] == [{"label": "neg", "count": 1, "share": 1.0}]
    assert train["lengths"]["characters"]["max"] == 160
    assert train["lengths"]["words"]["p50"] == 2
    assert train["lengths"]["tokens"]["max"] == 9
    assert train["truncated"] == {"rows": 1, "share": 0.2}
    assert "tokens" not in test["lengths"] and "truncated" not in test
    assert json.loads(json.dumps(found, ensure_ascii=False)) == found


def test_multi_label_shares_are_of_rows_and_numbers_have_percentiles():
    sets = describe({"train": table("abcd", [["x", "y"], ["x"], [], ["x"]])})["splits"]["train"]
    assert sets["balance"] == [
        {"label": "x", "count": 3, "share": 0.75},
        {"label": "y", "count": 1, "share": 0.25},
    ]
    values = describe({"train": table("abc", [1.0, 2.0, float("nan")])})
    assert values["splits"]["train"]["values"]["p50"] == 1.5
    assert values["splits"]["train"]["unlabelled"] == 1
    assert "label  min 1" in render(values)


def test_samples_are_seeded(splits):
    drawn = [
        [one["id"] for one in describe(splits, sample_rows=3, seed=seed)["samples"]]
        for seed in (0, 0, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len({tuple(ids) for ids in drawn}) > 1
    assert len(describe(splits)["samples"]) == 7


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_text_fits_and_tells_all(splits, columns):
    kept, findings = Audit(missing_label="keep").run(splits, ["pos", "neg", "中性"])
    described = describe(
        kept,
        {"train": np.array([4, 3, 9, 4, 5])},
        {"train": 1},
        max_length=9,
        padding={"length-bucketed": 0.25},
        findings=findings,
    )
    text = render(described, columns)
    longest = max(map(width, text.splitlines()))
    assert longest <= columns
    for part in (
        "train: 5 rows",
        "pos           3   60.0%  ██████████████▌",
        "without a label: 1",
        "truncated at 9 tokens: 1 rows (20.00%)",
        "length-bucketed  padding: 25.0%",
        "missing_label: 1 kept",
        "sample rows",
        "😀😀",
    ):
        assert part in text
    assert "这部电影很好看 这部" in text and "…" in text


def test_many_labels_are_summed_up():
    described = describe({"train": table([f"t{i}" for i in range(100)], [f"l{i % 33}" for i in range(100)])})
    assert "… 13 more labels of 3 to 3 rows" in render(described)


def test_an_empty_split_is_described():
    assert "train: 0 rows" in render(describe({"train": table([], [])}))
