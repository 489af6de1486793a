"""`resume=DIR`, `resume=auto` and requeued jobs: which run goes on, and under which config."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config import Node, flatten, load
from whet.engine.run import Run, config_hash, find_run, read_record
from whet.errors import ConfigError, RunError
from whet.secrets import mask, mask_text
from whet.storage import aside

if TYPE_CHECKING:
    from whet.engine.train import Outcome

GROUPS_FREE = ("tracking", "paths", "name", "tags", "sweep")
KEYS_FREE = (
    "engine.checkpoint_every", "engine.keep", "engine.on_save_error", "engine.pictures", "debug.trace",
)  # fmt: skip
"""What may differ when a run goes on, whole or by key: it changes no number."""
STARTING = "starting"
"""Status of a multirun's job that has its folder and loads."""
MULTIRUN = "multirun.json"


@dataclass(frozen=True)
class Job:
    """A job of a multirun."""

    sweep: Path
    """The multirun's folder."""
    number: int

    @property
    def name(self) -> str:
        """Of its folder; `<name>-2` and so on if that is taken."""
        return f"{self.number:04d}"

    def folders(self) -> list[Path]:
        """Those that were made for it, oldest first."""
        found = [path for path in self.sweep.glob(f"{self.name}*") if self._is_own(path.name)]
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def _is_own(self, name: str) -> bool:
        return name == self.name or name.startswith(f"{self.name}-")


def found(config: Node, job: Job | None = None) -> Path | None:
    """The folder to go on with; None to start anew.

    In a multirun and in a requeued job it may be a run that is finished (see `recorded`), in a multirun also
    one that has only its folder (`STARTING`). A requeued job goes on as if `resume=auto` were given.

    Raises:
        RunError: no such run, finished already, or still running.
        ConfigError: a multirun can't go on with one run.
    """
    given = config.get("resume")
    if given is None and scheduler_job() is None:
        return None
    if given is None or given == "auto":
        return _own(config, job, given) if job is not None else _newest(config, given)
    if job is not None:
        raise ConfigError("resume", "names one run: leave out -m, or write resume=auto", given)
    folder = find_run(str(given)).absolute()
    record = read_record(folder)
    if record["status"] == "finished":
        raise RunError(f"resume={given}: the run is finished; whet evaluate run={given} tests it again")
    if is_alive(record):
        raise RunError(f"resume={given}: the run is still running (process {record['pid']})")
    return folder


def _newest(config: Node, given: str | None) -> Path | None:
    """The newest unfinished, dead run in the output folder that computes the same.

    In a requeued job only the run that this job began, which may be finished.
    """
    records = _records((Path(str(config["paths"]["output"])).expanduser().absolute() / "runs").glob("*"))
    for folder, record in sorted(records, key=lambda item: str(item[1].get("started", "")), reverse=True):
        again = is_requeued(record)
        open_still = given == "auto" and record["status"] not in ("finished", STARTING)
        if (again or open_still) and not is_alive(record) and computes_same(folder, config):
            return folder
    return None


def _own(config: Node, job: Job, given: str | None) -> Path | None:
    """The newest folder of a multirun's job.

    Raises:
        RunError: another process works there.
    """
    for folder, record in reversed(_records(job.folders())):
        if (given == "auto" or is_requeued(record)) and computes_same(folder, config):
            if is_alive(record):
                raise RunError(f"{folder}: the run is still running (process {record['pid']})")
            return folder
    return None


def _records(folders: Iterable[Path]) -> list[tuple[Path, Node]]:
    return [(path, read_record(path)) for path in folders if (path / "run.json").is_file()]


def computes_same(folder: Path, config: Node) -> bool:
    """Whether a run's config and this one differ at most in what changes no number."""
    if not (folder / "config.yaml").is_file():  # it was stopped while loading
        return bool(read_record(folder)["hashes"]["config"] == config_hash(config))
    return config_hash(meaning(load(folder / "config.yaml"))) == config_hash(meaning(config))


def meaning(config: Node) -> Node:
    """What of a config changes a number, by dotted key."""
    kept = {name: value for name, value in config.items() if name not in (*GROUPS_FREE, "resume")}
    return {key: value for key, value in flatten(mask(kept)) if key not in KEYS_FREE}


def is_alive(record: Node) -> bool:
    """Whether the process that wrote a run's record still works on it (on this machine)."""
    import psutil

    pid = int(record.get("pid") or 0)
    here = record.get("hardware", {}).get("host") == platform.node()
    if record.get("status") not in ("running", STARTING) or not here or pid == os.getpid():
        return False
    try:
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE) and process.create_time() <= _written(record)
    except psutil.NoSuchProcess:
        return False


