"""Look through labelled rows before they train anything, and do what the policies say about each finding.

Seven kinds of finding, always looked for in this order:

1. `empty`, `missing_label`, `unknown_label`: a row by itself (a row counts under the first that applies);
2. `duplicates`, `near_duplicates`, `contradictions`: a row against earlier or other rows of its own split;
3. `leaks`: a row against the splits held out from its own.

Later steps see only what earlier steps kept, so a leak into a row that was dropped anyway is no leak.
Contradictions are looked for within a split alone: dropping train rows because test labels disagree would be
learning from the test set.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

from whet.config import Component
from whet.data.source import SPLITS
from whet.data.table import Table
from whet.errors import DataError, nearest, one_line

Policy = Literal["keep", "drop", "refuse"]
LABEL_KINDS = ("missing_label", "unknown_label")
Strict = Literal["drop", "refuse"]
"""Rows that can neither be learnt nor scored are never kept."""
Key = tuple[str, ...]

ALONE = ("empty", "missing_label", "unknown_label")
WITHIN = ("duplicates", "near_duplicates", "contradictions")
KINDS = (*ALONE, *WITHIN, "leaks")
MEANING = {
    "empty": "text is empty",
    "missing_label": "label is missing",
    "unknown_label": "label is not among the task's labels",
    "duplicates": "repeats an earlier row letter for letter, label included",
    "near_duplicates": "repeats an earlier row but for case, white space or punctuation",
    "contradictions": "same text as another row of the split, other label",
    "leaks": "same text as a row of a split held out from it",
}
INVISIBLE = "\u00ad\u200b\ufeff"
"""Soft hyphen, zero-width space, byte order mark: not white space to Python, nothing to a reader."""
SHOWN = 5
"""Sample rows a finding carries."""


# ---------------------------------------------------------------- normal form


class _Fold(dict[int, int | None]):
    """`str.translate` table that deletes punctuation and the invisible; remembers what it looked up."""

    def __missing__(self, code: int) -> int | None:
        gone = unicodedata.category(chr(code)).startswith("P") or chr(code) in INVISIBLE
        self[code] = None if gone else code
        return self[code]


_FOLD = _Fold()


def normalise(text: str) -> str:
    """The form under which two texts count as the same: NFKC, case folded, white space and punctuation gone.

    Emoji and other symbols stay. A text of nothing but punctuation keeps it, so that `?!` and `...` differ.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return " ".join(folded.translate(_FOLD).split()) or folded


def text_key(texts: Sequence[str]) -> Key:
    """The normal form of a row's text or pair of texts."""
    return tuple(normalise(text) for text in texts)


def label_key(label: Any) -> Any:
    """A label as something hashable; the order of a multi-label row's names doesn't matter."""
    return tuple(sorted(map(str, label))) if isinstance(label, (list, tuple)) else label


def is_missing(label: Any) -> bool:
    """None, NaN, a blank name, or a list that holds one. An empty list isn't missing anything."""
    if isinstance(label, (list, tuple)):
        return any(is_missing(item) for item in label)
    if isinstance(label, str):
        return not label.strip()
    return label is None or label != label  # NaN is the one value that differs from itself


# ---------------------------------------------------------------- findings


@dataclass(frozen=True)
class Finding:
    """One kind of finding in one split."""

    split: str
    kind: str
    count: int
    """Rows it concerns; a row that an earlier kind dropped isn't counted again."""
    dropped: int
    """How many of them were dropped: all or none."""
    samples: tuple[tuple[str, str], ...]
    """(id, shortened text) of the first few."""


