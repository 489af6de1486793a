"""Weights & Biases, kept at arm's length: nothing that happens to it stops or slows training.

All of it (import, init, log, finish) happens in one daemon thread fed by a bounded queue. A full queue drops
what comes, an exception switches the sink off, and a hang at the end is waited for `patience` seconds; each
is reported once.

W&B can't take back what it was told, and its own `wandb sync` lets the record of a resumed offline run
overwrite the earlier one. So the run keeps a file of its rows, cut back to the checkpoint that it goes on
from, and tells W&B all of them again, each with the number it had: online W&B takes only those that it hasn't
got, and offline the newest record is whole, while those before it are put away in `wandb/superseded/`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import random
import secrets
import string
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from whet.errors import WhetError, one_line
from whet.secrets import mask, mask_text
from whet.tracking.base import RunInfo, Sink
from whet.tracking.figures import class_names, confusion, curves, unseen
from whet.tracking.jsonl import Lines
from whet.types import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from whet.evaluation.predictions import Predictions

log = logging.getLogger("whet.tracking")

Mode = Literal["auto", "online", "offline", "disabled"]
EXIT_CODES = {"finished": 0, "pruned": 0, "failed": 1, "interrupted": 255}
"""What W&B is told of how a run ended. It shows a pruned one as finished: `status` in the summary tells."""
PROJECT = "whet"
_CLOUD = "api.wandb.ai"
_MAX_TAG = 64
_MAX_CLASSES = 100
"""A confusion chart holds at most so many classes (a W&B table ends at 10,000 rows)."""
_ROWS_A_STEP = 10
"""More than are told of one update: training, validation, two reports."""
ROWS = "rows.jsonl"
_LOAD_SECONDS = 20.0
"""The end of the program waits so long for W&B's libraries and its process to be there."""
_FLUSH_SECONDS = 2.0
"""The offline record reaches the disk so often (W&B's own 15 s are lost when a run is killed)."""


@dataclass(kw_only=True)
class Wandb(Sink):
    """Sends the run to Weights & Biases, or records it in `<run>/wandb/` for a later `whet sync`."""

    project: str = PROJECT
    entity: str | None = None
    """User or team; null: your account's default."""
    mode: Mode = "auto"
    """auto: online if you are logged in (or as WANDB_MODE says), else offline."""
    patience: PositiveFloat = 30.0
    """Seconds that the end of a run waits for W&B."""
    queue_size: PositiveInt = 1000
    """So many log calls may wait for W&B; later ones are dropped."""
    _queue: queue.Queue[Callable[[Any], None]] = field(init=False, repr=False)
    _loaded: threading.Event = field(init=False, repr=False, default_factory=threading.Event)
    _done: threading.Event = field(init=False, repr=False, default_factory=threading.Event)
    _worker: threading.Thread | None = field(init=False, repr=False, default=None)
    _told: set[str] = field(init=False, repr=False, default_factory=set)
    _seen: set[str] = field(init=False, repr=False, default_factory=set)
    _rows: Lines | None = field(init=False, repr=False, default=None)
    _step: int = field(init=False, repr=False, default=0)
    _told_of: int = field(init=False, repr=False, default=0)
    """Rows of `_step` so far."""
    _place: str = field(init=False, repr=False, default="")
    """Where W&B's own process writes; empty before it does."""
    _folder: Path = field(init=False, repr=False, default=Path())

    def __post_init__(self) -> None:
        self._queue = queue.Queue(self.queue_size)

    def start(self, run: RunInfo) -> None:
        if self.mode == "disabled":
            return
        self._seen, self._step, self._folder = set(run.logged), run.resumed_after or 0, run.folder
        run_id(run.folder)  # chosen at once: whenever the run is killed, it goes on under this id
        self._rows = Lines(run.folder / "wandb" / ROWS)
        earlier = list(numbered(self._rows.open(run.resumed_after or 0)))
        self._told_of = sum(row.step == self._step for row in earlier)
        self._worker = threading.Thread(
            target=self._work, args=(run, earlier), name="whet-wandb", daemon=True
        )
        atexit.register(self._at_exit)
        self._worker.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._seen.update(metrics)
        if self._rows is not None and self._rows.write(metrics, step):
            self._offer(partial(log_row, row=self._next(dict(metrics), step)))

    def report(
        self, predictions: Predictions, label_names: list[str] | None, metrics: Mapping[str, float]
    ) -> None:
        new = unseen(metrics, predictions.split, self._seen)
        row = self._next(new, self._step)
        self._offer(partial(log_report, predictions=predictions, names=label_names, row=row))

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Wait at most `patience` seconds for what is still queued and for W&B's own end."""
        worker, self._worker = self._worker, None
        if self._rows is not None:
            self._rows.close()
        if worker is None or self._done.is_set():
            return
        deadline = time.monotonic() + self.patience
        figures = ending(status, summary)
        last = partial(_finish, summary=figures, code=EXIT_CODES.get(status, 1))
        with contextlib.suppress(queue.Full):  # nothing was taken all that time: the wait below ends at once
            self._queue.put(last, timeout=self.patience)
        if not self._done.wait(max(deadline - time.monotonic(), 0)):
            detach()
            self._tell("end", f"did not finish within {self.patience:g} s: {self._advice()}")

    def _next(self, values: dict[str, Any], step: int) -> Row:
        self._step, self._told_of = step, self._told_of + 1 if step == self._step else 1
        return Row(values, step, self._told_of - 1, time.time())

    def _offer(self, item: Callable[[Any], None]) -> None:
        if self._worker is None or self._done.is_set():
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._tell(
                "slow", f"is too slow: measurements are dropped there (more than {self.queue_size} wait)"
            )

    def _work(self, info: RunInfo, earlier: list[Row]) -> None:
        """The worker thread's whole life."""
        try:
            run = self._open(info)
            for row in earlier:
                log_row(run, row)
            while getattr(item := self._queue.get(), "func", None) is not _finish:
                item(run)
            item(run)
            if getattr(run, "offline", False):
                log.info("W&B recorded offline; to upload: whet sync %s", info.folder)
        except Exception as error:  # noqa: BLE001  whatever a tracker raises, training goes on; told once
            detach()
            reason = mask_text(one_line(error)) or type(error).__name__
            self._tell("end", f"failed ({reason}): the run goes on without it")
        finally:
            self._loaded.set()
            self._done.set()
            atexit.unregister(self._at_exit)

    def _open(self, info: RunInfo) -> Any:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its telemetry threads draw from `random`
        import wandb

        _own_random()
        mode = choose_mode(self.mode, wandb.setup().settings)
        atexit.register(self._at_exit)  # again, after W&B's own exit hook, so that ours runs before it
        arguments = init_arguments(info, self.project, self.entity, mode)
        put_away(info.folder / "wandb")
        self._loaded.set()
        run = wandb.init(**arguments, dir=str(info.folder.absolute()), settings=quiet_settings())
        _own_random()
        self._place = str(getattr(run.settings, "sync_dir", ""))
        define_metrics(run, info.directions)
        return run

    def _at_exit(self) -> None:
        """The program ends, maybe without `finish()`: don't let W&B's own exit hook wait for ever.

        A thread that is cut off while it loads a library can crash the interpreter: that is waited for.
        """
        self._loaded.wait(_LOAD_SECONDS)
        self.finish("failed", {})

    def _advice(self) -> str:
        if self._place:
            return f"upload the run later: whet sync {self._folder}"
        return "it has no record of this run"

    def _tell(self, kind: str, message: str) -> None:
        """Warn, once of each kind."""
        if kind not in self._told:
            self._told.add(kind)
            log.warning("W&B %s", message)


