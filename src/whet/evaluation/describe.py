"""What there is to know of a data set before training on it, as plain numbers and as text for a terminal.

Words are counted as runs of letters and digits; each Chinese character and each kana counts as one word.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from whet.data.audit import Findings, is_missing
from whet.data.table import Table
from whet.errors import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERCENTILES = (5, 50, 90, 95, 99)
MAX_CLASSES = 20
"""Classes of a split that `render` lists; the rest are summed up in one line."""
BAR = 24
"""Columns of the bar of 100 %."""
_CJK = "぀-ヿ㐀-䶿一-鿿豈-﫿\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


# ---------------------------------------------------------------- text in a terminal


def width(text: str) -> int:
    """Columns that `text` takes in a terminal: two for East Asian wide letters and emoji, none for marks."""
    return sum(map(_columns, text))


def _columns(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def shorten(text: str, columns: int) -> str:
    """`text` on one line of at most `columns`, an ellipsis where it was cut."""
    return cut(one_line("".join(" " if unicodedata.category(c) == "Cc" else c for c in text)), columns)


def cut(line: str, columns: int) -> str:
    """The first `columns` of a line, its spaces kept, an ellipsis where it was cut."""
    if width(line) <= columns:
        return line
    used = itertools.accumulate(map(_columns, line))
    return "".join(letter for letter, end in zip(line, used, strict=True) if end < columns) + "…" * (
        columns > 0
    )


def pad(text: str, columns: int, right: bool = False) -> str:
    """`text` shortened to `columns` and filled up with spaces; `right` aligns it to the right."""
    short = shorten(text, columns)
    space = " " * (columns - width(short))
    return space + short if right else short + space


# ---------------------------------------------------------------- numbers


def describe(
    splits: dict[str, Table],
    lengths: Mapping[str, NDArray[Any]] | None = None,
    truncated: Mapping[str, int] | None = None,
    *,
    max_length: int | None = None,
    padding: Mapping[str, float] | None = None,
    findings: Findings | None = None,
    sample_rows: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures, as plain containers for JSON.

    Args:
        splits: rows by split.
        lengths: tokens of each row, by split, as the model will see them.
        truncated: rows cut at `max_length`, by split.
        max_length: where they were cut.
        padding: share of a batch's tokens that are padding, by split or by way of batching (0 to 1).
        findings: what the audit found.
        sample_rows: rows shown of all splits together, the first split first.
        seed: draws them.
    """
    tokens, lost = lengths or {}, truncated or {}
    parts = {name: _split(table, tokens.get(name), lost.get(name)) for name, table in splits.items()}
    return {
        "splits": parts,
        "max_length": max_length,
        "padding": {name: float(share) for name, share in (padding or {}).items()},
        "findings": findings.to_dict() if findings else None,
        "notes": findings.lines() if findings else [],
        "samples": _samples(splits, sample_rows, seed),
    }


def _split(table: Table, tokens: NDArray[Any] | None, truncated: int | None) -> dict[str, Any]:
    measured: dict[str, Sequence[int]] = {
        "characters": [sum(map(len, texts)) for texts in table.texts],
        "words": [sum(words(text) for text in texts) for texts in table.texts],
    }
    if tokens is not None:
        measured["tokens"] = [int(length) for length in tokens]
    found: dict[str, Any] = {"rows": len(table), **_labels(table.labels)}
    found["lengths"] = {unit: percentiles(values) for unit, values in measured.items()}
    if truncated is not None:
        found["truncated"] = {"rows": int(truncated), "share": truncated / max(1, len(table))}
    return found


