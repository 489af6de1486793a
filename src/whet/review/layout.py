"""Rows as text: aligned for people, Markdown, CSV and JSON for the rest."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from whet.errors import one_line
from whet.evaluation.describe import cut, pad, shorten, width
from whet.review.facts import Facts
from whet.review.table import Group
from whet.tracking.progress import clock

Format = Literal["table", "csv", "json", "markdown"]
GAP = "  "
HASH = 12
"""Digits of a hash that people are shown."""
NARROW = 6
"""Columns that a text keeps at least."""
PLAIN = ("seed", "trial", "number", "pid", "step", "commit")
"""Whole numbers that are names, not amounts."""
SCORES = ("validation", "test", "best")
SPANS = {"d": 86400, "h": 3600, "min": 60, "s": 1}


# ---------------------------------------------------------------- values


def cell(key: str, value: Any) -> str:
    """A value as people read it."""
    if value is None or isinstance(value, str):
        return value or ""
    if key == "age":
        return span(value)
    if key == "time" or key.endswith(("train_s", "total_s")):
        return lasted(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if key.rpartition(".")[2] in PLAIN else f"{value:,}"
    if isinstance(value, float):
        return score(value) if "/" in key or key in SCORES else f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def score(value: float) -> str:
    """Four decimals, or three digits of what would be 0.0000."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.3g}"


def lasted(seconds: float) -> str:
    """`1:02:03`, or `5.2s` where it took less than a minute."""
    return f"{seconds:.1f}s" if seconds < 60 else clock(seconds)


def brief(value: Any) -> str:
    """A config value, a version or a hash as people need it: `null`, and the beginning of a hash."""
    text = "null" if value is None else cell("", value)
    return text[:HASH] if len(text) in (40, 64) and set(text) <= set("0123456789abcdef") else text


def span(seconds: float) -> str:
    """`3d`, `5h`, `12min`, `40s`: a length of time in its largest unit."""
    for unit, size in SPANS.items():
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return "0s"


def mean(key: str, one: Any, runs: int) -> str:
    """`0.8347 ± 0.0021`; how many runs have the figure, where not all do."""
    if one.mean is None:
        return ""
    spread = "" if one.std is None else f" ± {cell(key, one.std)}"
    return f"{cell(key, float(one.mean))}{spread}" + (f" ({one.n})" if one.n != runs else "")


def group_cells(groups: Sequence[Group]) -> list[Facts]:
    """Groups as rows for people: mean and spread in one cell."""
    return [
        {
            **{key: cell(key, value) for key, value in one.keys.items()},
            "runs": len(one.runs),
            **{name: mean(name, figure, len(one.runs)) for name, figure in one.means.items()},
        }
        for one in groups
    ]


# ---------------------------------------------------------------- tables


def aligned(
    rows: Sequence[Facts], columns: Sequence[str], wide: int | None = None, figures: Collection[str] = ()
) -> str:
    """A table under its heads: numbers to the right, texts to the left.

    Args:
        rows: values by column.
        columns: in this order.
        wide: columns of the terminal; texts and heads are shortened until it fits. None: as wide as it is.
        figures: columns that hold numbers written as texts.
    """
    cells = [[cell(key, row.get(key)) for key in columns] for row in rows]
    right = [key in figures or _is_numeric(rows, key) for key in columns]
    widths = _widths(cells, columns, right, wide)
    lines = [list(columns), ["-" * size for size in widths], *cells]
    return "\n".join(
        GAP.join(pad(squeeze(t, n), n, way) for t, n, way in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def squeeze(text: str, columns: int) -> str:
    """`text` without its middle where it is too long: names differ at both ends."""
    text = one_line(text)
    if width(text) <= columns:
        return text
    end = ""
    while width(text[-len(end) - 1 :]) <= (columns - 1) // 2:
        end = text[-len(end) - 1 :]
    return cut(text, columns - width(end)) + end


def _is_numeric(rows: Sequence[Facts], key: str) -> bool:
    there = [row[key] for row in rows if row.get(key) is not None]
    return bool(there) and all(isinstance(value, (int, float)) for value in there)


def _widths(
    cells: Sequence[Sequence[str]], columns: Sequence[str], right: Sequence[bool], wide: int | None
) -> list[int]:
    """Columns for each column; the widest gives way first."""
    inner = [max((width(line[place]) for line in cells), default=0) for place in range(len(columns))]
    sizes = [max(width(name), size) for name, size in zip(columns, inner, strict=True)]
    least = [size if way else min(size, NARROW) for size, way in zip(inner, right, strict=True)]
    while wide is not None and sum(sizes) + len(GAP) * (len(sizes) - 1) > wide:
        loose = [place for place, size in enumerate(sizes) if size > max(least[place], 1)]
        if not loose:
            break
        sizes[max(loose, key=lambda place: sizes[place])] -= 1
    return sizes


def markdown(rows: Sequence[Facts], columns: Sequence[str], figures: Collection[str] = ()) -> str:
    """A table for a README or an issue."""
    right = [key in figures or _is_numeric(rows, key) for key in columns]
    heads = ["---:" if way else "---" for way in right]
    cells = [[cell(key, row.get(key)) for key in columns] for row in rows]
    return "\n".join(
        f"| {' | '.join(_escaped(text) for text in line)} |" for line in [list(columns), heads, *cells]
    )


def _escaped(text: str) -> str:
    return shorten(text, 10_000).replace("\\", "\\\\").replace("|", "\\|")


# ---------------------------------------------------------------- for programs


def comma_separated(rows: Sequence[Facts], columns: Sequence[str]) -> str:
    """CSV (RFC 4180) in full precision; what is missing is empty, lists are JSON."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = [row.get(key) for key in columns]
        writer.writerow([json.dumps(one) if isinstance(one, (list, dict, bool)) else one for one in values])
    return file.getvalue().removesuffix("\n")


def as_json(found: Any) -> str:
    """JSON in full precision; NaN and infinities, which it hasn't, are the strings "nan", "inf", "-inf"."""
    return json.dumps(finite(found), indent=1, ensure_ascii=False, allow_nan=False, default=str)


def finite(found: Any) -> Any:
    """The same without a float that JSON hasn't."""
    if isinstance(found, Mapping):
        return {str(name): finite(value) for name, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [finite(value) for value in found]
    return str(found) if isinstance(found, float) and not math.isfinite(found) else found


def render(
    rows: Sequence[Facts],
    columns: Sequence[str],
    form: Format,
    wide: int | None = None,
    figures: Collection[str] = (),
) -> str:
    """Rows in one of the formats; see `aligned`."""
    if form == "table":
        return aligned(rows, columns, wide, figures)
    if form == "markdown":
        return markdown(rows, columns, figures)
    found = [{key: row.get(key) for key in columns} for row in rows]
    return as_json(found) if form == "json" else comma_separated(found, columns)
