"""Labelled rows from the user's own files: CSV, TSV, JSON, JSON lines, Parquet, plain text."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import difflib
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from whet.data.source import UNSPLIT, Source
from whet.errors import DataError, nearest, one_line
from whet.storage import file_sha256

if TYPE_CHECKING:
    import datasets

    from whet.paths import Paths

Format = Literal["auto", "csv", "tsv", "jsonl", "json", "parquet", "txt"]
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "txt",
}
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Split → file names (without suffix) that a folder may give it."""


@dataclass(kw_only=True)
class Tabular(Source):
    """How a file of rows is laid out; every source that reads files shares these settings."""

    format: Format = "auto"
    """File format; `auto` goes by the suffix."""
    delimiter: str | None = None
    """Field separator; a comma for csv and a tab for tsv unless given."""
    encoding: str = "utf-8"
    """Text encoding (not of parquet); a byte order mark is dropped."""
    quotes: bool = True
    """Whether a double quote encloses fields (csv, tsv); false where it's an ordinary character."""
    columns: list[str] | None = None
    """Column names of a file without a header line (csv, tsv), or the one column of plain text."""
    skip_rows: list[int] = field(default_factory=list)
    """Rows to leave out (csv, tsv), counted from 0, the header included."""
    ragged: bool = False
    """Accept rows with too few fields (the rest is empty) or too many (the rest is dropped)."""
    pick: dict[str, str] = field(default_factory=dict)
    """Columns out of nested values (json, jsonl): name → dotted path such as `input.1.content`."""
    where: dict[str, str | int | bool | list[str | int | bool]] = field(default_factory=dict)
    """Keep only the rows whose column has this value (or one of these)."""

    def table(self, path: Path, paths: Paths) -> datasets.Dataset:
        """Read one file with these settings and filter it."""
        layout = [f.name for f in dataclasses.fields(Tabular) if f.name not in ("pick", "where")]
        settings = {name: getattr(self, name) for name in layout}
        table = read_table(path, cache=paths.cached("datasets"), **settings)
        return keep(picked(table, self.pick) if self.pick else table, self.where)


@dataclass(kw_only=True)
class Files(Tabular):
    """Labelled rows from files on this machine: one file, a folder of splits, or one file a split."""

    path: str | None = None
    """A file, or a folder that holds train, validation (dev, valid, val) and test files."""
    train: str | None = None
    """File of the training split, in place of `path`."""
    validation: str | None = None
    """File of the validation split."""
    test: str | None = None
    """File of the test split."""

    def read(self, paths: Paths) -> dict[str, datasets.Dataset]:
        return {split: self.table(file, paths) for split, file in self._files().items()}

    def _files(self) -> dict[str, Path]:
        given = {name: getattr(self, name) for name in SPLIT_NAMES if getattr(self, name) is not None}
        if (self.path is None) == (not given):
            raise DataError("path", "give either path, or train (with validation, test)", self.path)
        if self.path is None:
            return {split: existing(file, split) for split, file in given.items()}
        path = existing(self.path, "path")
        return splits_in(path) if path.is_dir() else {UNSPLIT: path}


def existing(given: str, key: str) -> Path:
    """The path, if there's something; else an error that names its neighbours."""
    path = Path(given).expanduser()
    if path.exists():
        return path
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4) or sorted(names)[:5]
    where = f"in {path.parent.absolute()}" if path.parent.is_dir() else f"(nor a folder {path.parent})"
    raise DataError(key, f"no such file {where}; {nearest(path.name, close)}", given)


def splits_in(folder: Path) -> dict[str, Path]:
    """The files of a folder that are named after splits.

    Raises:
        DataError: none, or two for one split.
    """
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        own = [path for path in files if path.stem.lower() in names]
        if len(own) > 1:
            raise DataError("path", f"two files for {split}: {own[0].name} and {own[1].name}", str(folder))
        if own:
            found[split] = own[0]
    if not found:
        seen = ", ".join(path.name for path in files[:5]) or "no table at all"
        raise DataError("path", f"no train, validation or test file; the folder holds {seen}", str(folder))
    return found


# ---------------------------------------------------------------- reading one file


