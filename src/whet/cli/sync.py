"""`whet sync`: upload runs to W&B that were recorded offline, or not to their end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whet.cli.words import respond
from whet.errors import RunError, WhetError, one_line
from whet.types import PositiveFloat

if TYPE_CHECKING:
    from whet.review.records import RunRecord

USAGE = "usage: whet sync [PLACE …] [key=value …]"
EXAMPLES = """
    whet sync                                  every run below outputs/
    whet sync dry=true                         what would be sent, from what is known here
    whet sync outputs/runs/RUN                 one run
    whet sync outputs/sweeps/NAME project=nlp  a sweep's trials, into another project
    WANDB_BASE_URL=https://wandb.example.org whet sync
"""


def main(arguments: list[str]) -> int:
    """Upload; returns the exit code."""
    return respond(COMMAND, USAGE, EXAMPLES, arguments)


def sync(
    *,
    words: list[str],
    project: str | None = None,
    entity: str | None = None,
    local: bool = False,
    dry: bool = False,
    timeout: PositiveFloat = 300.0,
) -> None:
    """Upload runs to W&B that were recorded offline, or not to their end; what is there isn't sent again.

    Args:
        project: on W&B; null takes the run's own.
        entity: user or team; null takes the run's own, or your account's default.
        local: send runs, too, that were tracked without W&B.
        dry: only list what would be sent; nobody is asked, no login is needed.
        timeout: seconds that the upload of one run may take.

    Raises:
        RunError: there is no run.
        WhetError: nobody is logged in, or some runs couldn't be sent.
    """
    from whet.review.records import find_runs

    places = words or ["outputs"]
    runs = find_runs([path for path in map(_place, places) if path.exists()])
    if not runs:
        raise RunError(f"{', '.join(places)}: no run there (no run.json)")
    chosen = _chosen(runs, local)
    if dry:
        _list(chosen, project, entity)
    elif chosen:
        _upload(chosen, project, entity, timeout)


def _place(word: str) -> Path:
    return Path(word).expanduser()


COMMAND = sync
"""What the command's words and settings are checked against."""


def _chosen(runs: Sequence[RunRecord], local: bool) -> list[RunRecord]:
    """Those that can be sent; says of the others how many and why."""
    from whet.review.upload import left_out

    reasons = {run.folder: left_out(run, local) for run in runs}
    found = [run for run in runs if reasons[run.folder] is None]
    for reason, count in Counter(reason for reason in reasons.values() if reason is not None).items():
        print(f"left out        {_many(count, 'run')}: {reason}")
    return found


def _list(runs: Sequence[RunRecord], project: str | None, entity: str | None) -> None:
    from whet.review.upload import Noted, There, copy_of, destination

    for run in runs:
        where, who = destination(run, project, entity)
        noted = Noted.read(run.folder)
        known = There(noted.last, noted.status) if noted and noted.project == where else There()
        copy = copy_of(run)
        rows = _many(len(known.lacks(copy)), "row")
        told = "is there already" if known.is_whole(copy) else f"{rows} to send"
        print(f"{_short(run.folder)}  {told} ({'/'.join(filter(None, (who, where)))}, {copy.status})")


def _upload(runs: Sequence[RunRecord], project: str | None, entity: str | None, timeout: float) -> None:
    from whet.review.upload import Site
    from whet.tracking.progress import progress

    site, failed, sent = Site(timeout), 0, 0
    with progress(len(runs), "uploading to W&B", "runs") as advance:
        for run in runs:
            try:
                outcome = site.upload(run, project, entity)
                told, sent = outcome.told, sent + outcome.sent
            except WhetError as error:
                told, failed = f"failed: {one_line(error)}", failed + 1
            print(f"{_short(run.folder)}  {told}", flush=True)
            advance(1)
    print(f"{sent} sent, {len(runs) - sent - failed} there already, {failed} failed")
    if failed:
        raise WhetError(f"{_many(failed, 'run')} couldn't be sent; the same command sends what is missing")


def _short(folder: Path) -> Path:
    """Relative to here, where it lies below."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