@dataclass
class Findings:
    """All that an audit found."""

    rows: dict[str, int] = field(default_factory=dict)
    """Rows a split had before the audit."""
    found: list[Finding] = field(default_factory=list)

    def get(self, split: str, kind: str) -> Finding:
        """That finding, with count 0 where there was none."""
        matching = [one for one in self.found if (one.split, one.kind) == (split, kind)]
        return matching[0] if matching else Finding(split, kind, 0, 0, ())

    def lines(self) -> list[str]:
        """A readable summary, a line for each split and finding and one for each sample."""
        return [line for split in self.rows for line in self._lines(split)]

    def _lines(self, split: str) -> Iterator[str]:
        mine = [one for one in self.found if one.split == split]
        dropped = sum(one.dropped for one in mine)
        verdict = f"{dropped:,} dropped" if dropped else "none dropped"
        yield f"{split}: {self.rows[split]:,} rows, {verdict if mine else 'nothing found'}"
        for one in mine:
            yield f"  {one.kind}: {one.count:,} {'dropped' if one.dropped else 'kept'} ({MEANING[one.kind]})"
            yield from (f"    {row}: {text}" for row, text in one.samples)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON: {split: {rows, dropped, <kind>: {count, dropped, samples}}}."""
        return {split: {"rows": rows, **self._kinds(split)} for split, rows in self.rows.items()}

    def _kinds(self, split: str) -> dict[str, Any]:
        mine = [one for one in self.found if one.split == split]
        shown = {
            one.kind: {"count": one.count, "dropped": one.dropped, "samples": _pairs(one)} for one in mine
        }
        return {"dropped": sum(one.dropped for one in mine), **shown}


def _pairs(one: Finding) -> list[dict[str, str]]:
    return [{"id": row, "text": text} for row, text in one.samples]


def _shorten(texts: Sequence[str], limit: int = 80) -> str:
    text = one_line(" | ".join(texts))
    return text if len(text) <= limit else text[: limit - 1] + "…"


# ---------------------------------------------------------------- the audit


@dataclass(kw_only=True)
class Audit(Component):
    """What to do about each kind of finding: keep the rows, drop them, or refuse to go on."""

    empty: Policy = "drop"
    """Rows of which a text is empty or nothing but white space."""
    missing_label: Strict = "drop"
    """Rows without a label."""
    unknown_label: Strict = "refuse"
    """Rows whose label is not among the task's."""
    duplicates: Policy = "keep"
    """Later copies of a row (same text and label) within a split; kept because benchmarks count them."""
    near_duplicates: Policy = "keep"
    """Later rows of a split equal to an earlier one but for case, white space or punctuation, same label."""
    leaks: Policy = "drop"
    """Train rows also in validation or test, and validation rows also in test; never taken from test."""
    contradictions: Policy = "keep"
    """Rows of one text that carry different labels within a split; dropping drops all of them."""

    def run(
        self, splits: dict[str, Table], labels: Sequence[str] | None
    ) -> tuple[dict[str, Table], Findings]:
        """Audit all splits.

        Args:
            splits: rows by split name; not changed.
            labels: the task's label names; None for regression, where any number will do.

        Returns:
            The rows kept, in their order, and what was found.

        Raises:
            DataError: a policy says `refuse`, or nothing is left of a split.
        """
        keys = {texts: text_key(texts) for table in splits.values() for texts in set(table.texts)}
        sweep = _Sweep(self, labels, Findings({name: len(table) for name, table in splits.items()}))
        alone = {name: sweep.apply(name, table, _alone(table, labels)) for name, table in splits.items()}
        within = {name: sweep.apply(name, table, _within(table, keys)) for name, table in alone.items()}
        held = {name: {keys[texts] for texts in table.texts} for name, table in within.items()}
        kept = {
            name: sweep.apply(name, table, _leaks(name, table, keys, held)) for name, table in within.items()
        }
        for name, table in kept.items():
            _not_emptied(name, table, sweep.findings)
        return kept, sweep.findings


@dataclass
class _Sweep:
    audit: Audit
    labels: Sequence[str] | None
    findings: Findings

    def apply(self, split: str, table: Table, hits: Mapping[str, list[int]]) -> Table:
        """Do what the policies say about `hits` (rows by kind), note it, and return the rows kept."""
        gone: set[int] = set()
        for kind in KINDS:
            if rows := [row for row in hits.get(kind, ()) if row not in gone]:
                gone |= set(rows) if self._drops(split, kind, table, rows) else set()
        return table.take([row for row in range(len(table)) if row not in gone]) if gone else table

    def _drops(self, split: str, kind: str, table: Table, rows: list[int]) -> bool:
        policy: Policy = getattr(self.audit, kind)
        if policy == "refuse":
            raise _refusal(split, kind, table.take(rows), self.labels)
        samples = tuple((table.ids[row], _shorten(table.texts[row])) for row in rows[:SHOWN])
        dropped = len(rows) if policy == "drop" else 0
        self.findings.found.append(Finding(split, kind, len(rows), dropped, samples))
        return policy == "drop"


