"""Runs and sweeps that can be read, and the one that a name means."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from whet.errors import RunError, one_line
from whet.review.facts import Facts, near, of_run, of_sweep
from whet.review.records import RUN, SWEEP, RunRecord, SweepRecord, find_runs, find_sweeps
from whet.tracking.progress import progress

log = logging.getLogger("whet")
MISSING = "; whet train makes it: name the folder of your runs (whet runs PLACE), or set WHET_OUTPUT"
MANY = 200
"""Runs from which on reading them shows its progress."""
NAMED = 5
"""Folders or candidates that a message lists."""
Record = TypeVar("Record", RunRecord, SweepRecord)


def default_place() -> Path:
    """Where runs lie unless a place is given."""
    return Path(os.environ.get("WHET_OUTPUT", "outputs"))


def places_of(given: Sequence[str | Path]) -> list[Path]:
    """The folders to look in.

    Raises:
        RunError: one isn't there.
    """
    places = [Path(place).expanduser() for place in given] or [default_place()]
    for place in places:
        if not place.is_dir():
            told = f"; whet runs show {place} looks for a run of this name" if given else MISSING
            raise RunError(f"{place}: no such folder{told}")
    return [place.resolve() for place in places]


def read_runs(places: Sequence[Path]) -> list[tuple[RunRecord, Facts]]:
    """Runs at or below places, with their facts; what can't be read is named in one warning."""
    return _readable(find_runs(places), of_run)


def read_sweeps(places: Sequence[Path]) -> list[tuple[SweepRecord, Facts]]:
    """Sweeps at or below places, with the facts of their own record."""
    return _readable(find_sweeps(places), of_sweep)


def with_trials(sweep: SweepRecord, facts: Facts) -> Facts:
    """The facts of a sweep and of its study; a study that can't be read is a warning."""
    try:
        return of_sweep(sweep, sweep.study().get_trials(deepcopy=False))
    except RunError as error:
        log.warning("%s", error)
        return facts


def _readable(records: Sequence[Record], read: Callable[[Record], Facts]) -> list[tuple[Record, Facts]]:
    found, damaged, many = [], [], len(records) >= MANY
    with progress(len(records), "reading", "runs", "auto" if many else "off") as advance:
        for record in records:
            try:
                found.append((record, read(record)))
            except (OSError, ValueError) as error:
                damaged.append(f"{record.folder} ({one_line(error)})")
            advance(1)
    if damaged:
        more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        log.warning("left out, damaged or half-written: %s%s", ", ".join(damaged[:NAMED]), more)
    return found


# ---------------------------------------------------------------- one of them


def find_one(name: str, places: Sequence[Path]) -> RunRecord | SweepRecord:
    """The run or sweep of a folder, a name, or the beginning of a name that no other one shares.

    Raises:
        RunError: there is none, or several; names them.
    """
    folder = Path(name).expanduser()
    if (folder / RUN).is_file():
        return _sound(RunRecord(folder.resolve()), of_run)
    if (folder / SWEEP).is_file():
        return _sound(SweepRecord(folder.resolve()), of_sweep)
    known: list[RunRecord | SweepRecord] = [record for record, _ in read_runs(places)]
    known += [record for record, _ in read_sweeps(places)]
    return one_of(name, known, [str(place) for place in places])


def one_of(
    name: str, known: Sequence[RunRecord | SweepRecord], places: Sequence[str] = ()
) -> RunRecord | SweepRecord:
    """The record of a name, or of its beginning, among those known.

    Raises:
        RunError: there is none, or several.
    """
    exact = [each for each in known if name in (each.name, each.folder.name, str(each.folder))]
    found = exact or [each for each in known if _begins(each, name)]
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(each.name for each in found[:NAMED]) + (", …" if len(found) > NAMED else "")
        raise RunError(f"{name}: {len(found)} runs begin so: {shown}; write more of it, or the folder")
    where = f" at or below {', '.join(places)}" if places else ""
    hint = near(name, [each.name for each in known], "whet runs lists what there is")
    raise RunError(f"{name}: no run or sweep of this name{where}; {hint}")


def _begins(record: RunRecord | SweepRecord, name: str) -> bool:
    """Whether a name begins so; a sweep's beginning doesn't mean its runs."""
    return any(
        each.startswith(name) and "/" not in each[len(name) :] for each in (record.name, record.folder.name)
    )


def _sound(record: Record, read: Callable[[Record], Facts]) -> Record:
    try:
        read(record)
    except (OSError, ValueError) as error:
        raise RunError(f"{record.folder}: damaged ({one_line(error)})") from None
    return record
