"""Unlabelled rows to predict on, from a file or standard input."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from whet.errors import DataError, nearest

if TYPE_CHECKING:
    from whet.paths import Paths

Format = Literal["auto", "csv", "tsv", "jsonl", "parquet", "txt"]


@dataclass(frozen=True)
class Row:
    """One text, or a pair."""

    number: int
    """From 0, in the order of the input."""
    texts: tuple[str, ...]
    id: str | None = None


def read_rows(given: str, columns: list[str], id_column: str | None, format: Format, paths: Paths) -> Iterator[Row]:
    """Rows of `given` (`-` is standard input).

    Standard input holds plain lines, or JSON lines if it starts with `{`; a pair in a plain line is divided
    by a tab. `format=csv` reads a CSV with a header from it.

    Raises:
        DataError: missing file or column, malformed line (named by its number).
    """
    if given == "-":
        return _from_lines(sys.stdin, columns, id_column, format)
    return _from_file(given, columns, id_column, format, paths)


def chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of up to `size` rows."""
    source = iter(rows)
    while chunk := list(itertools.islice(source, size)):
        yield chunk


def _from_file(given: str, columns: list[str], id_column: str | None, format: Format, paths: Paths) -> Iterator[Row]:
    from whet.data.files import existing, read_table

    path = existing(given, "input")
    kind = format if format != "auto" else "txt" if path.suffix.lower() not in _TABLES else "auto"
    if kind == "txt":
        with path.open(encoding="utf-8-sig") as file:
            yield from _from_lines(file, columns, id_column, "txt")
        return
    table = read_table(path, cache=paths.cached("files"), format=kind)
    _has(columns, table.column_names)
    for number, record in enumerate(table):
        yield _row(number, record, columns, id_column)


_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


def _from_lines(lines: Iterable[str], columns: list[str], id_column: str | None, format: Format) -> Iterator[Row]:
    source = iter(lines)
    first = next(source, None)
    if first is None:
        return
    everything = itertools.chain([first], source)
    if format == "jsonl" or (format == "auto" and first.lstrip().startswith("{")):
        yield from _from_json(everything, columns, id_column)
    elif format in ("csv", "tsv"):
        yield from _from_csv(everything, columns, id_column, "\t" if format == "tsv" else ",")
    else:
        for number, line in enumerate(everything):
            yield Row(number, _parts(line.rstrip("\r\n"), len(columns), number))


def _from_csv(lines: Iterable[str], columns: list[str], id_column: str | None, delimiter: str) -> Iterator[Row]:
    reader = csv.DictReader(lines, delimiter=delimiter)
    _has(columns, reader.fieldnames or [])
    for number, record in enumerate(reader):
        yield _row(number, record, columns, id_column)


def _from_json(lines: Iterable[str], columns: list[str], id_column: str | None) -> Iterator[Row]:
    filled = ((place, line) for place, line in enumerate(lines, 1) if line.strip())
    for number, (place, line) in enumerate(filled):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError("input", f"line {place} is not JSON ({error.msg})", line.strip()) from None
        if not isinstance(record, dict):
            raise DataError("input", f"line {place} is not a JSON object", line.strip())
        _has(columns, record)
        yield _row(number, record, columns, id_column)


def _parts(line: str, wanted: int, number: int) -> tuple[str, ...]:
    if wanted == 1:
        return (line,)
    parts = line.split("\t")
    if len(parts) != wanted:
        raise DataError("input", f"line {number + 1} must hold {wanted} texts divided by a tab", line)
    return tuple(parts)


def _has(columns: list[str], known: Iterable[str]) -> None:
    names = list(known)
    for column in columns:
        if column not in names:
            raise DataError("text", f"no such column in the input; {nearest(column, names)}; name yours with text=COLUMN", column)


def _row(number: int, record: Any, columns: list[str], id_column: str | None) -> Row:
    texts = tuple("" if record[column] is None else str(record[column]) for column in columns)
    known = record.get(id_column) if id_column else None
    return Row(number, texts, None if known is None else str(known))