def words(text: str) -> int:
    """Words of `text`; Chinese characters and kana count one each."""
    return sum(1 for _ in _WORD.finditer(text))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p5, p50, p90, p95, p99 (linear between neighbours), max and mean; empty for no values."""
    import numpy as np

    if not len(values):
        return {}
    found = {
        f"p{rank}": float(value)
        for rank, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)
    }
    return {**found, "max": float(max(values)), "mean": float(np.mean(values))}


def _labels(labels: Sequence[Any]) -> dict[str, Any]:
    """`balance` for classes, `values` for numbers; rows without a label are counted apart."""
    present = [label for label in labels if not is_missing(label)]
    unlabelled = {"unlabelled": len(labels) - len(present)}
    if present and all(isinstance(label, (int, float)) for label in present):
        return {**unlabelled, "values": {**percentiles(present), "min": float(min(present))}}
    names = Counter(name for label in present for name in ([label] if isinstance(label, str) else label))
    rows = max(1, len(present))
    ordered = sorted(names.items(), key=lambda item: (-item[1], str(item[0])))
    return {**unlabelled, "balance": [{"label": str(n), "count": c, "share": c / rows} for n, c in ordered]}


def _samples(splits: dict[str, Table], count: int, seed: int) -> list[dict[str, Any]]:
    everything = [(name, table, row) for name, table in splits.items() for row in range(len(table))]
    drawn = sorted(random.Random(seed).sample(range(len(everything)), min(count, len(everything))))
    picked = [everything[place] for place in drawn]
    return [
        {"split": n, "id": t.ids[r], "label": t.labels[r], "texts": list(t.texts[r])} for n, t, r in picked
    ]


# ---------------------------------------------------------------- text


def render(description: Mapping[str, Any], columns: int = 100) -> str:
    """A description as text for a terminal of so many columns."""
    lines: list[str] = []
    for name, split in description["splits"].items():
        lines += [f"{name}: {split['rows']:,} rows", *_balance(split, columns), *_numbers(split), ""]
    lines += [*_lengths(description, columns), ""]
    for title, block in (
        ("audit", description["notes"]),
        ("sample rows", _shown(description["samples"], columns)),
    ):
        lines += [title, *("  " + cut(line, columns - 2) for line in block), ""] if block else []
    return "\n".join(lines).rstrip() + "\n"


def _balance(split: Mapping[str, Any], columns: int) -> Iterator[str]:
    if split["unlabelled"]:
        yield f"  without a label: {split['unlabelled']:,}"
    classes = split.get("balance", [])
    room = max(8, min(32, columns - BAR - 24))
    names = min(room, max((width(one["label"]) for one in classes[:MAX_CLASSES]), default=0))
    for one in classes[:MAX_CLASSES]:
        bar = _bar(one["share"])
        yield f"  {pad(one['label'], names)}  {one['count']:>9,}  {one['share']:>6.1%}  {bar}".rstrip()
    if rest := classes[MAX_CLASSES:]:
        rows = [one["count"] for one in rest]
        yield f"  … {len(rest)} more labels of {min(rows):,} to {max(rows):,} rows"


def _bar(share: float) -> str:
    eighths = math.ceil(share * BAR * 8) if share > 0 else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _numbers(split: Mapping[str, Any]) -> Iterator[str]:
    if values := split.get("values"):
        shown = ("min", *(f"p{rank}" for rank in PERCENTILES), "max", "mean")
        yield "  label  " + "  ".join(f"{name} {values[name]:.4g}" for name in shown if name in values)


def _lengths(description: Mapping[str, Any], columns: int) -> Iterator[str]:
    names = [f"p{rank}" for rank in PERCENTILES] + ["max", "mean"]
    cell = max(7, min(9, (columns - 26) // len(names)))
    yield pad("lengths", 26) + "".join(pad(name, cell, right=True) for name in names)
    for name, split in description["splits"].items():
        for unit, found in split["lengths"].items():
            if found:
                cells = "".join(pad(f"{found[n]:,.1f}".removesuffix(".0"), cell, right=True) for n in names)
                yield cut(f"  {pad(name, 12)}{pad(unit, 12)}{cells}".rstrip(), columns)
    limit = f" at {description['max_length']} tokens" if description["max_length"] else ""
    for name, split in description["splits"].items():
        if lost := split.get("truncated"):
            yield f"  {pad(name, 12)}truncated{limit}: {lost['rows']:,} rows ({lost['share']:.2%})"
    for name, share in description["padding"].items():
        yield f"  {pad(name, max(12, width(name) + 2))}padding: {share:.1%} of a batch's tokens"


def _label(label: Any) -> str:
    return ", ".join(map(str, label)) if isinstance(label, (list, tuple)) else str(label)


def _shown(samples: Sequence[Mapping[str, Any]], columns: int) -> Iterator[str]:
    labels = [_label(one["label"]) for one in samples]
    ids = min(20, max((width(one["id"]) for one in samples), default=0))
    names = min(20, max(map(width, labels), default=0))
    for one, label in zip(samples, labels, strict=True):
        head = f"{pad(one['split'], 10)}  {pad(one['id'], ids)}  {pad(label, names)}  "
        yield head + shorten(" | ".join(one["texts"]), max(10, columns - 2 - width(head)))