def choose_mode(mode: Mode, settings: Any) -> str:
    """The W&B mode to start in, found without a prompt or the network.

    Raises:
        WhetError: online is asked for, and nobody is logged in.
    """
    if mode == "offline":
        return "offline"
    if mode == "auto" and settings.mode not in (None, "online"):
        return str(settings.mode)
    if logged_in(settings):
        return "online"
    if mode == "online":
        raise WhetError("not logged in: run `wandb login` or set WANDB_API_KEY")
    return "offline"


def logged_in(settings: Any) -> bool:
    """Whether an API key or identity token is at hand: environment, W&B's settings file or netrc."""
    if os.environ.get("WANDB_API_KEY") or settings.api_key or getattr(settings, "identity_token_file", None):
        return True
    import netrc
    from urllib.parse import urlsplit

    path = Path(os.environ.get("NETRC") or _default_netrc()).expanduser()
    if not path.is_file():
        return False
    try:
        known = netrc.netrc(path)
    except (netrc.NetrcParseError, OSError) as error:
        log.warning("%s can't be read: %s", path, one_line(error))
        return False
    default = type(settings)().base_url == settings.base_url
    hosts = [urlsplit(settings.base_url).netloc, *([_CLOUD] if default else [])]
    return any(host in known.hosts for host in hosts)


def _default_netrc() -> str:
    return "~/.netrc" if Path("~/.netrc").expanduser().exists() else "~/_netrc"


def run_id(folder: Path) -> str:
    """The run's W&B id, kept in its folder: a resumed run continues the same W&B run."""
    path = folder / "wandb" / "run_id"
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    chosen = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(10))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(chosen + "\n", encoding="utf-8")
    return chosen


@dataclass(frozen=True)
class Row:
    """What is told of an update at once."""

    values: Mapping[str, Any]
    step: int
    place: int
    """From 0, among the rows of this update."""
    time: float
    """Seconds since 1970."""

    @property
    def number(self) -> int:
        """W&B's own step: grows from row to row, and is the same whenever the row is told."""
        return self.step * _ROWS_A_STEP + self.place


