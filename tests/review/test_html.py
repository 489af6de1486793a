"""Pieces of a page: what a text may not do to it."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re

from plotly.graph_objects import Scatter

from whet.review.html import chart, command, escaped, fold, note, page, pairs, section, table, tag, tiles
from whet.review.style import figure, number, plain, scale

EVIL = "<script>alert(1)</script>&\"'"


class Reader(html.parser.HTMLParser):
    """Elements and texts as a browser sees them."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.texts, self.attributes = [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def test_no_text_becomes_markup():
    for made in (
        escaped(EVIL), note(EVIL), section(EVIL, EVIL, intro=EVIL), fold(EVIL, EVIL), tiles([(EVIL, EVIL)]),
        pairs([(EVIL, EVIL)]), table([EVIL], [[EVIL]]), table(["x"], [[EVIL * 20]]), command(EVIL),
        tag("p", EVIL, id=EVIL),
    ):  # fmt: skip
        seen = Reader(made)
        assert "script" not in seen.tags
        assert EVIL in "".join(seen.texts)


def test_a_figures_texts_stay_in_its_data():
    made = chart(
        figure([Scatter(x=[1, 2], y=[3.5, float("nan")], text=[EVIL, "</script>"])], plain(EVIL), "x", "y")
    )
    assert made.count("</script>") == 1
    data = json.loads(re.search(r"<script type=.application/json.>(.*)</script>", made, re.S)[1])
    assert data["data"][0]["text"] == [EVIL, "</script>"]
    assert data["data"][0]["y"] == [3.5, None]
    assert EVIL in Reader(made).texts, "the caption"
    assert "title" not in data["layout"] and "template" not in data["layout"]
    assert chart(None) == ""


def test_secrets_are_masked_everywhere(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abcdefgh-very-secret")
    told = "key abcdefgh-very-secret, url https://me:hunter22@host/, password=hunter22"
    made = [note(told), table(["a"], [[told]]), command(told), tag("p", "x", title=told)]
    made.append(chart(figure([Scatter(x=[1], y=[1], text=[told], name=told)], told)))
    for each in made:
        assert "very-secret" not in each
        assert "hunter22" not in each
        assert "***" in each


def test_numbers_are_formatted_and_sortable():
    made = table(["a", "b"], [[1234567, 0.123456], [None, "x"]])
    assert '<td class="number" data-value="1234567">1,234,567</td>' in made
    assert '<td class="number" data-value="0.123456">0.1235</td>' in made
    assert '<th scope="col" class="number">a</th>' in made
    assert [number(v) for v in (12345.6, 5e-05, float("nan"), 0.25, -3)] == [
        "12,346",
        "5e-05",
        "undefined",
        "0.25",
        "-3",
    ]


def test_long_cells_unfold():
    made = table(["a"], [["w" * 500]])
    assert "<details><summary>" + "w" * 160 + "…</summary>" in made
    assert "w" * 500 in made


def test_scales_and_names():
    assert scale([1, 99]) == "linear"
    assert scale([1, 100]) == "log"
    assert scale([0, 1000]) == scale([-1, 1000]) == scale([]) == "linear"
    assert plain("a\n" + "b" * 60) == "a " + "b" * 37 + "…"
    assert plain("<b>") == "&lt;b&gt;"


def test_the_page_runs_its_own_scripts_only_and_loads_nothing():
    made = page(EVIL, tag("h1", "x"), [section("A & B", note("y"))], "foot")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', made)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", made, re.S)
    assert len(scripts) == 2
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert rules["script-src"] == " ".join(f"'sha256-{digest}'" for digest in digests)
    assert made.count("plotly.js v") == 1
    assert '<a href="#a---b">A &amp; B</a>' in made and '<section id="a---b">' in made
    assert not re.search(r"<(?:link|img|iframe|script src)", made.replace(scripts[0], ""))
    assert 'name="viewport"' in made
