"""A multirun's folder, made atomically, and the table at its end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

if TYPE_CHECKING:
    from whet.errors import WhetError


@dataclass
class Summary:
    """What the jobs of this process's multirun came to."""

    folder: Path | None = None
    exit_code: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


_current = Summary()


class Stopped(BaseException):
    """A signal ends the whole multirun: Hydra goes on after any `Exception` of a job."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


def end_multirun(error: WhetError) -> None:
    """Called in a job that a signal has stopped; does nothing where the jobs have processes of their own.

    Raises:
        Stopped: the job runs in the multirun's process.
    """
    if _current.folder is not None:
        raise Stopped(error.exit_code) from error


class Multirun(Callback):
    """Hydra callback: give every multirun a folder of its own, whoever else starts in this second."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from whet.engine.continuing import note_multirun, unfinished_multirun
        from whet.engine.run import new_folder, stamp

        given = any(str(item).startswith("hydra.sweep.dir=") for item in config.hydra.overrides.hydra)
        told = [str(item) for item in config.hydra.overrides.task]
        place = Path(str(config.hydra.sweep.dir)).absolute()
        if is_searched(config):  # a study has one folder, however often the command is given
            _current.folder = place
            return
        if not given:
            place = unfinished_multirun(place, told) or new_folder(place, stamp())
            with open_dict(config):
                config.hydra.sweep.dir = str(place)
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{place}'")
        _current.folder = place
        note_multirun(place, told)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from whet.engine.continuing import note_multirun

        if is_searched(config):
            return

        told = [str(item) for item in config.hydra.overrides.task]
        note_multirun(Path(str(config.hydra.sweep.dir)), told, status="finished")


def is_searched(config: DictConfig) -> bool:
    """Whether Optuna leads the multirun."""
    return str(config.hydra.sweeper.get("_target_", "")).endswith(".OptunaSweeper")


@contextlib.contextmanager
def closing() -> Iterator[Summary]:
    """Print the table of jobs when the multirun ends, and keep the first error from hiding the others."""
    from whet.errors import WhetError

    _current.folder, _current.exit_code, _current.rows = None, 0, []
    try:
        yield _current
    except (WhetError, Stopped) as error:
        if not _finish():
            raise
        _current.exit_code = error.exit_code
        return
    except Exception:
        _finish()
        raise
    _finish()


def _finish() -> bool:
    """Whether there was a multirun with jobs to tell of."""
    if _current.folder is None:
        return False
    if (_current.folder / "sweep.json").is_file():
        return _finish_sweep(_current.folder)
    _current.rows = jobs_of(_current.folder)
    if not _current.rows:
        return False
    print(table(_current.rows))
    print(f"\nmultirun folder  {_current.folder}")
    failed = [row for row in _current.rows if row["status"] != "finished"]
    if failed:
        _current.exit_code = max(_current.exit_code, 1)
        print(f"{len(failed)} of {len(_current.rows)} jobs did not finish", file=sys.stderr)
        print("to go on: the same command with resume=auto", file=sys.stderr)
    return True


def _finish_sweep(folder: Path) -> bool:
    """Tell what a sweep came to; trials that failed make it fail."""
    from whet.sweep.results import told_of

    text, failed, left = told_of(folder)
    print(text)
    if failed or left:
        _current.exit_code = max(_current.exit_code, 1)
    if left:
        print(f"{left} trials are left; to go on: the same command", file=sys.stderr)
    return False


def jobs_of(folder: Path) -> list[dict[str, Any]]:
    """One row a job: number, overrides, status, parameters trained, validation and test metric, reason."""
    from whet.engine.run import read_record

    rows = []
    for record_file in sorted(folder.glob("*/run.json")):
        record = read_record(record_file.parent)
        lines = (record_file.parent / "overrides.txt").read_text(encoding="utf-8").split("\n")
        best = record.get("best") or {}
        metric = str(best.get("metric", "")).removeprefix("validation/")
        rows.append(
            {
                "job": record_file.parent.name,
                "status": record["status"],
                "trained": record.get("trainable", {}).get("trained_parameters"),
                "share": _share(record.get("trainable", {})),
                f"validation/{metric}" if metric else "validation": best.get("value"),
                f"test/{metric}" if metric else "test": record.get("metrics", {}).get(f"test/{metric}"),
                "overrides": " ".join(line for line in lines if line and not line.startswith("resume=")),
                "reason": record.get("reason") or "",
            }
        )
    return rows


def _share(sizes: dict[str, int]) -> str | None:
    return f"{sizes['trained_parameters'] / sizes['parameters']:.2%}" if sizes.get("parameters") else None


def table(rows: list[dict[str, Any]]) -> str:
    """Aligned columns; a metric that one job lacks stays blank."""
    columns = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    last = [name for name in ("overrides", "reason") if name in columns]
    columns = [
        name for name in columns if name not in last and any(row.get(name) is not None for row in rows)
    ]
    columns += [name for name in last if any(row.get(name) for row in rows)]
    shown = [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(name), *(len(line[place]) for line in shown)) for place, name in enumerate(columns)]
    lines = [columns, ["-" * width for width in widths], *shown]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
