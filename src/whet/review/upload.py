"""Runs that W&B hasn't got, or not to their end: rebuilt from their folders and sent, each row once.

W&B numbers a run's rows and takes none below its last one. The numbers follow from the folder (see
`whet.tracking.wandb.Row`), so whatever was sent before, online or by an upload that was cut short, what is
missing is what comes after that row. W&B is asked for it each time; the note in the folder
(`wandb/synced.json`) only tells `dry=true`, which asks nobody, and where the run went.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config import Node
from whet.engine.continuing import MULTIRUN, STARTING, is_alive
from whet.errors import WhetError, one_line
from whet.review.records import RunRecord
from whet.secrets import mask_text
from whet.storage import aside
from whet.tracking.base import RunInfo, shown_as
from whet.tracking.figures import unseen
from whet.tracking.jsonl import read_metrics
from whet.tracking.wandb import (
    EXIT_CODES,
    PROJECT,
    ROWS,
    Row,
    define_metrics,
    detach,
    ending,
    has_charts,
    init_arguments,
    log_report,
    log_row,
    logged_in,
    numbered,
    put_away,
    quiet_settings,
)

if TYPE_CHECKING:
    from whet.evaluation.predictions import Predictions

STATE = "synced.json"
_REPORTED = ("validation", "test")
"""Splits in the order in which a run reports on them."""
_OPEN = ("running", "crashed", "pending", "preempting", "preempted")
"""W&B's states of a run whose end it wasn't told."""
_SETTLE = 20.0
"""Seconds in which W&B shows what it has taken."""
_ASK = 20
"""Seconds that an answer may take."""


# ---------------------------------------------------------------- a run as its folder tells it


@dataclass(frozen=True)
class Copy:
    """All that W&B is to know of a run."""

    info: RunInfo
    rows: list[Row]
    charts: Mapping[int, Predictions]
    """By the number of the row that they come with."""
    status: str
    summary: Node

    @property
    def folder(self) -> Path:
        return self.info.folder


def left_out(run: RunRecord, local: bool) -> str | None:
    """Why a run isn't sent; None: it is."""
    if not local and not (run.folder / "wandb" / "run_id").is_file():
        return "not recorded for W&B (local=true sends it all the same)"
    if is_alive(run.record):
        return f"still running (process {run.record.get('pid')})"
    return "it never began" if run.status == STARTING else None


def copy_of(run: RunRecord) -> Copy:
    """A run that has ended, in whatever way."""
    record = run.record
    status, reason = run.status, record.get("reason")
    if status == "running":
        status, reason = "interrupted", "its process is gone"
    rows, charts = _rows(run)
    told = {**record.get("metrics", {}), **record.get("trainable", {}), "reason": reason}
    told |= {name: record.get(name) for name in ("started", "ended")}  # W&B's own are those of the upload
    summary = {name: value for name, value in told.items() if value not in (None, "")}
    return Copy(_info(run), rows, charts, status, ending(status, summary))


def _info(run: RunRecord) -> RunInfo:
    trial, parent = run.record.get("trial"), run.folder.parent
    multirun = parent.name if (parent / MULTIRUN).is_file() else None
    return RunInfo(
        folder=run.folder,
        config=run.config,
        tags=tuple(run.config.get("tags", ())),
        directions=run.record.get("directions", {}),
        trial=trial,
        **shown_as(run.folder, run.config.get("name"), multirun, trial),
    )


def _rows(run: RunRecord) -> tuple[list[Row], dict[int, Predictions]]:
    """Rows of the log, then one for each split that the run reported on, as a run online tells them."""
    own = run.folder / "wandb" / ROWS
    found = list(numbered(read_metrics(own) if own.is_file() else run.metrics()))
    step, place = (found[-1].step, found[-1].place + 1) if found else (0, 0)
    seen = {name for row in found for name in row.values}
    metrics, charts = run.record.get("metrics", {}), {}
    for split in _REPORTED:
        predictions = run.predictions(split)
        if predictions is None:
            continue
        told = {name: value for name, value in metrics.items() if name.startswith(f"{split}/")}
        row = Row(unseen(told, split, seen), step, place, _reported(run, split))
        place += 1
        if row.values or has_charts(predictions, None):  # W&B isn't told an empty row
            found.append(row)
            charts[row.number] = predictions
    return found, charts


def _reported(run: RunRecord, split: str) -> float:
    """When."""
    return (run.folder / "predictions" / f"{split}.npz").stat().st_mtime


# ---------------------------------------------------------------- what W&B has


@dataclass(frozen=True)
class There:
    """What W&B has of a run."""

    last: int = -1
    """Number of the last row."""
    status: str | None = None
    """How the run ended, in its summary; None: W&B takes it for one that goes on."""

    def lacks(self, copy: Copy) -> list[Row]:
        """Rows that are still to be sent."""
        return [row for row in copy.rows if row.number > self.last]

    def is_whole(self, copy: Copy) -> bool:
        """Whether nothing is to be sent."""
        return self.status == copy.status and not self.lacks(copy)


