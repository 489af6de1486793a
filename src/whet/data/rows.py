"""Unlabelled rows to predict on, from a file or standard input."""

from __future__ import annotations

import contextlib
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


def read_rows(
    given: str, columns: list[str], id_column: str | None, format: Format, paths: Paths
) -> Iterator[Row]:
    """Rows of `given` (`-` is standard input), read as they are asked for.

    Standard input holds plain lines, or JSON lines if it starts with `{`; a pair in a plain line is divided
    by a tab. `format=csv` (or tsv) reads a table with a header from it. Of a file, the suffix tells the
    format; one without a known suffix holds plain lines. A row without `id_column` has no id.

    Raises:
        DataError: missing file or column, malformed line (named by its number).
    """
    if given == "-":
        return _readable(given, _from_lines(sys.stdin, columns, id_column, format))
    return _readable(given, _from_file(given, columns, id_column, format, paths))


def _readable(given: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The same rows, with errors that name the config key."""
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise DataError("input", f"is not UTF-8 (byte {error.start} of what was read)", given) from None
    except IsADirectoryError:
        raise DataError("input", "is a folder: name a file", given) from None


def chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of up to `size` rows."""
    source = iter(rows)
    while chunk := list(itertools.islice(source, size)):
        yield chunk


def _from_file(
    given: str, columns: list[str], id_column: str | None, format: Format, paths: Paths
) -> Iterator[Row]:
    from whet.data.files import SUFFIXES, existing, read_table

    path = existing(given, "input")
    kind = format if format != "auto" else SUFFIXES.get(path.suffix.lower(), "txt")
    if kind == "txt":
        with path.open(encoding="utf-8") as file:
            yield from _from_lines(file, columns, id_column, "txt")
        return
    with _about("input", given):
        table = read_table(path, cache=paths.cached("datasets"), format=format)
    _has(columns, table.column_names)
    for number, record in enumerate(table):
        yield _row(number, record, columns, id_column)


@contextlib.contextmanager
def _about(key: str, value: str) -> Iterator[None]:
    """Errors about a file, told of the config key that named it."""
    try:
        yield
    except DataError as error:
        raise DataError(key, error.problem, value) from None


def _from_lines(
    lines: Iterable[str], columns: list[str], id_column: str | None, format: Format
) -> Iterator[Row]:
    if format == "parquet":
        raise DataError("format", "parquet is read from a file only: input=FILE", format)
    source = iter(lines)
    first = next(source, None)
    if first is None:
        return
    first = first.removeprefix("\ufeff")
    everything = itertools.chain([first], source)
    if format == "jsonl" or (format == "auto" and first.lstrip().startswith("{")):
        yield from _from_json(everything, columns, id_column)
    elif format in ("csv", "tsv"):
        yield from _from_csv(everything, columns, id_column, "\t" if format == "tsv" else ",")
    else:
        for number, line in enumerate(everything):
            yield Row(number, _parts(_clean(line.rstrip("\r\n")), len(columns), number))


def _from_csv(
    lines: Iterable[str], columns: list[str], id_column: str | None, delimiter: str
) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        names = next((fields for fields in reader if fields), [])
        _has(columns, names)
        for number, fields in enumerate(fields for fields in reader if fields):
            if len(fields) != len(names):
                problem = f"line {reader.line_num} has {len(fields)} fields, not {len(names)}"
                raise DataError("input", problem, delimiter.join(fields))
            yield _row(number, dict(zip(names, fields, strict=True)), columns, id_column)
    except csv.Error as error:
        raise DataError("input", f"line {reader.line_num}: {error}", "-") from None


def _from_json(lines: Iterable[str], columns: list[str], id_column: str | None) -> Iterator[Row]:
    filled = ((place, line) for place, line in enumerate(lines, 1) if line.strip())
    for number, (place, line) in enumerate(filled):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError("input", f"line {place} is not JSON ({error.msg})", line.strip()) from None
        if not isinstance(record, dict):
            raise DataError("input", f"line {place} is not a JSON object", line.strip())
        _has(columns, record, f"line {place} has")
        yield _row(number, record, columns, id_column)


def _parts(line: str, wanted: int, number: int) -> tuple[str, ...]:
    if wanted == 1:
        return (line,)
    parts = line.split("\t")
    if len(parts) != wanted:
        raise DataError("input", f"line {number + 1} must hold {wanted} texts divided by a tab", line)
    return tuple(parts)


def _has(columns: list[str], known: Iterable[str], who: str = "the input has") -> None:
    names = list(known)
    for column in columns:
        if column not in names:
            problem = f"{who} no such column; {nearest(column, names)}; name yours with text=COLUMN"
            raise DataError("text", problem, column)


def _row(number: int, record: Any, columns: list[str], id_column: str | None) -> Row:
    texts = tuple("" if record[column] is None else _clean(str(record[column])) for column in columns)
    known = record.get(id_column) if id_column else None
    return Row(number, texts, None if known is None else str(known))


def _clean(text: str) -> str:
    """`text` with a question mark for each half of a surrogate pair (no tokenizer takes them)."""
    return text.encode("utf-8", "replace").decode("utf-8")
