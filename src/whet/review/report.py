"""A report of runs or of a sweep: one HTML file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from whet import __version__
from whet.errors import RunError, nearest, one_line
from whet.review.comparison_page import comparison_page
from whet.review.html import page
from whet.review.records import RUN, SWEEP, RunRecord, SweepRecord, find_runs
from whet.review.run_page import run_page
from whet.review.sweep_page import sweep_page
from whet.storage import aside

log = logging.getLogger("whet.review")
ROOMS = ("runs", "sweeps", "multirun")
"""Below the outputs folder."""
OUTPUTS = Path("outputs")
FILE = "report.html"


def find(place: str) -> Path:
    """The folder of a run, sweep or multirun: a path, or a name below `outputs/`.

    Raises:
        RunError: there is none.
    """
    given = Path(place).expanduser()
    candidates = [given, *(OUTPUTS / room / place for room in ROOMS), OUTPUTS / place]
    for folder in candidates:
        if folder.is_dir():
            return folder.absolute()
    known = [path.name for room in ROOMS for path in (OUTPUTS / room).glob("*") if path.is_dir()]
    hint = nearest(place, known) if known else f"nothing is in {OUTPUTS.absolute()}"
    raise RunError(f"{place}: no such run, sweep or folder; {hint}")


def subject(folders: Sequence[Path]) -> RunRecord | SweepRecord | list[RunRecord]:
    """What the folders hold together: one run, one sweep, or several runs.

    Raises:
        RunError: nothing, or something that can't be read.
    """
    if len(folders) == 1 and (folders[0] / SWEEP).is_file():
        return _readable_sweep(SweepRecord(folders[0]))
    runs: dict[Path, RunRecord] = {}
    for folder in folders:
        runs |= {record.folder: record for record in _runs_in(folder)}
    found = list(runs.values())
    return found[0] if len(found) == 1 else found


def _runs_in(folder: Path) -> list[RunRecord]:
    """The folder's own run, or all below it; there a damaged one is named and left out."""
    if (folder / RUN).is_file():
        return [_readable(RunRecord(folder))]
    found = []
    for record in find_runs([folder]):
        try:
            found.append(_readable(record))
        except RunError as error:
            log.warning("left out: %s", error)
    if not found:
        raise RunError(f"{folder}: neither a run nor a sweep, and none is below it (no {RUN}, no {SWEEP})")
    return found


def _readable(record: RunRecord) -> RunRecord:
    """The same.

    Raises:
        RunError: its files are damaged.
    """
    import yaml

    try:
        if not isinstance(record.record, dict):
            raise RunError(f"{record.folder}: {RUN} holds no record")
        _ = record.config, record.metrics()
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise RunError(f"{record.folder}: it can't be read: {one_line(error)}") from None
    return record


def _readable_sweep(sweep: SweepRecord) -> SweepRecord:
    """The same.

    Raises:
        RunError: its facts are damaged.
    """
    try:
        _ = sweep.facts["study"], sweep.facts["storage"], sweep.facts["objectives"], sweep.facts["directions"]
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise RunError(f"{sweep.folder}: {SWEEP} can't be read: {one_line(error)}") from None
    return sweep


def write_report(folders: Sequence[Path], output: Path | None, title: str | None, texts: bool) -> Path:
    """Write the report of some folders; returns its file.

    Args:
        folders: of runs, or of one sweep.
        output: the file; None: `report.html` in the folder, of several `outputs/reports/<time>.html`.
        title: of the page; None: its subject's.
        texts: read the data again, to show texts of errors.
    """
    found = subject(folders)
    if isinstance(found, RunRecord):
        name, (heading, sections) = found.name, run_page(found, texts)
    elif isinstance(found, SweepRecord):
        name, (heading, sections) = found.name, sweep_page(found)
    else:
        name, (heading, sections) = f"{len(found)} runs", comparison_page(found)
    now = datetime.now().astimezone()
    foot = f"Made by whet {__version__} on {now:%Y-%m-%d %H:%M %Z} of {', '.join(map(str, folders))}."
    path = output or _place(folders, now)
    with aside(path) as beside:
        beside.write_text(page(title or f"{name}: whet report", heading, sections, foot), encoding="utf-8")
    return path


def _place(folders: Sequence[Path], now: datetime) -> Path:
    if len(folders) == 1:
        return folders[0] / FILE
    return OUTPUTS.absolute() / "reports" / f"{now:%Y%m%d-%H%M%S}.html"