def numbered(lines: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """The rows that were written down, with their places."""
    step, place = -1, 0
    for line in lines:
        step, place = line["step"], place + 1 if line["step"] == step else 0
        values = {name: value for name, value in line.items() if name not in ("step", "time")}
        yield Row(values, step, place, line["time"])


def init_arguments(info: RunInfo, project: str, entity: str | None, mode: str) -> dict[str, Any]:
    """What `wandb.init` is told of a run."""
    return {
        "project": project,
        "entity": entity,
        "mode": mode,
        "id": run_id(info.folder),
        "name": info.name,
        "group": info.group,
        "job_type": info.job_type,
        "tags": [tag[:_MAX_TAG] for tag in info.tags],
        "config": info.settings(),
        "resume": "allow" if mode == "online" else None,
        "reinit": "create_new",
    }


def put_away(folder: Path) -> None:
    """Earlier offline records of a run that is told anew."""
    for path in folder.glob("offline-run-*"):
        (folder / "superseded").mkdir(exist_ok=True)
        path.rename(folder / "superseded" / path.name)


def define_metrics(run: Any, directions: Mapping[str, str]) -> None:
    """Every chart is drawn over `step`; a declared metric's summary is its best value."""
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    for key, direction in directions.items():
        names = [key] if "/" in key else [f"{split}/{key}" for split in ("train", "validation", "test")]
        for name in names:
            run.define_metric(name, step_metric="step", summary="max" if direction == "maximize" else "min")


# ---------------------------------------------------------------- what the worker does


def quiet_settings(**more: Any) -> Any:
    """No console capture, prompts, code, git remote or command line: they cost time or carry secrets."""
    import wandb

    wanted = {
        "silent": True,
        "console": "off",
        "save_code": False,
        "disable_git": True,
        "x_disable_meta": True,
        "x_save_requirements": False,
        "x_transaction_log_flush_interval": _FLUSH_SECONDS,
        **more,
    }
    return wandb.Settings(
        **{name: value for name, value in wanted.items() if hasattr(wandb.Settings(), name)}
    )


def log_row(run: Any, row: Row) -> None:
    """Tell W&B a row, unless it is empty."""
    if row.values:
        values = {**row.values, "step": row.step, "_timestamp": row.time}
        run.log(values, step=row.number, commit=True)


def log_report(run: Any, predictions: Predictions, names: list[str] | None, row: Row) -> None:
    """Tell W&B a row with the charts of a split's predictions."""
    charts = {
        f"{predictions.split}/confusion": _confusion_chart(predictions, names),
        f"{predictions.split}/precision_recall": _curve_chart(predictions, names),
    }
    drawn = {name: chart for name, chart in charts.items() if chart is not None}
    log_row(run, replace(row, values={**row.values, **drawn}))


def has_charts(predictions: Predictions, names: list[str] | None) -> bool:
    """Whether `log_report` draws anything."""
    counts = confusion(predictions)
    fits = counts is not None and len(class_names(predictions, names)) <= _MAX_CLASSES
    return fits or bool(curves(predictions, names))


def _confusion_chart(predictions: Predictions, label_names: list[str] | None) -> Any:
    counts, names = confusion(predictions), class_names(predictions, label_names)
    if counts is None or len(names) > _MAX_CLASSES:
        return None
    rows = [[names[a], names[p], int(n)] for a, row in enumerate(counts) for p, n in enumerate(row)]
    columns = ["Actual", "Predicted", "nPredictions"]
    return _chart("wandb/confusion_matrix/v1", columns, rows, {name: name for name in columns}, {})


def _curve_chart(predictions: Predictions, label_names: list[str] | None) -> Any:
    rows = [[curve.name, x, y] for curve in curves(predictions, label_names) for x, y in curve.points()]
    if not rows:
        return None
    fields = {"class": "class", "x": "recall", "y": "precision"}
    titles = {"x-axis-title": "Recall", "y-axis-title": "Precision"}
    return _chart("wandb/area-under-curve/v0", list(fields.values()), rows, fields, titles)


def _chart(
    spec: str, columns: list[str], rows: list[list[Any]], fields: dict[str, str], titles: dict[str, str]
) -> Any:
    import wandb

    table = wandb.Table(columns=columns, data=rows)
    return wandb.plot_table(vega_spec_name=spec, data_table=table, fields=fields, string_fields=titles)


def ending(status: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's summary says in the end."""
    figures: dict[str, Any] = mask(dict(summary))
    return figures | {"status": status}


def _finish(run: Any, summary: dict[str, Any], code: int) -> None:
    run.summary.update(summary)
    run.finish(exit_code=code)


def _own_random() -> None:
    """Give W&B's modules a generator of their own: their retries must not move the training's draws."""
    private = random.Random()
    for name, module in list(sys.modules.items()):
        own = name.split(".")[0] in ("wandb", "opentelemetry")
        if own and vars(module).get("random") is random:
            setattr(module, "random", private)  # noqa: B010  the attribute is an import


def detach() -> None:
    """Withdraw W&B's exit hook, which waits without limit for its service process."""
    setup = sys.modules.get("wandb.sdk.wandb_setup")
    connection = getattr(getattr(setup, "_singleton", None), "_connection", None)
    if cleanup := getattr(connection, "_cleanup", None):
        cleanup()
