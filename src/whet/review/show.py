"""All about one run or one sweep."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config import Node, compose, flatten
from whet.engine.run import BYSTANDERS
from whet.engine.run import command as launcher
from whet.evaluation.describe import shorten
from whet.review.facts import CHOSEN, Facts, choice, keys_of, number, of_run, of_sweep, state
from whet.review.finding import read_runs
from whet.review.layout import aligned, brief, lasted, score, span
from whet.review.records import RunRecord, SweepRecord

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FACTS = (
    "best",
    "steps",
    "planned",
    "timings",
    "memory",
    "trainable",
    "precision",
    "hashes",
    "versions",
    "git",
)
"""Parts of a run's record that are shown as they are."""
LINE = 100_000
"""Letters of a line; a command must stay whole."""


# ---------------------------------------------------------------- runs


def show_run(run: RunRecord) -> Node:
    """Everything worth knowing of a run.

    Returns:
        name, folder, status, reason, command, overrides, differences (key → value and default), metrics
        (split → name → figure), parts of the record, and files (path → bytes).
    """
    facts = of_run(run)
    return {
        **{key: facts[key] for key in ("name", "folder", "status", "reason", "age")},
        "started": run.record.get("started"),
        "choices": {group: facts[group] for group in CHOSEN if group in facts},
        "command": command_of(run),
        "overrides": overrides_of(run),
        "differences": differences(run.config),
        "metrics": by_split(run.record.get("metrics") or {}),
        **{name: run.record.get(name) for name in FACTS},
        "files": files_of(run.folder),
    }


def overrides_of(run: RunRecord) -> list[str]:
    """What was asked for when it was started."""
    path = run.folder / "overrides.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in lines if line and not line.startswith("resume=")]


def command_of(run: RunRecord) -> str:
    """A command to paste into a shell that makes the run again."""
    return f"{launcher(int(run.record.get('processes') or 1))} {shlex.join(overrides_of(run))}".rstrip()


def differences(config: Node) -> dict[str, dict[str, Any]]:
    """Where a config differs from that of plain `whet train`: key → its `value` and the `default`.

    Of a group with another choice only the choice is named, not all that comes with it. Parts that change
    nothing (name, tags, paths, tracking) are left out.
    """
    usual = compose("train") if config else {}
    found = {}
    for part in [name for name in {**usual, **config} if name not in BYSTANDERS]:
        own, default = config.get(part), usual.get(part)
        if isinstance(own, Mapping) and isinstance(default, Mapping) and choice(own) != choice(default):
            own, default = choice(own), choice(default)
        ours, theirs = dict(flatten(own, part)), dict(flatten(default, part))
        for key in {**theirs, **ours}:
            if ours.get(key) != theirs.get(key):
                found[key] = {"value": ours.get(key), "default": theirs.get(key)}
    return found