def _written(record: Node) -> float:
    """When a run began or last went on, in seconds since 1970: a process born later has only its number."""
    last = record["resumed"][-1] if record.get("resumed") else record.get("started")
    return datetime.fromisoformat(str(last)).timestamp() + 2 if last else float("inf")


# ---------------------------------------------------------------- jobs of a scheduler


def scheduler_job(environ: Mapping[str, str] = os.environ) -> str | None:
    """The name that Slurm or submitit's local executor gives this job, the same when it is requeued."""
    if environ.get("SUBMITIT_EXECUTOR") == "local":
        return f"local-{environ['SUBMITIT_LOCAL_JOB_ID']}"
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"slurm-{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return f"slurm-{environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in environ else None


def is_requeued(record: Node, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process belongs to a job that began the run of `record` when it was started before.

    Slurm counts its restarts; submitit's local executor doesn't, but runs nothing twice in one job otherwise.
    """
    job = scheduler_job(environ)
    again = environ.get("SUBMITIT_EXECUTOR") == "local" or int(environ.get("SLURM_RESTART_COUNT") or 0) > 0
    return job is not None and record.get("job") == job and again


# ---------------------------------------------------------------- beginning and going on


def claim(folder: Path, config: Node, overrides: list[str]) -> None:
    """Say at once whose a multirun job's folder is: a job that is stopped while it loads comes back to it."""
    told = "".join(f"{mask_text(item)}\n" for item in overrides)
    (folder / "overrides.txt").write_text(told, encoding="utf-8")
    Run(folder).update(
        name=folder.name,
        status=STARTING,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        pid=os.getpid(),
        job=scheduler_job(),
        hardware={"host": platform.node()},
        hashes={"config": config_hash(config)},
    )


def begin(folder: Path, config: Node, overrides: list[str], processes: int = 1) -> Run:
    """The record of a new run, with the scheduler's job that it belongs to."""
    run = Run.create(folder, config, overrides, processes)
    if (job := scheduler_job()) is not None:
        run.update(job=job)
    return run


def saved_config(folder: Path, config: Node, overrides: list[str]) -> Node:
    """The run's own config, with what may differ taken from now where it was given.

    Raises:
        ConfigError: an override would change what the run computes.
    """
    saved = load(folder / "config.yaml")
    before, now = dict(flatten(saved)), dict(flatten(config))
    given = {item.lstrip("+~").partition("=")[0].replace("/", ".") for item in overrides}
    for key in given - {"resume"}:
        group = key.split(".")[0]
        for name in (name for name in now if name == key or name.startswith(f"{key}.")):
            if name in KEYS_FREE:
                parent, _, leaf = name.rpartition(".")
                saved[parent][leaf] = now[name]
            elif group not in GROUPS_FREE and now[name] != before.get(name):
                problem = f"would change the run, which has {before.get(name)}: leave it out, or start anew"
                raise ConfigError(name, problem, now[name])
        if group in GROUPS_FREE:
            saved[group] = config[group]
    return {**saved, "resume": str(folder)}


def recorded(folder: Path) -> Outcome:
    """What a finished run came to, from its record."""
    from whet.engine.train import Outcome

    record = read_record(folder)
    metrics = record["metrics"]
    lines = [f"{folder}: finished before", *(f"  {name} {value}" for name, value in metrics.items())]
    return Outcome(folder, metrics, record["best"]["value"], "\n".join(lines))


# ---------------------------------------------------------------- whole multiruns


def note_multirun(folder: Path, overrides: list[str], **facts: Any) -> None:
    """Keep in a multirun's folder which command it is of, and who works on it."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "status": "running",
        "overrides": _command(overrides),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "pid": os.getpid(),
        "hardware": {"host": platform.node()},
        **facts,
    }
    with aside(folder / MULTIRUN) as beside:
        beside.write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")


def unfinished_multirun(parent: Path, overrides: list[str]) -> Path | None:
    """With `resume=auto`: the newest multirun of the same command below `parent` that was cut short."""
    if "resume=auto" not in overrides:
        return None
    for path in sorted(parent.glob(f"*/{MULTIRUN}"), reverse=True):
        record = json.loads(path.read_text(encoding="utf-8"))
        same = record["overrides"] == _command(overrides)
        if same and record["status"] != "finished" and not is_alive(record):
            return path.parent
    return None


def _command(overrides: list[str]) -> list[str]:
    return sorted(item for item in overrides if not item.startswith("resume="))
