"""`whet runs`: what has been run, and what came out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from whet.cli.app import listen
from whet.cli.words import call, completions, help_text, wants_help
from whet.errors import ConfigError, RunError
from whet.review.conditions import GRAMMAR, select
from whet.review.diff import diff
from whet.review.facts import SHORT, Facts, check_keys, keys_of
from whet.review.finding import default_place, find_one, places_of, read_runs, read_sweeps, with_trials
from whet.review.layout import Format, as_json, group_cells, render
from whet.review.records import RunRecord
from whet.review.show import run_text, show_run, show_sweep, sweep_text
from whet.review.table import SWEEP_COLUMNS, arrange, default_columns, doubts, pick
from whet.review.table import group as grouped
from whet.storage import aside
from whet.types import PositiveInt

USAGE = """usage: whet runs [PLACE …] [key=value …]
       whet runs show RUN [format=json]
       whet runs diff A B [C …] [format=json]"""
EXAMPLES = """
    whet runs                                             all runs and sweeps below outputs
    whet runs outputs/sweeps/lr_warmup kind=runs          the runs of one sweep
    whet runs sort=-validation/accuracy limit=10          the best ten
    whet runs where='[peft=lora,optimizer.lr>1e-4]'       quoted, for the shell's sake
    whet runs columns=[name,optimizer.lr,test/accuracy]   any key of the config, figure or metric
    whet runs group=[peft,optimizer.lr]                   mean ± standard deviation over seeds
    whet runs group=peft format=markdown output=peft.md   for a README
    whet runs show 20261123-1815                          all about one run, by the beginning of its name
    whet runs diff base lora                              settings and results that differ
