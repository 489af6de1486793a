"""What a sweep shows while it runs and leaves when it ends."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.storage import aside
from whet.sweep.peer import best_of, place_of
from whet.sweep.space import as_text
from whet.tracking.progress import clock

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from rich.table import Table

    from whet.sweep.study import Budgeted

RESULTS = "optimization_results.yaml"
SHOWN = 30
"""Trials in a live table at most: the latest."""


def write_results(folder: Path, study: Study, objectives: Sequence[str]) -> list[Path]:
    """`optimization_results.yaml`, as Hydra's own Optuna plugin writes it; returns the best runs' folders."""
    from omegaconf import OmegaConf

    best = best_of(study)
    if not best:
        return []
    found: dict[str, Any] = {"name": "optuna"}
    if len(study.directions) == 1:
        found |= {"best_params": best[0].params, "best_value": best[0].value}
    else:
        found["solutions"] = [{"params": trial.params, "values": list(trial.values)} for trial in best]
    with aside(folder / RESULTS) as beside:
        beside.write_text(OmegaConf.to_yaml(OmegaConf.create(found)), encoding="utf-8")
    return [place_of(folder, trial) for trial in best]


# ---------------------------------------------------------------- progress


@dataclass
class Progress:
    """Trials on stderr: a live table on a terminal, a line for each that ends elsewhere."""

    study: Budgeted
    objectives: Sequence[str]
    every: float = 1.0
    """Seconds between two looks."""
    _told: set[int] = field(init=False, repr=False, default_factory=set)
    _live: Any = field(init=False, repr=False, default=None)
    _started: float = field(init=False, repr=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._told = {trial.number for trial in self.study.trials() if trial.state.is_finished()}
        self._before = len(self._told)

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Where they run in other processes: a table, if there is a terminal."""
        if not (sys.stderr.isatty() and os.environ.get("TERM") != "dumb"):
            yield
            self.tell()
            return
        from rich.live import Live

        from whet.tracking.progress import terminal

        with Live(console=terminal(), auto_refresh=False) as self._live:
            try:
                yield
            finally:
                self._live.update(self._table(), refresh=True)
        self._live = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Where they run in this process: the same, kept up to date by a thread."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(self.every):
                self._live.update(self._table(), refresh=True)

        with self.live():
            looking = threading.Thread(target=look, name="whet-table", daemon=True)
            if self._live is not None:
                looking.start()
            try:
                yield
            finally:
                ended.set()
                if looking.is_alive():
                    looking.join()

    def tick(self) -> None:
        """Show what is new."""
        time.sleep(self.every)
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        else:
            self.tell()

    def tell(self) -> None:
        """A line for every trial that has ended since last time, where there is no table."""
        if self._live is not None:
            return
        trials = self.study.trials()
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self._told:
                self._told.add(trial.number)
                print(self._line(trial, trials), file=sys.stderr, flush=True)

    def _line(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> str:
        done = sum(each.state.is_finished() for each in trials)
        params = " ".join(f"{name}={_cell(value)}" for name, value in trial.params.items())
        parts = [f"trial {trial.number}", f"{done}/{len(trials)}", state_of(trial), value_of(trial), params]
        best = best_of(self.study.study)
        if best and len(self.objectives) == 1:
            parts.append(f"best {value_of(best[0])} (trial {best[0].number})")
        return "  ".join(part for part in [*parts, f"ETA {clock(self._left(trials))}"] if part)

    def _left(self, trials: Sequence[FrozenTrial]) -> float | None:
        """Seconds until all are done, by the pace so far."""
        done = sum(trial.state.is_finished() for trial in trials)
        new = done - self._before
        return (len(trials) - done) * (time.monotonic() - self._started) / new if new else None

    def _table(self) -> Table:
        trials = self.study.trials()
        begun = [trial for trial in trials if trial.state.name != "WAITING"]
        made = table(begun[-SHOWN:], self.objectives)
        best = best_of(self.study.study)
        told = f"best {value_of(best[0])} (trial {best[0].number}), " if best else ""
        done = sum(trial.state.is_finished() for trial in trials)
        made.caption = f"{told}{done}/{len(trials)} trials, ETA {clock(self._left(trials))}"
        return made


def table(trials: Sequence[FrozenTrial], objectives: Sequence[str]) -> Table:
    """Trial, parameters, state, values."""
    from rich.table import Table

    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    made = Table("trial", *names, "state", " / ".join(objectives))
    for trial in trials:
        params = [_cell(trial.params[name]) if name in trial.params else "" for name in names]
        made.add_row(str(trial.number), *params, state_of(trial), value_of(trial))
    return made


def state_of(trial: FrozenTrial) -> str:
    """In words."""
    if "reused_from" in trial.user_attrs:
        return f"as trial {trial.user_attrs['reused_from']}"
    return {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}.get(
        trial.state.name, "waiting"
    )


def value_of(trial: FrozenTrial) -> str:
    """Its values; of one that runs or was pruned the last one it told; ± over repeats."""
    values = list(trial.values or [])
    if not values and trial.intermediate_values:
        values = [trial.intermediate_values[max(trial.intermediate_values)]]
    spread = f" ± {trial.user_attrs['std']:.4f}" if "std" in trial.user_attrs else ""
    return " / ".join(f"{value:.4f}" for value in values) + spread


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)


def saved_by_pruning(trials: Sequence[FrozenTrial]) -> tuple[int, int]:
    """Updates made, and those that the same trials would have made unpruned.

    Reused results don't count, nor do trials that failed before they could tell.
    """
    made = planned = 0
    for trial in trials:
        if "reused_from" not in trial.user_attrs and {"steps", "planned"} <= trial.user_attrs.keys():
            steps = int(trial.user_attrs["steps"])
            made += steps
            planned += int(trial.user_attrs["planned"]) if trial.state.name == "PRUNED" else steps
    return made, planned


def summary(study: Study, folder: Path, objectives: Sequence[str]) -> str:
    """What the sweep came to, in a few lines."""
    trials = study.get_trials(deepcopy=False)
    counts = {state: sum(state_of(t) == state for t in trials) for state in map(state_of, trials)}
    made, planned = saved_by_pruning(trials)
    lines = [f"{len(trials)} trials: " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))]
    if planned > made:
        lines.append(f"pruning saved {planned - made:,} of {planned:,} updates ({1 - made / planned:.0%})")
    for trial in best_of(study):
        params = " ".join(f"{name}={as_text(value)}" for name, value in trial.params.items())
        lines.append(f"best: trial {trial.number}, {' / '.join(objectives)} {value_of(trial)}: {params}")
    reasons = {str(t.user_attrs.get("reason")) for t in trials if state_of(t) == "failed"}
    lines += [f"failed: {reason}" for reason in sorted(reasons)]
    return "\n".join([*lines, f"sweep folder  {folder}"])


def told_of(folder: Path) -> tuple[str, int, int]:
    """A sweep's summary by its folder; how many trials failed, and how many are left."""
    import json

    import optuna

    from whet.sweep.storage import open_storage

    facts = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    storage = open_storage(str(facts["storage"]), folder)
    study = optuna.load_study(study_name=facts["study"], storage=storage)
    trials = study.get_trials(deepcopy=False)
    failed = sum(state_of(trial) == "failed" for trial in trials)
    left = sum(not trial.state.is_finished() for trial in trials)
    return summary(study, folder, facts["objectives"]), failed, left
