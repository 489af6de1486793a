"""`resume=DIR` and `resume=auto`: which run goes on, and under which config."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from whet.config import Node, flatten, load
from whet.engine.run import config_hash, find_run, read_record
from whet.errors import ConfigError, RunError

GROUPS_FREE = ("tracking", "paths", "name", "tags")
KEYS_FREE = ("engine.checkpoint_every", "engine.keep", "engine.on_save_error")
"""What may differ when a run goes on, whole or by key: it changes no number."""


def found(config: Node) -> Path | None:
    """The folder to go on with; None to start anew.

    Raises:
        RunError: no such run, finished already, or still running.
    """
    given = config.get("resume")
    if given is None:
        return None
    if given == "auto":
        return _newest(config)
    folder = find_run(str(given))
    record = read_record(folder)
    if record["status"] == "finished":
        raise RunError(f"resume={given}: the run is finished; whet evaluate run={given} tests it again")
    if is_alive(record):
        raise RunError(f"resume={given}: the run is still running (process {record['pid']})")
    return folder


def _newest(config: Node) -> Path | None:
    """The newest unfinished, dead run in the output folder that computes the same."""
    runs = Path(str(config["paths"]["output"])).expanduser() / "runs"
    wanted = config_hash(config)
    for path in sorted(runs.glob("*/run.json"), reverse=True):
        record = read_record(path.parent)
        same = record.get("hashes", {}).get("config") == wanted
        if same and record["status"] != "finished" and not is_alive(record):
            return path.parent
    return None


def is_alive(record: Node) -> bool:
    """Whether the process that wrote a run's record still works on it (on this machine)."""
    import psutil

    pid = int(record.get("pid") or 0)
    here = record.get("hardware", {}).get("host") == platform.node()
    if record.get("status") != "running" or not here or pid == os.getpid():
        return False
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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
            elif group not in GROUPS_FREE and name != "debug.trace" and now[name] != before.get(name):
                problem = f"would change the run, which has {before.get(name)}: leave it out, or start anew"
                raise ConfigError(name, problem, now[name])
        if group in GROUPS_FREE:
            saved[group] = config[group]
    return {**saved, "resume": str(folder)}