"""
SHOW, DIFF = "show", "diff"
SUFFIXES: dict[str, Format] = {".csv": "csv", ".json": "json", ".md": "markdown"}


def main(arguments: list[str]) -> int:
    """List runs, show one, or compare some."""
    if wants_help(arguments):
        print(_help())
        return 0
    listen()
    first, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    function = {SHOW: show, DIFF: compare}.get(first)
    print(call(runs, arguments) if function is None else call(function, rest), end="")
    return 0


def runs(
    *,
    words: list[str],
    columns: list[str] | None = None,
    where: list[str] | None = None,
    sort: list[str] | None = None,
    limit: PositiveInt | None = None,
    group: list[str] | None = None,
    kind: Literal["all", "runs", "sweeps"] = "all",
    format: Format | None = None,
    output: str | None = None,
) -> str:
    """List, filter, sort and average runs and sweeps; show one run; compare runs.

    Args:
        columns: keys to show, as [name,optimizer.lr,validation/accuracy]; null takes the usual ones. With
            group: the figures to average.
        where: conditions that must all hold, see below.
        sort: a key or several; -key puts the largest first, missing values come last; null: the newest first.
        limit: rows at most.
        group: one row for each combination of these keys: number of runs, mean ± standard deviation (over
            n - 1) of each figure. Runs of different tasks or primary metrics stay apart.
        kind: runs, sweeps (trials by state, best value), or all.
        format: table (for people), markdown, or csv and json in full precision; null: by output's suffix.
        output: a file for it, whole or not at all; null prints.

    Raises:
        ConfigError: a key that no run has, or not a condition.
        RunError: no such folder.
    """
    places = places_of(words)
    rows = [] if kind == "sweeps" else [facts for _, facts in read_runs(places)]
    if group is not None:
        if kind == "sweeps":
            raise ConfigError("group", "averages runs: leave out kind=sweeps", group)
        chosen = select(rows, where or ())
        if not chosen:
            _say_none(rows, places)
        return _out(_grouped(chosen, group, columns, sort, limit, _form(format, output)), output)
    if kind != "runs":
        rows += [with_trials(sweep, facts) for sweep, facts in read_sweeps(places)]
    check_keys("columns", columns or (), rows)
    found = arrange(select(rows, where or ()), sort or ["age"], limit)
    if not found:
        _say_none(rows, places)
    return _out(_listed(found, columns, _form(format, output)), output)


def show(*, words: list[str], format: Literal["table", "json"] = "table") -> str:
    """All about one run or sweep."""
    if len(words) != 1:
        raise RunError("one run is shown: whet runs show RUN (its folder, its name, or how its name begins)")
    found = find_one(words[0], _lookup())
    told = show_run(found) if isinstance(found, RunRecord) else show_sweep(found)
    if format == "json":
        return f"{as_json(told)}\n"
    return f"{(run_text if isinstance(found, RunRecord) else sweep_text)(told, _wide(None))}\n"


def compare(*, words: list[str], format: Literal["table", "json"] = "table") -> str:
    """What sets runs apart."""
    records = [find_one(word, _lookup()) for word in words]
    for word, record in zip(words, records, strict=True):
        if not isinstance(record, RunRecord):
            raise RunError(f"{word}: a sweep; runs are compared: name one of its runs, {record.name}/0000")
    found = diff([record for record in records if isinstance(record, RunRecord)])
    return f"{as_json(found.to_dict()) if format == 'json' else found.text(_wide(None))}\n"


COMMAND = runs


def complete(earlier: Sequence[str], word: str) -> list[str]:
    """What may come next: `show` and `diff`, after them names of runs, and settings."""
    function = {SHOW: show, DIFF: compare}.get(earlier[0]) if earlier else None
    if function is None:
        commands = [f"{name} " for name in (SHOW, DIFF) if not earlier and name.startswith(word)]
        return [*commands, *completions(runs, word)]
    names: list[str] = []
    if "=" not in word and (places := _lookup()):
        names = [facts["name"] for _, facts in [*read_runs(places), *read_sweeps(places)]]
    return [*(f"{name} " for name in names if name.startswith(word)), *completions(function, word)]


# ---------------------------------------------------------------- tables


def _listed(found: Sequence[Facts], columns: Sequence[str] | None, form: Format) -> str:
    """The usual columns differ for runs and sweeps: people see two tables, programs one with all columns."""
    usual = {
        "run": default_columns([row for row in found if row["kind"] == "run"]),
        "sweep": list(SWEEP_COLUMNS),
    }
    parts = {kind: [row for row in found if row["kind"] == kind] for kind in usual}
    there = [kind for kind, rows in parts.items() if rows]
    if columns is not None or form in ("csv", "json"):
        heads = columns or ["kind", *keys_of([dict.fromkeys(usual[kind]) for kind in there])]
        return _rendered(found, heads, form)
    return "\n".join(_rendered(parts[kind], usual[kind], form) for kind in there)


def _grouped(
    rows: Sequence[Facts],
    by: Sequence[str],
    columns: Sequence[str] | None,
    sort: Sequence[str] | None,
    limit: int | None,
    form: Format,
) -> str:
    groups = grouped(rows, by, columns)
    if not groups and form not in ("csv", "json"):
        return ""
    for doubt in doubts(groups):
        print(f"warning: {doubt}", file=sys.stderr)
    flat = [one.flat() for one in groups]
    order = arrange([{**row, "place": place} for place, row in enumerate(flat)], sort or (), limit)
    if form in ("csv", "json"):
        return _rendered([flat[row["place"]] for row in order], keys_of(flat), form)
    shown = group_cells(groups)
    figures = {"runs", *(name for one in groups for name in one.means)}
    return _rendered([shown[row["place"]] for row in order], keys_of(shown), form, figures)


def _rendered(
    rows: Sequence[Facts], columns: Sequence[str], form: Format, figures: set[str] | None = None
) -> str:
    return f"{render(pick(rows, columns), columns, form, _wide(form), figures or ())}\n"


def _form(given: Format | None, output: str | None) -> Format:
    return given or SUFFIXES.get(Path(output or "").suffix, "table")


def _wide(form: Format | None) -> int | None:
    """Columns of the terminal; None where it is read by something else."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() and form in (None, "table") else None


def _out(text: str, output: str | None) -> str:
    """What to print: the text, unless it goes to a file."""
    if output is None:
        return text
    with aside(Path(output).expanduser()) as beside:
        beside.write_text(text, encoding="utf-8")
    print(f"written to {output}", file=sys.stderr)
    return ""


def _say_none(rows: Sequence[Facts], places: Sequence[Path]) -> None:
    told = f"none of {len(rows)} matches" if rows else "no runs or sweeps"
    print(f"{told} at or below {', '.join(map(str, places))}", file=sys.stderr)


def _lookup() -> list[Path]:
    """Where names are looked up; folders need none."""
    return places_of([]) if default_place().is_dir() else []


def _help() -> str:
    short = "\n".join(f"    {name:<12} {told}" for name, told in SHORT.items())
    return f"{help_text(runs, USAGE, EXAMPLES)}\n\n{GRAMMAR}\n{short}"