def read_table(
    path: Path,
    *,
    cache: Path,
    format: Format = "auto",
    delimiter: str | None = None,
    encoding: str = "utf-8",
    quotes: bool = True,
    columns: list[str] | None = None,
    skip_rows: Sequence[int] = (),
    ragged: bool = False,
) -> datasets.Dataset:
    """Rows of one file, kept as Arrow below `cache` under the hash of its content.

    Every column of a CSV, TSV or text file is text, exactly as it stands there: `NA` stays `NA`, `007` stays
    `007`, nothing becomes a number. JSON and Parquet keep the types they state.

    Raises:
        DataError: unknown format, wrong encoding, malformed rows (with their line), or no row at all.
    """
    kind = _kind(path, format)
    room = cache / _content(path)
    if kind in ("json", "jsonl", "parquet"):
        return _not_empty(_typed(path, kind, encoding, room), path)
    plan = _Plan(str(path), kind, delimiter, encoding, quotes, tuple(columns or ()), tuple(skip_rows), ragged)
    return _not_empty(_generated(plan, room), path)


def _kind(path: Path, format: str) -> str:
    kind = SUFFIXES.get(path.suffix.lower()) if format == "auto" else format
    if kind is None:
        problem = f"can't tell the format of {path.name}; {nearest(path.suffix, SUFFIXES)}"
        raise DataError("format", problem, format)
    return kind


def _content(path: Path) -> str:
    return file_sha256(path)[:24]


def _not_empty(table: datasets.Dataset, path: Path) -> datasets.Dataset:
    if not len(table):
        raise DataError("path", "holds no rows", str(path))
    return table


def _typed(path: Path, kind: str, encoding: str, room: Path) -> datasets.Dataset:
    import datasets

    options = {"data_files": str(path), "split": "train", "cache_dir": str(room)}
    if kind == "parquet":
        return _readable(path, lambda: datasets.load_dataset("parquet", **options))
    table = _readable(path, lambda: datasets.load_dataset("json", encoding=encoding, **options))
    dates = [name for name, feature in table.features.items() if "timestamp" in str(feature)]
    return _as_text(table, dates, path, encoding, room) if dates else table


def _as_text(
    table: datasets.Dataset, columns: list[str], path: Path, encoding: str, room: Path
) -> datasets.Dataset:
    """The same JSON with `columns` as they stand: Arrow takes strings that look like dates for times."""
    import datasets

    features = datasets.Features({**table.features, **dict.fromkeys(columns, datasets.Value("string"))})
    make: Callable[..., Any] = datasets.Dataset.from_generator
    rows = {"path": str(path), "encoding": encoding, "names": tuple(features)}
    return _readable(path, lambda: make(_json_rows, features=features, cache_dir=str(room), gen_kwargs=rows))