def _alone(table: Table, labels: Sequence[str] | None) -> dict[str, list[int]]:
    known = None if labels is None else set(labels)
    hits: dict[str, list[int]] = defaultdict(list)
    for row, (texts, label) in enumerate(zip(table.texts, table.labels, strict=True)):
        if any(_blank(text) for text in texts):
            hits["empty"].append(row)
        elif is_missing(label):
            hits["missing_label"].append(row)
        elif known is not None and not known.issuperset(_names(label)):
            hits["unknown_label"].append(row)
    return hits


def _blank(text: str) -> bool:
    return all(letter.isspace() or letter in INVISIBLE for letter in text)


def _names(label: Any) -> list[str]:
    return [str(item) for item in label] if isinstance(label, (list, tuple)) else [str(label)]


def _within(table: Table, key_of: Mapping[Key, Key]) -> dict[str, list[int]]:
    keys = [key_of[texts] for texts in table.texts]
    labels = [None if is_missing(label) else label_key(label) for label in table.labels]
    exact: set[tuple[Key, Any]] = set()
    near: set[tuple[Key, Any]] = set()
    hits: dict[str, list[int]] = defaultdict(list)
    for row, (texts, key, label) in enumerate(zip(table.texts, keys, labels, strict=True)):
        if (texts, label) in exact:
            hits["duplicates"].append(row)
        elif (key, label) in near:
            hits["near_duplicates"].append(row)
        exact.add((texts, label))
        near.add((key, label))
    hits["contradictions"] = _contradictions(keys, labels)
    return hits


def _contradictions(keys: Sequence[Key], labels: Sequence[Any]) -> list[int]:
    said: dict[Key, set[Any]] = defaultdict(set)
    for key, label in zip(keys, labels, strict=True):
        if label is not None:
            said[key].add(label)
    return [row for row, key in enumerate(keys) if labels[row] is not None and len(said[key]) > 1]


def _leaks(
    split: str, table: Table, keys: Mapping[Key, Key], held: Mapping[str, set[Key]]
) -> dict[str, list[int]]:
    """Rows of `split` that a split of later purpose (train, then validation, then test) holds too."""
    later = SPLITS[SPLITS.index(split) + 1 :] if split in SPLITS else ()
    guarded: set[Key] = set().union(*(held.get(name, set()) for name in later))
    return {"leaks": [row for row, texts in enumerate(table.texts) if keys[texts] in guarded]}


# ---------------------------------------------------------------- refusals


def _refusal(split: str, kind: str, rows: Table, labels: Sequence[str] | None) -> DataError:
    shown = "; ".join(
        f"{row} {_shorten(texts, 40)!r}" for row, texts in list(zip(rows.ids, rows.texts, strict=True))[:3]
    )
    which = _strangers(rows, labels or ()) if kind == "unknown_label" else ""
    many = f"{len(rows):,} row{'s' if len(rows) != 1 else ''} of {split}: {MEANING[kind]}"
    keep = "" if kind in LABEL_KINDS else f" or {kind}=keep"
    allow = f"put the data right, or allow it with {kind}=drop (leave the rows out){keep}"
    return DataError(kind, f"{many}{which} (first: {shown}); {allow}", "refuse")


def _strangers(rows: Table, labels: Sequence[str]) -> str:
    names: dict[str, int] = defaultdict(int)
    for label in rows.labels:
        for name in set(_names(label)) - set(labels):
            names[name] += 1
    common = sorted(names, key=lambda name: (-names[name], name))
    counts = ", ".join(f"{name!r} {names[name]:,}×" for name in common[:SHOWN])
    return f": {counts}; for {common[0]!r} {nearest(common[0], labels)}"


def _not_emptied(split: str, table: Table, findings: Findings) -> None:
    if len(table) or not findings.rows[split]:
        return
    worst = max((one for one in findings.found if one.split == split), key=attrgetter("dropped"))
    many = f"{worst.dropped:,} of {findings.rows[split]:,} rows dropped ({MEANING[worst.kind]})"
    problem = f"left nothing of {split}: {many}"
    keep = "" if worst.kind in LABEL_KINDS else f", or keep the rows with {worst.kind}=keep"
    raise DataError(worst.kind, f"{problem}; put the data right{keep}", "drop")