@dataclass(frozen=True)
class Noted:
    """What the folder says of the last upload."""

    server: str
    project: str
    entity: str
    last: int
    status: str | None
    url: str = ""
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def read(cls, folder: Path) -> Noted | None:
        """None: there was no upload."""
        path = folder / "wandb" / STATE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def write(self, folder: Path) -> None:
        """Keep it, whole or not at all."""
        with aside(folder / "wandb" / STATE) as beside:
            beside.write_text(json.dumps(vars(self), indent=1), encoding="utf-8")


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    told: str
    rows: int = 0
    sent: bool = False


def destination(run: RunRecord, project: str | None, entity: str | None) -> tuple[str, str | None]:
    """Project and entity: as given, else where the run went before, else what its config says."""
    noted = Noted.read(run.folder)
    own = run.config.get("tracking", {}).get("sinks", {}).get("wandb", {})
    before = (noted.project, noted.entity) if noted else (own.get("project", PROJECT), own.get("entity"))
    return project or before[0], entity or before[1]


# ---------------------------------------------------------------- the server


@dataclass
class Site:
    """W&B's server, with a login."""

    patience: float
    """Seconds that an upload of one run may take."""
    _api: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        os.environ["WANDB_SILENT"] = "true"  # what is to be said is said here
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if not logged_in(wandb.setup().settings):
            raise WhetError("whet sync needs a W&B login: run `wandb login` or set WANDB_API_KEY")
        with _plainly("W&B can't be asked"):
            self._api = wandb.Api(timeout=_ASK)
        self.server = str(self._api.settings["base_url"])

    def entity(self, given: str | None) -> str:
        """User or team: as given, or the account's default."""
        if given is None:
            with _plainly("W&B can't be asked"):
                given = self._api.default_entity
        if given is None:
            raise WhetError("your W&B account has no default entity: give entity=")
        return given

    def there(self, entity: str, project: str, run_id: str) -> There:
        """What it has of a run."""
        from wandb.errors import CommError

        with _plainly("W&B can't be asked"):
            try:
                run = self._api.run(f"{entity}/{project}/{run_id}")
            except CommError as error:
                if "Could not find run" in str(error):
                    return There()
                raise
            run.load(force=True)
        summary = dict(run.summary_metrics or {})
        status = None if run.state in _OPEN else summary.get("status")
        return There(int(summary.get("_step", -1)), status)

    def upload(self, run: RunRecord, project: str | None, entity: str | None) -> Outcome:
        """Send what W&B lacks of a run, and see that it has come.

        Raises:
            WhetError: it couldn't be sent, or W&B doesn't show it.
        """
        with _alone(run.folder / "wandb"):
            return self._upload(run, *destination(run, project, entity))

    def _upload(self, run: RunRecord, project: str, wanted: str | None) -> Outcome:
        entity, copy = self.entity(wanted), copy_of(run)
        arguments = init_arguments(copy.info, project, entity, "online")
        there = self.there(entity, project, arguments["id"])
        noted = Noted(self.server, project, entity, there.last, there.status)
        if there.is_whole(copy):
            noted.write(copy.folder)
            return Outcome("is there already")
        sent, url = self._send(copy, arguments)
        there = self._settled(copy, entity, project, arguments["id"])
        Noted(self.server, project, entity, there.last, there.status, url).write(copy.folder)
        if not there.is_whole(copy):
            raise WhetError("W&B doesn't show all of it yet: the same command again looks once more")
        put_away(copy.folder / "wandb")  # a `wandb sync` of them would overwrite it
        return Outcome(f"{sent} rows sent: {url}", sent, sent=True)

    def _send(self, copy: Copy, arguments: Node) -> tuple[int, str]:
        """Rows sent, and the run's address."""
        import wandb

        settings = quiet_settings(
            init_timeout=self.patience,
            finish_timeout=self.patience,
            finish_timeout_raises=True,
        )
        with (
            tempfile.TemporaryDirectory(prefix="whet-sync-", ignore_cleanup_errors=True) as place,
            _plainly("W&B"),
        ):
            run = wandb.init(**arguments, dir=place, settings=settings)
            define_metrics(run, copy.info.directions)
            rows = [row for row in copy.rows if row.number >= run.starting_step]  # its last word
            for row in rows:
                if row.number in copy.charts:
                    log_report(run, copy.charts[row.number], None, row)
                else:
                    log_row(run, row)
            run.summary.update(copy.summary)
            url = str(run.url)
            run.finish(exit_code=EXIT_CODES.get(copy.status, 1))
        return len(rows), url

    def _settled(self, copy: Copy, entity: str, project: str, run_id: str) -> There:
        """What W&B shows once it has digested what was sent."""
        deadline = time.monotonic() + _SETTLE
        while True:
            there = self.there(entity, project, run_id)
            if there.is_whole(copy) or time.monotonic() > deadline:
                return there
            time.sleep(0.5)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One upload of a run at a time.

    Raises:
        WhetError: another process sends it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / ".sync.lock", timeout=0):
            yield
    except Timeout:
        raise WhetError("another whet sync sends it") from None


@contextlib.contextmanager
def _plainly(what: str) -> Iterator[None]:
    """W&B's own errors as one line.

    Raises:
        WhetError: something went wrong there.
    """
    try:
        yield
    except WhetError:
        raise
    except KeyboardInterrupt:
        detach()
        raise
    except Exception as error:
        detach()
        raise WhetError(f"{what}: {mask_text(one_line(error)) or type(error).__name__}") from error