def by_split(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`validation/accuracy` by split and name."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in metrics.items():
        split, _, name = key.rpartition("/")
        found.setdefault(split, {})[name] = value
    return found


def files_of(folder: Path) -> dict[str, int]:
    """Bytes of what lies in a folder: its files by name, of folders all that is in them."""
    return {
        f"{path.name}{'/' * path.is_dir()}": sum(each.stat().st_size for each in _files(path))
        for path in sorted(folder.iterdir())
    }


def _files(path: Path) -> list[Path]:
    return [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]


# ---------------------------------------------------------------- sweeps


def show_sweep(sweep: SweepRecord) -> Node:
    """Everything worth knowing of a sweep.

    Returns:
        its facts, `summary`, `trials` (a row each) and `best_command` (several on a Pareto front).

    Raises:
        RunError: its study can't be read.
    """
    from whet.sweep.peer import best_of
    from whet.sweep.results import summary

    study = sweep.study()
    trials = study.get_trials(deepcopy=False)
    objectives = [str(name) for name in sweep.facts["objectives"]]
    return {
        **of_sweep(sweep, trials),
        "summary": summary(study, sweep.folder, objectives),
        "trials": [trial_row(trial, objectives) for trial in trials],
        "best_command": [command_of(run) for run in best_runs(sweep, best_of(study))],
    }


def trial_row(trial: FrozenTrial, objectives: Sequence[str]) -> Facts:
    """One trial: number, state, params.*, values.*, spread over repeats, seconds, reused_from, reason."""
    told, values = trial.user_attrs, trial.values or [None] * len(objectives)
    return {
        "number": trial.number,
        "state": state(trial),
        **{f"params.{name}": value for name, value in trial.params.items()},
        **{f"values.{name}": value for name, value in zip(objectives, values, strict=True)},
        **{name: told.get(name) for name in ("std", "seconds", "reused_from", "reason")},
    }


def best_runs(sweep: SweepRecord, best: Sequence[FrozenTrial]) -> list[RunRecord]:
    """The run of each of these trials, or the first of its repeats; one that it took its values from."""
    numbers = [trial.user_attrs.get("reused_from", trial.number) for trial in best]
    runs: dict[Any, RunRecord] = {}
    for run, facts in read_runs([sweep.folder]):
        runs.setdefault(facts.get("trial.number"), run)
    return [runs[number] for number in numbers if number in runs]


# ---------------------------------------------------------------- as text


def run_text(found: Node, wide: int | None = None) -> str:
    """What `show_run` found, for people."""
    head = {
        "run": found["folder"],
        "status": _status(found),
        **found["choices"],
        "best step": _best_step(found["best"] or {}, found["steps"]),
        "training": _timings(found["timings"] or {}),
        "memory": ", ".join(f"{name} {value:,}" for name, value in (found["memory"] or {}).items()),
        "repeat it": found["command"],
    }
    differ = [
        {"key": key, **{n: brief(v) for n, v in pair.items()}} for key, pair in found["differences"].items()
    ]
    parts = [
        "\n".join(_pairs(head)),
        _section("differs from the defaults", differ, ["key", "value", "default"], wide),
        _metrics(found["metrics"], wide),
        *(
            _list(name, dict(flatten(found[name] or {})))
            for name in ("trainable", "hashes", "versions", "git")
        ),
        _list("files", {name: f"{size:,} B" for name, size in found["files"].items()}),
    ]
    return "\n\n".join(part for part in parts if part)


def sweep_text(found: Node, wide: int | None = None) -> str:
    """What `show_sweep` found, for people."""
    head = {
        "sweep": found["folder"],
        "status": _status(found),
        "objective": found["objectives"],
        "searched": ", ".join(
            f"{k.removeprefix('space.')}={v}" for k, v in found.items() if k.startswith("space.")
        ),
        "command": found["command"],
    }
    trials = found["trials"]
    columns = [key for key in keys_of(trials) if any(row.get(key) is not None for row in trials)]
    best = "\n".join(found["best_command"])
    parts = [
        "\n".join(_pairs(head)),
        found["summary"].rpartition("\n")[0],
        _section("trials", trials, columns, wide),
        f"best, to run again\n{textwrap.indent(best, '  ')}" if best else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _status(found: Node) -> str:
    ago = f", begun {span(found['age'])} ago" if found["age"] is not None else ""
    return f"{found['status']}{ago}" + (f": {found['reason']}" if found.get("reason") else "")


def _best_step(best: Mapping[str, Any], steps: Any) -> str:
    if number(best.get("value")) is None:
        return ""
    stopped = f"; {best['stopped']}" if best.get("stopped") else ""
    return f"{best.get('step')} of {steps} ({best.get('metric')} {score(best['value'])}){stopped}"


def _timings(timings: Mapping[str, Any]) -> str:
    told = {"train_s": "{}", "total_s": "{} in all"}
    return ", ".join(told[name].format(lasted(timings[name])) for name in told if name in timings)


def _metrics(metrics: Mapping[str, Mapping[str, Any]], wide: int | None) -> str:
    names = dict.fromkeys(name for each in metrics.values() for name in each)
    rows = [{"metric": name, **{split: each.get(name) for split, each in metrics.items()}} for name in names]
    return _section("metrics", rows, ["metric", *metrics], wide)


def _section(title: str, rows: Sequence[Facts], columns: Sequence[str], wide: int | None) -> str:
    room = None if wide is None else wide - 2
    return f"{title}\n{textwrap.indent(aligned(rows, columns, room), '  ')}" if rows else ""


def _list(title: str, values: Mapping[str, Any]) -> str:
    lines = _pairs({name: brief(value) for name, value in values.items() if value != {}})
    return "\n".join([title, *(f"  {line}" for line in lines)]) if lines else ""


def _pairs(values: Mapping[str, Any]) -> list[str]:
    """Names and values in two columns; without those that are empty."""
    there = {name: str(value) for name, value in values.items() if value not in (None, "")}
    size = max(map(len, there), default=0)
    return [f"{name:<{size}}  {shorten(value, LINE)}" for name, value in there.items()]