def _json_rows(path: str, encoding: str, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    text = Path(path).read_text(encoding=encoding).lstrip("\ufeff")
    found = json.loads(text) if text.startswith("[") else map(json.loads, filter(str.strip, text.split("\n")))
    for row in found:
        yield {name: row.get(name) for name in names}


def _generated(plan: _Plan, room: Path) -> datasets.Dataset:
    import datasets

    names = _column_names(plan)
    if next(_rows(plan, names), None) is None:
        raise DataError("path", "holds no rows", plan.path)
    features = datasets.Features({name: datasets.Value("string") for name in names})
    key = hashlib.sha256(json.dumps(dataclasses.astuple(plan)).encode()).hexdigest()[:16]
    make: Callable[..., Any] = datasets.Dataset.from_generator
    settings = {"features": features, "cache_dir": str(room), "fingerprint": key}
    return _readable(
        Path(plan.path), lambda: make(_rows, gen_kwargs={"plan": plan, "names": names}, **settings)
    )


def _readable(path: Path, read: Callable[[], datasets.Dataset]) -> datasets.Dataset:
    """Run a reader of the datasets library, its errors in one line."""
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowInvalid

    try:
        with quiet():
            return read()
    except (DatasetGenerationError, ArrowInvalid, StopIteration) as error:
        cause = error.__cause__ or error
        if isinstance(cause, DataError):
            raise cause from None
        raise DataError(
            "path", f"can't be read: {one_line(cause)[:300] or 'it is empty'}", str(path)
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of the datasets library, and no log lines for what is raised anyway."""
    import datasets

    shown, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


# ---------------------------------------------------------------- CSV and text, as they stand


@dataclass(frozen=True)
class _Plan:
    path: str
    kind: str
    delimiter: str | None
    encoding: str
    quotes: bool
    columns: tuple[str, ...]
    skip_rows: tuple[int, ...]
    ragged: bool


def _lines(plan: _Plan) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every row that is neither blank nor skipped, header included."""
    encoding = "utf-8-sig" if plan.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else plan.encoding
    try:
        with Path(plan.path).open(encoding=encoding, newline="") as source:
            yield from _text_lines(source) if plan.kind == "txt" else _csv_lines(source, plan)
    except LookupError:
        raise DataError("encoding", "no such text encoding", plan.encoding) from None
    except UnicodeDecodeError as error:
        problem = f"{plan.path} is not {plan.encoding} (byte {error.start}); try latin-1 or gb18030"
        raise DataError("encoding", problem, plan.encoding) from None


def _text_lines(source: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(source, start=1):
        if line.strip():
            yield number, [line.rstrip("\r\n")]


def _csv_lines(source: Iterator[str], plan: _Plan) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(sys.maxsize)
    quoting: Any = csv.QUOTE_MINIMAL if plan.quotes else csv.QUOTE_NONE
    delimiter = plan.delimiter or ("\t" if plan.kind == "tsv" else ",")
    reader = csv.reader(source, delimiter=delimiter, quoting=quoting)
    try:
        for place, fields in enumerate(reader):
            if fields and place not in plan.skip_rows:
                yield reader.line_num, fields
    except csv.Error as error:
        raise DataError("path", f"line {reader.line_num}: {error}", plan.path) from None


def _column_names(plan: _Plan) -> tuple[str, ...]:
    if plan.columns or plan.kind == "txt":
        return plan.columns or ("text",)
    header = next((fields for _, fields in _lines(plan)), [])
    names = [name.strip() or f"column_{place}" for place, name in enumerate(header, start=1)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        problem = f"{plan.path} names a column twice: {', '.join(sorted(twice))}; list them here"
        raise DataError("columns", problem, list(plan.columns) or None)
    return tuple(names)


def _rows(plan: _Plan, names: tuple[str, ...]) -> Iterator[dict[str, str | None]]:
    headless = bool(plan.columns) or plan.kind == "txt"
    for number, fields in itertools.islice(_lines(plan), 0 if headless else 1, None):
        if len(fields) != len(names) and not plan.ragged:
            problem = f"line {number} has {len(fields)} fields, not {len(names)} (ragged=true accepts it)"
            raise DataError("path", problem, plan.path)
        padded = [*fields, *[None] * (len(names) - len(fields))]
        yield dict(zip(names, padded, strict=False))


# ---------------------------------------------------------------- picking and filtering


def picked(table: datasets.Dataset, pick: dict[str, str]) -> datasets.Dataset:
    """A table of the values at the given dotted paths.

    Raises:
        DataError: a path leads nowhere in some row.
    """
    import datasets

    rows = list(table)
    return datasets.Dataset.from_dict({name: [_at(row, path) for row in rows] for name, path in pick.items()})


def _at(value: Any, path: str) -> Any:
    for step in path.split("."):
        try:
            value = value[int(step) if isinstance(value, list) else step]
        except (KeyError, IndexError, TypeError, ValueError):
            held = nearest(step, value) if isinstance(value, dict) else f"there's {one_line(value)[:60]}"
            raise DataError("pick", f"no {step} in some row; {held}", path) from None
    return value


def keep(table: datasets.Dataset, where: dict[str, Any]) -> datasets.Dataset:
    """The rows whose columns hold the wanted values, compared as text.

    Raises:
        DataError: unknown column, or nothing matches.
    """
    for column, wanted in where.items():
        if column not in table.column_names:
            raise DataError("where", f"no column {column}; {nearest(column, table.column_names)}", where)
        values = [str(value) for value in table[column][:]]
        accepted = {str(value) for value in (wanted if isinstance(wanted, list) else [wanted])}
        rows = [row for row, value in enumerate(values) if value in accepted]
        if not rows:
            held = ", ".join(sorted(set(values))[:8])
            raise DataError("where", f"matches no row; {column} holds {held}", where)
        table = table.select(rows)
    return table
