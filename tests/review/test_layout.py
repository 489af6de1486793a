"""Texts of rows, read back by the formats' own readers."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from whet.evaluation.describe import width
from whet.review.layout import brief, cell, group_cells, render, span, squeeze
from whet.review.table import group

ROWS = [
    {"name": 'a|b, "c"', "v": 1 / 3, "n": 12345, "tags": ["x", "y"], "flag": True},
    {"name": "zwei 中文", "v": None, "n": 7, "tags": [], "flag": False},
]
COLUMNS = ["name", "v", "n", "tags", "flag"]


def test_csv_keeps_every_digit():
    found = list(csv.DictReader(io.StringIO(render(ROWS, COLUMNS, "csv"))))
    assert [row["name"] for row in found] == [row["name"] for row in ROWS]
    assert float(found[0]["v"]) == 1 / 3
    assert found[1]["v"] == ""
    assert json.loads(found[0]["tags"]) == ["x", "y"]
    assert json.loads(found[1]["flag"]) is False


def test_json_keeps_every_digit_and_has_no_nan():
    assert json.loads(render(ROWS, COLUMNS, "json")) == ROWS
    odd = json.loads(render([{"v": math.nan, "w": [-math.inf]}], ["v", "w", "x"], "json"))
    assert odd == [{"v": "nan", "w": ["-inf"], "x": None}]


def test_markdown_has_a_row_a_run_and_escapes_bars():
    head, rule, first, second = render(ROWS, COLUMNS, "markdown").split("\n")
    assert head == "| name | v | n | tags | flag |"
    assert rule.split("|")[2:4] == [" ---: ", " ---: "], "numbers to the right"
    assert first.startswith("| a\\|b, ")
    assert second.count("|") == 6


@pytest.mark.parametrize("wide", [None, 80, 40, 30])
def test_tables_are_aligned_and_fit(wide):
    rows = [
        {"name": "20261126-160516-rotten_tomatoes-minilm-none-s1", "validation/accuracy": 0.5, "n": 5},
        {"name": "中文中文", "validation/accuracy": 12.25, "n": 12345},
    ]
    lines = render(rows, list(rows[0]), "table", wide).split("\n")
    assert len({width(line) for line in lines}) == 1, "the last column is a number: all lines end there"
    assert lines[2].endswith("0.5000       5") and lines[3].endswith("12.2500  12,345")
    if wide is not None:
        assert width(lines[0]) <= wide
        assert "…" in lines[2] or wide == 80
    else:
        assert rows[0]["name"] in lines[2]


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("optimizer.lr", 5e-5, "5e-05"),
        ("validation/accuracy", 0.83470105, "0.8347"),
        ("validation/loss", 2.5e-5, "2.5e-05"),
        ("test", 0.0, "0.0000"),
        ("seed", 12345, "12345"),
        ("trainable.parameters", 12345, "12,345"),
        ("time", 5.25, "5.2s"),
        ("timings.train_s", 3723.0, "1:02:03"),
        ("age", 90000.0, "1d"),
        ("x", None, ""),
        ("x", True, "true"),
        ("x", [1, "a"], '[1, "a"]'),
    ],
)
def test_values_as_people_read_them(key, value, shown):
    assert cell(key, value) == shown


def test_names_keep_both_ends():
    assert squeeze("20261126-164127/0003", 12) == "202611…/0003"
    assert squeeze("short", 5) == "short"
    for text in ("abcdefghij", "中文中文中文", "a中b文c中d文"):
        for columns in range(1, 14):
            found = squeeze(text, columns)
            assert width(found) <= columns
            assert found == text if width(text) <= columns else found.count("…") == 1


def test_spans_and_hashes():
    assert [span(s) for s in (0.2, 59, 60, 7300, 86400 * 40)] == ["0s", "59s", "1min", "2h", "40d"]
    assert brief("ab" * 32) == "abababababab"
    assert brief("x" * 64) == "x" * 64, "not a hash"
    assert brief(None) == "null"


def test_means_are_shown_with_their_spread():
    rows = [
        {"peft": "lora", "folder": str(n), "validation/f1": v, "kind": "run"}
        for n, v in enumerate([0.5, 1.0, None])
    ]
    (found,) = group_cells(group(rows, ["peft"], ["validation/f1"]))
    assert found == {"peft": "lora", "runs": 3, "validation/f1": "0.7500 ± 0.3536 (2)"}
