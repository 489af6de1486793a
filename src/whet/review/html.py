"""Pieces of a report as HTML, and the page that holds them: one file that needs nothing else.

Everything that isn't `Html` already is escaped, its secrets masked. The page forbids its reader's browser (by
a content security policy) to load anything, and to run any script but its own two.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.review.style import number
from whet.secrets import mask, mask_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ASSETS = Path(__file__).parent / "assets"
SHORT = 32
"""Letters of a table's cell that stay on one line."""
UNCUT = 160
"""Letters of a table's cell that are shown at once; more unfold."""


class Html(str):
    """Text that may go into a page as it is."""

    __slots__ = ()


def escaped(value: object) -> Html:
    """Any value as content: numbers for people, texts without markup and secrets, nothing for None."""
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("")
    if isinstance(value, bool):
        return Html(str(value).lower())
    if isinstance(value, (int, float)):
        return Html(html.escape(number(value)))
    return Html(html.escape(mask_text(str(value))))


def joined(*parts: object) -> Html:
    """One after the other; None and nothing leave no trace."""
    return Html("\n".join(escaped(part) for part in parts if part is not None and part != ""))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element; `_` at an attribute's end is dropped (`class_`), other `_` are `-`."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(mask_text(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{told}>{''.join(escaped(item) for item in content)}</{name}>")


def note(*content: object) -> Html:
    """A remark."""
    return tag("p", *content, class_="note")


def section(title: str, *parts: object, intro: str = "") -> Html:
    """A part of the page with a heading, listed at its top."""
    inner = joined(tag("h2", title), note(intro) if intro else None, *parts)
    return tag("section", inner, id=anchor(title))


def anchor(title: str) -> str:
    """A heading as the target of a link."""
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower()).strip("-")


def fold(title: object, *parts: object, opened: bool = False) -> Html:
    """A part that unfolds."""
    start = Html("<details open>") if opened else Html("<details>")
    return Html(f"{start}{tag('summary', title)}{joined(*parts)}</details>")


def tiles(facts: Sequence[tuple[str, object]]) -> Html:
    """Key figures, large."""
    told = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts if value not in (None, "")]
    return tag("dl", *told, class_="tiles")


def pairs(facts: Sequence[tuple[str, object]]) -> Html:
    """Names and what they are, a line each; those without a value are left out."""
    return table(
        ("", ""), [(tag("b", name), value) for name, value in facts if value not in (None, "")], "pairs"
    )


def badge(text: str) -> Html:
    """A status, coloured."""
    return tag("span", text, class_=f"badge {anchor(text)}")


def command(text: str) -> Html:
    """A command line to be copied."""
    button = tag("button", "Copy", type="button", class_="copy")
    return tag("div", tag("pre", tag("code", text)), button, class_="command")


# ---------------------------------------------------------------- tables and charts


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "sortable") -> Html:
    """A table that scrolls inside its own box.

    Args:
        heads: of the columns.
        rows: cells; numbers are aligned to the right.
        kind: `sortable` by a click on a column's head, or `pairs` (without heads).
    """
    numeric = [
        _is_number(row[0] if len(row := [r[place] for r in rows if r[place] is not None]) else None)
        for place in range(len(heads))
    ]
    cells = [
        tag("th", name, scope="col", class_="number" if right else None)
        for name, right in zip(heads, numeric, strict=True)
    ]
    head = tag("thead", tag("tr", *cells)) if any(heads) else Html("")
    lines = [tag("tr", *map(_cell, row)) for row in rows]
    inner = tag("table", head, tag("tbody", *lines), class_=kind)
    return tag("div", inner, class_="scroll", tabindex="0")


def _cell(value: object) -> Html:
    if _is_number(value):
        return tag("td", value, class_="number", data_value=repr(value))
    if isinstance(value, str) and not isinstance(value, Html) and len(value) > UNCUT:
        return tag("td", fold(value[:UNCUT] + "…", value), class_="long")
    if isinstance(value, Html) or not isinstance(value, str):
        return tag("td", value)
    return tag("td", value, class_="short" if len(value) <= SHORT else "text")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def chart(figure: Figure | None, least: int = 0) -> Html:
    """A figure with its title as a caption, drawn by the page; nothing for None.

    Args:
        figure: of Plotly.
        least: pixels below which its width doesn't fall: it scrolls inside its box instead.
    """
    if figure is None:
        return Html("")
    drawn: dict[str, Any] = mask(figure.to_plotly_json())
    title = html.unescape(drawn["layout"].pop("title")["text"])
    tall = drawn["layout"].pop("height")
    drawn["layout"].pop("template", None)
    style = f"height:{tall}px" + (f";min-width:{least}px" if least else "")
    plot = tag("div", class_="plot", style=style, role="img", aria_label=title)
    data = Html(f'<script type="application/json">{_json(drawn)}</script>')
    return tag("figure", tag("figcaption", title), tag("div", plot, class_="scroll"), data)


def charts(figures: Sequence[Figure | None]) -> Html:
    """Side by side where there is room."""
    return tag("div", *(chart(each) for each in figures if each is not None), class_="charts")


def _json(value: Mapping[str, Any]) -> str:
    """JSON that can't end the element it stands in; numbers that JSON doesn't have are null."""
    from plotly.io.json import to_json_plotly

    text: str = to_json_plotly(value)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# ---------------------------------------------------------------- page


def page(title: str, heading: object, sections: Sequence[Html], foot: str) -> str:
    """The whole file.

    Args:
        title: of the browser's tab.
        heading: what stands on top.
        sections: made by `section`.
        foot: the last line.
    """
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), (ASSETS / "page.js").read_text(encoding="utf-8")]
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in scripts)
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        tag("title", title),
        f"<style>{(ASSETS / 'page.css').read_text(encoding='utf-8')}</style>",
    ]
    body = [tag("header", heading, _contents(sections)), tag("main", *sections), tag("footer", foot)]
    told = [f"<script>{text}</script>" for text in scripts]
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        *head,
        "</head>",
        "<body>",
        *body,
        *told,
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _contents(sections: Sequence[Html]) -> Html:
    """Links to the sections."""
    found = []
    for each in sections:
        name = each.partition('id="')[2].partition('"')[0]
        heading = each.partition("<h2>")[2].partition("</h2>")[0]
        found.append(tag("a", Html(heading), href=f"#{html.unescape(name)}"))
    return tag("nav", *found)


def _sha256(text: str) -> str:
    """As a content security policy has it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
