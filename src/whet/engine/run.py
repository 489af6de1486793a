"""A run's folder and its record, `run.json`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from whet.config import Node, save
from whet.engine.memory import describe, peak_memory, reset_peak
from whet.errors import Interrupted, PrunedError, RunError, one_line
from whet.secrets import mask, mask_text
from whet.storage import Appended, aside

log = logging.getLogger("whet")
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "hydra-core",
    "omegaconf",
    "optuna",
    "wandb",
)


def new_folder(parent: Path, name: str) -> Path:
    """Create `parent/name`, or `parent/name-2`, … if it is taken; never shared, whoever starts at once."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise RunError(f"{parent / name}: too many folders of this name")


def stamp() -> str:
    """Local time in a form that sorts."""
    return datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")


BYSTANDERS = ("paths", "name", "tags", "tracking", "resume", "sweep")
"""Parts of a config that don't change what a run computes."""


@dataclass
class Run:
    """One run folder and what is known of the run so far."""

    folder: Path
    record: Node = field(default_factory=dict)
    writes: bool = True
    """Whether this process is the one of its job that keeps the record."""
    verb: str = "train"
    """The command that the run is of."""

    @classmethod
    def create(
        cls, folder: Path, config: Node, overrides: list[str], processes: int = 1, verb: str = "train"
    ) -> Run:
        """Write config, overrides and the first `run.json` into a new folder."""
        save(config, folder / "config.yaml")
        shown = [mask_text(item) for item in overrides]
        (folder / "overrides.txt").write_text("".join(f"{item}\n" for item in shown), encoding="utf-8")
        run = cls(folder, verb=verb)
        run.update(
            name=folder.name,
            status="running",
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            command=mask_text(" ".join([f"whet {verb}", *overrides])),
            seed=config.get("seed"),
            pid=os.getpid(),
            processes=processes,
            versions=versions(),
            git=git_state(),
            hardware=hardware(),
            hashes={"config": config_hash(config)},
        )
        return run

    @classmethod
    def reopen(cls, folder: Path, exact: bool = False, processes: int = 1) -> Run:
        """The record of a run that goes on; what differs from last time is named in the log.

        Raises:
            RunError: another number of processes, or something else differs where `exact` promises the
                contrary.
        """
        run = cls(folder, read_record(folder))
        if (before := run.record.get("processes", 1)) != processes:
            told = f"this job has {processes}, and each has random numbers of its own"
            again = f"start it with {command(before)}"
            raise RunError(f"{folder}: the run was trained by {before} processes; {told}: {again}")
        for what, facts in (("versions", versions()), ("hardware", hardware())):
            before = run.record.get(what, {})
            untold = {"cpu"} - before.keys()  # runs of earlier versions
            for name in sorted({*facts, *before} - {"host", "memory_gb"} - untold):
                if facts.get(name) != before.get(name):
                    told = f"resuming with another {name}: {facts.get(name)}, was {before.get(name)}"
                    if exact:
                        raise RunError(f"{told}; engine.deterministic promises an identical end")
                    log.warning(told)
        resumed = [*run.record.get("resumed", []), datetime.now(UTC).isoformat(timespec="seconds")]
        run.update(status="running", reason="", pid=os.getpid(), resumed=resumed)
        return run

    def update(self, **facts: Any) -> None:
        """Merge `facts` into the record and write it, whole or not at all."""
        for name, value in facts.items():
            old = self.record.get(name)
            merge = isinstance(old, dict) and isinstance(value, dict)
            self.record[name] = old | value if merge else value
        if not self.writes:
            return
        with aside(self.folder / "run.json") as beside:
            beside.write_text(
                json.dumps(mask(self.record), indent=1, ensure_ascii=False, default=str), encoding="utf-8"
            )

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Log to `train.log`; record how the run ends, whatever happens."""
        if not self.writes:
            yield
            return
        handler = LogFile(self.folder / "train.log")
        handler.setFormatter(MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger("whet").addHandler(handler)
        start = time.perf_counter()
        reset_peak()
        status, reason = "failed", ""
        try:
            yield
            status = "finished"
        except KeyboardInterrupt:
            status, reason = "interrupted", "stopped at once"
            raise
        except PrunedError as error:
            status, reason = "pruned", one_line(error)
            raise
        except Interrupted as error:
            status, reason = "interrupted", one_line(error)
            again = command(self.record["processes"], self.verb)
            print(f"to go on: {again} resume={self.folder}", file=sys.stderr)
            raise
        except BaseException as error:
            reason = one_line(f"{type(error).__name__}: {error}")
            log.debug("the run failed", exc_info=True)
            raise
        finally:
            self._end(status, reason, time.perf_counter() - start)
            logging.getLogger("whet").removeHandler(handler)
            handler.close()

    def _end(self, status: str, reason: str, seconds: float) -> None:
        ended, peak = datetime.now(UTC).isoformat(timespec="seconds"), peak_memory()
        log.info("%s", describe(peak))
        self.update(
            status=status,
            reason=reason,
            ended=ended,
            timings={"total_s": round(seconds, 3)},
            memory=peak,
        )


def command(processes: int, verb: str = "train") -> str:
    """What starts a training by so many processes of one machine."""
    return f"whet {verb}" if processes == 1 else f"torchrun --nproc-per-node={processes} -m whet train"


class LogFile(logging.Handler):
    """Appends to a file; a full disk stops nothing (logging's own handler would print tracebacks)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = Appended(path)

    def emit(self, record: logging.LogRecord) -> None:
        self._file.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))

    def close(self) -> None:
        self._file.close()
        super().close()


class MaskingFormatter(logging.Formatter):
    """Secrets never reach a log file."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_text(super().format(record))


def find_run(run: str) -> Path:
    """The folder of a run given by path; a folder with `run.json`.

    Raises:
        RunError: there is none.
    """
    folder = Path(run).expanduser()
    if (folder / "run.json").is_file():
        return folder
    parent = folder.parent
    others = sorted(path.parent.name for path in parent.glob("*/run.json")) if parent.is_dir() else []
    hint = f"; runs in {parent}: {', '.join(others[-3:])}" if others else ""
    raise RunError(f"run={run}: not a run folder (no run.json){hint}")


def read_record(folder: Path) -> Node:
    """`run.json` of a run folder."""
    record: Node = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return record


def config_hash(config: Node) -> str:
    """SHA-256 of the resolved config, without where it is read and written and what it is called."""
    told = {name: value for name, value in config.items() if name not in BYSTANDERS}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python, whet and the libraries that matter."""
    import whet

    found = {"python": platform.python_version(), "whet": whet.__version__}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git_state() -> dict[str, Any] | None:
    """Commit, branch and whether files changed, of the current directory's repository; None outside one."""

    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        return {
            "commit": commit,
            "branch": ask("rev-parse", "--abbrev-ref", "HEAD"),
            "dirty": bool(ask("status", "--porcelain")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """Processor, with the instructions that torch takes on it, cores, memory, accelerators."""
    import psutil

    found: dict[str, Any] = {
        "host": platform.node(),
        "system": platform.platform(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
        found["cpu"] = f"{name}, {torch.backends.cpu.get_cpu_capability()}"
        found["threads"] = torch.get_num_threads()
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def failed_before_start(folder: Path, config: Node, overrides: list[str], error: Exception) -> None:
    """Record a job or a trial that failed while it was loading, so that the summary can tell."""
    run = Run.create(folder, config, overrides)
    run.update(status="failed", reason=one_line(f"{type(error).__name__}: {error}"))
