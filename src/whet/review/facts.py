"""A run or a sweep as one flat mapping: what tables show, filters ask for and groups are made of.

Keys are the config's (`optimizer.lr`), those of `run.json` (`memory.peak_mb`, `git.commit`), metrics
(`validation/accuracy`) and a few short ones (see `SHORT`).
"""

from __future__ import annotations

import difflib
import math
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from whet.config import TARGET, Node, flatten
from whet.engine.continuing import STARTING, is_alive
from whet.errors import ConfigError
from whet.review.records import RunRecord, SweepRecord

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Facts = dict[str, Any]
SHORT = {
    "kind": "run or sweep",
    "name": "of the run; <study>/0003 for a sweep's, <stamp>/0003 for a multirun's",
    "status": "finished, running, starting, pruned, failed, interrupted, or killed: its process is gone",
    "reason": "why it didn't finish",
    "metric": "the task's primary metric",
    "validation": "that metric on validation, at its best",
    "test": "that metric on test",
    "time": "seconds of training",
    "age": "seconds since it began",
    "study": "the sweep that it belongs to",
    "multirun": "the multirun that it belongs to",
    "folder": "where it lies",
}
"""Keys that every run has beside the config groups, whose value is the choice (`peft`: lora)."""
CHOSEN = ("task", "model", "peft", "augmentation", "objective", "optimizer", "scheduler")
"""Config groups that are a choice among methods."""
KILLED = "killed"
MAPPINGS = ("trial", "best", "metrics", "timings", "hardware", "hashes", "memory", "trainable", "versions")
STATES = ("complete", "pruned", "failed", "running", "waiting")
NEAR = 3
"""Keys proposed for one that no run has."""


# ---------------------------------------------------------------- runs


def of_run(run: RunRecord, now: datetime | None = None) -> Facts:
    """The facts of one run.

    Raises:
        OSError: its files can't be read.
        ValueError: they don't hold what a run writes.
    """
    record, config = checked(run.record), run.config
    told = {name: value for name, value in record.items() if name != "metrics"}
    best, timings, trial = (record.get(part) or {} for part in ("best", "timings", "trial"))
    metric = str(best.get("metric") or "").removeprefix("validation/") or None
    return {
        **{key: value for key, value in flatten(config) if value != {}},
        **{group: choice(config[group]) for group in CHOSEN if isinstance(config.get(group), Mapping)},
        **{key: value for key, value in flatten(told) if value != {}},
        **(record.get("metrics") or {}),
        "kind": "run",
        "name": run.name,
        "status": status(record),
        "reason": record.get("reason") or None,
        "metric": metric,
        "validation": best.get("value"),
        "test": (record.get("metrics") or {}).get(f"test/{metric}"),
        "time": timings.get("train_s"),
        "age": age(record.get("started"), now),
        "study": trial.get("study"),
        "multirun": None if trial or "/" not in run.name else run.name.partition("/")[0],
        "folder": str(run.folder),
    }


def checked(record: Any) -> Node:
    """A run's record, if it has the form of one.

    Raises:
        ValueError: it hasn't.
    """
    if not isinstance(record, dict) or not isinstance(record.get("status"), str):
        raise ValueError("run.json: not a run's record")  # noqa: TRY004 (what is wrong is the file)
    for name in MAPPINGS:
        if not isinstance(record.get(name), (dict, type(None))):
            raise ValueError(f"run.json: {name} is not a mapping")  # noqa: TRY004
    return record


def choice(node: Mapping[str, Any]) -> Any:
    """What a group's node is called: its name, else the function of its target, else the class's file."""
    if node.get("name"):
        return node["name"]
    module, _, attribute = str(node.get(TARGET) or "").rpartition(".")
    return (attribute if attribute.islower() else module.rpartition(".")[2]) or None


def status(record: Node) -> str:
    """How a run ended; `killed` if its record says that it runs and its process, of this machine, is gone."""
    told, host = str(record.get("status")), (record.get("hardware") or {}).get("host")
    gone = told in ("running", STARTING) and host == platform.node() and not is_alive(record)
    return KILLED if gone else told


def age(started: Any, now: datetime | None = None) -> float | None:
    """Seconds since a time in ISO form; None if it isn't one."""
    try:
        begun = datetime.fromisoformat(str(started))
    except ValueError:
        return None
    return ((now or datetime.now(UTC)) - begun.astimezone(UTC)).total_seconds()


# ---------------------------------------------------------------- sweeps


def of_sweep(sweep: SweepRecord, trials: Sequence[FrozenTrial] = (), now: datetime | None = None) -> Facts:
    """The facts of one sweep.

    Args:
        sweep: its record.
        trials: of its study.
        now: what `age` counts to.

    Raises:
        OSError: its file can't be read.
        ValueError: it doesn't hold what a sweep writes.
    """
    facts = sweep.facts
    if not isinstance(facts, dict) or not {"study", "status", "objectives", "directions"} <= facts.keys():
        raise ValueError("sweep.json: not a sweep's record")
    return {
        **{key: value for key, value in flatten(facts) if value != {}},
        "kind": "sweep",
        "name": sweep.name,
        "objectives": " / ".join(map(str, facts["objectives"])),
        "age": age(facts.get("started"), now),
        "folder": str(sweep.folder),
        **_states(trials),
        **_best(trials, facts["directions"]),
    }


def state(trial: FrozenTrial) -> str:
    """What a trial came to: one of `STATES`; one that took an equal one's values came to what that did."""
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
    return names.get(trial.state.name, "waiting")


def _states(trials: Sequence[FrozenTrial]) -> Facts:
    found = [state(trial) for trial in trials]
    counts = {name: found.count(name) if trials else None for name in STATES}
    return {"trials": len(trials) or None, **counts}


def _best(trials: Sequence[FrozenTrial], directions: Sequence[str]) -> Facts:
    """The best value, its trial and parameters; nothing where several objectives leave none."""
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if len(directions) != 1 or not done:
        return {"best": None}
    pick = max if directions[0] == "maximize" else min
    best = pick(done, key=lambda trial: float(trial.values[0]))
    params = {f"best.params.{name}": value for name, value in best.params.items()}
    return {"best": best.value, "best.trial": best.number, **params}


# ---------------------------------------------------------------- keys


def keys_of(rows: Iterable[Facts]) -> list[str]:
    """All keys of the rows, each once."""
    return list(dict.fromkeys(key for row in rows for key in row))


def check_keys(setting: str, keys: Iterable[str], rows: Sequence[Facts]) -> None:
    """Refuse keys that no row has; without a row there is nothing to check against.

    Raises:
        ConfigError: names the nearest.
    """
    known = {*keys_of(rows), *SHORT}
    for key in keys:
        if rows and key not in known:
            raise ConfigError(setting, f"no run has it; {near(key, known)}", key)


def near(key: str, known: Iterable[str], otherwise: str = "whet runs show RUN tells what there is") -> str:
    """Which of many names may be meant: those that end alike, then those spelled alike."""
    named = sorted(known, key=lambda name: (len(name), name))
    ends = [name for name in named if name.endswith((f".{key}", f"/{key}"))]
    lasts = {name: re.split(r"[./]", name)[-1] for name in named}
    like = difflib.get_close_matches(key, [*named, *lasts.values()], n=NEAR, cutoff=0.6)
    close = [name for text in dict.fromkeys(like) for name in named if text in (name, lasts[name])]
    found = list(dict.fromkeys([*ends, *close]))[:NEAR]
    return f"did you mean {' or '.join(found)}?" if found else otherwise


def number(value: Any) -> float | None:
    """A value as a number; None for all else, NaN included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return value
