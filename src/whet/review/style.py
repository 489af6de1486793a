"""How figures and numbers look. Light or dark, fonts and widths are the page's business (`page.js`)."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from whet.errors import one_line

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, RED, GREEN, PINK = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
AMBER, SKY, BROWN, GREY = "#e69f00", "#56b4e9", "#8c6d31", "#808a94"
COLOURS = (BLUE, RED, GREEN, PINK, AMBER, SKY, BROWN, GREY)
"""Okabe & Ito's colours (2008), which colour-blind readers tell apart; without yellow and black, of which one
drowns in a light and the other in a dark background."""
SCALE = "Cividis"
"""For numbers: of even lightness steps, and the same to colour-blind readers (Nuñez et al., 2018)."""
DASHES = ("solid", "dash", "dot", "dashdot")
NAME = 40
"""Letters of a name that fit beside an axis."""
TALL = 320
"""Pixels of a figure's height."""
WIDE_RANGE = 100.0
"""Positive values that span more than this are drawn on a log axis."""


def figure(traces: Sequence[Any], title: str, x: str = "", y: str = "", tall: int = TALL) -> Figure:
    """A Plotly figure whose title says what is seen and whose axes say what they count."""
    from plotly.graph_objects import Figure

    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    return Figure(list(traces), {"title": {"text": title}, "height": tall, "template": {}, **axes})


def colours() -> Iterator[tuple[str, str]]:
    """(colour, dash) pairs: the colours, then the same with other dashes, and again."""
    while True:
        yield from ((colour, dash) for dash in DASHES for colour in COLOURS)


def plain(text: object, letters: int = NAME) -> str:
    """Text for a figure: on one line, shortened, and without the markup that Plotly would obey."""
    line = one_line(text)
    return html.escape(line if len(line) <= letters else line[: letters - 1] + "…", quote=False)


def number(value: float, digits: int = 4) -> str:
    """A number for people: whole ones with thousands apart, others with so many significant digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else "∞" if value > 0 else "−∞"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def scale(values: Sequence[float]) -> str:
    """`log` for positive values over a wide range, else `linear`."""
    finite = [value for value in values if math.isfinite(value)]
    positive = bool(finite) and min(finite) > 0
    return "log" if positive and max(finite) / min(finite) >= WIDE_RANGE else "linear"
