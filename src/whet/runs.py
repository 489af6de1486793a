"""Runs and sweeps as data frames, for notebooks and scripts.

    import whet.runs

    runs = whet.runs.load("outputs")
    runs.table(columns=["name", "peft", "test/accuracy"], where=["status=finished"], sort="-test/accuracy")
    runs.metrics("validation/accuracy")            # learning curves, long
    runs.predictions("20261123-181530-…", "test")  # ids, logits, labels
    runs.errors("20261123-181530-…")               # its worst mistakes
    runs.paired("peft", baseline="none")           # mean differences over seeds, 95 % intervals
    runs.sweeps()                                  # trials of all sweeps
    runs.diff("base", "lora").config               # settings that differ

Keys, conditions and names are those of `whet runs` (see `whet runs --help`). Nothing is written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from whet.config import part
from whet.errors import RunError, one_line
from whet.evaluation.predictions import Predictions
from whet.review.compare import paired
from whet.review.conditions import select
from whet.review.diff import Diff, diff
from whet.review.facts import Facts, check_keys, keys_of
from whet.review.finding import one_of, places_of, read_runs, read_sweeps
from whet.review.records import RunRecord, SweepRecord
from whet.review.show import trial_row
from whet.review.table import arrange, by_seed, default_columns, pick

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Runs", "load"]
log = logging.getLogger("whet")


def load(*places: str | Path) -> Runs:
    """The runs and sweeps at or below folders, as they are now.

    Args:
        places: run folders, sweep folders or anything above; by default `outputs` (or WHET_OUTPUT).

    Returns:
        Those that can be read; the others are named in one warning.

    Raises:
        RunError: no such folder.
    """
    found = places_of(places)
    runs, sweeps = read_runs(found), read_sweeps(found)
    return Runs([run for run, _ in runs], [sweep for sweep, _ in sweeps], [facts for _, facts in runs])


@dataclass(frozen=True)
class Runs:
    """Runs, in the order of their folders. Iterating gives `RunRecord`s; `len` counts them."""

    records: list[RunRecord]
    sweep_records: list[SweepRecord] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list, repr=False)
    """What is known of each run, flat."""

    def __iter__(self) -> Iterator[RunRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, name: str) -> RunRecord:
        """The run of a name, or of the beginning of a name that no other one shares.

        Raises:
            RunError: there is none, or several.
        """
        found = one_of(name, self.records)
        if not isinstance(found, RunRecord):
            raise RunError(f"{name}: a sweep, not a run")
        return found

    def table(
        self,
        columns: Sequence[str] | None = None,
        where: Sequence[str] = (),
        sort: str | Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """One row a run.

        Args:
            columns: keys; by default those of `whet runs`. `["*"]` takes all that any run has.
            where: conditions that must all hold, as `["optimizer.lr>1e-4", "peft=lora"]`.
            sort: a key or several, `-key` for the largest first; missing values come last.

        Raises:
            ConfigError: not a condition, or a key that no run has.
        """
        import pandas as pd

        rows = select(self.facts, [where] if isinstance(where, str) else where)
        rows = arrange(rows, [sort] if isinstance(sort, str) else sort or ())
        keys = keys_of(self.facts) if columns == ["*"] else list(columns or default_columns(rows))
        check_keys("columns", keys, self.facts)
        return pd.DataFrame(pick(rows, keys), columns=keys)

    def metrics(self, name: str | None = None) -> pd.DataFrame:
        """What the local logs hold, one row a figure: run, step, name, value.

        Args:
            name: only this figure, for example `validation/accuracy`.

        Raises:
            ConfigError: no run has logged it.
        """
        import pandas as pd

        rows = [row for run in self.records for row in _logged(run)]
        if name is not None:
            check_keys("name", [name], [dict.fromkeys(row[2] for row in rows)])
            rows = [row for row in rows if row[2] == name]
        return pd.DataFrame(rows, columns=["run", "step", "name", "value"])

    def predictions(self, run: str | RunRecord, split: str = "test") -> Predictions:
        """What a run said about each row of a split.

        Args:
            run: its name, the beginning of its name, or its record.
            split: validation or test.

        Raises:
            RunError: no such run, or it keeps no predictions of the split.
        """
        record = self[run] if isinstance(run, str) else run
        found = record.predictions(split)
        if found is None:
            kept = sorted(path.stem for path in (record.folder / "predictions").glob("*.npz"))
            raise RunError(
                f"{record.folder}: no predictions of {split}; it keeps {', '.join(kept) or 'none'}"
            )
        return found

    def errors(self, run: str | RunRecord, split: str = "test") -> pd.DataFrame:
        """The rows that a run got most confidently wrong (regression: by most), worst first.

        Returns:
            id, text (of those that the run's own report names, too), true, predicted, probability.

        Raises:
            RunError: no such run, or it keeps no predictions of the split.
        """
        import pandas as pd

        from whet.evaluation.report import make_report
        from whet.task.base import Task

        record = self[run] if isinstance(run, str) else run
        found = self.predictions(record, split)
        task: Task = part(record.config.get("task"), Task, "task")
        chances = task.probabilities(found.logits)
        worst = make_report(found, task.kind, chances, task.decide(chances), {}, {}).worst
        texts = _texts(record, split)
        rows = [{**vars(one), "text": texts.get(one.id)} for one in worst]
        return pd.DataFrame(rows, columns=["id", "text", "true", "predicted", "probability"])

    def paired(
        self, key: str, baseline: str, figure: str = "validation", where: Sequence[str] = ()
    ) -> pd.DataFrame:
        """Groups of runs held against one of them, seed by seed: group, n, mean, low, high (95 %).

        Args:
            key: what makes the groups, as `peft`.
            baseline: the group that the others are held against.
            figure: what is compared.
            where: conditions on the runs: of each group one run a seed.

        Raises:
            ConfigError: no such key or group, or several runs of one group and seed.
        """
        import pandas as pd

        values = by_seed(select(self.facts, [where] if isinstance(where, str) else where), key, figure)
        found = [vars(one) for one in paired(values, baseline)]
        return pd.DataFrame(found, columns=["group", "n", "mean", "low", "high"])

    def sweeps(self) -> pd.DataFrame:
        """Trials of all sweeps: study, number, state, params.*, values.*, std, seconds, reused_from, reason.

        `values.*` are named by objective. A study that can't be read is left out with a warning.
        """
        import pandas as pd

        rows = []
        for sweep in self.sweep_records:
            try:
                trials = sweep.study().get_trials(deepcopy=False)
            except RunError as error:
                log.warning("%s", error)
                continue
            names = [str(name) for name in sweep.facts["objectives"]]
            rows += [{"study": sweep.name, **trial_row(trial, names)} for trial in trials]
        return pd.DataFrame(rows, columns=_in_order(keys_of(rows) or ["study", "number", "state"]))

    def diff(self, *runs: str | RunRecord) -> Diff:
        """What sets two runs or more apart; results are held against the first one's.

        Raises:
            RunError: no such run, or less than two.
        """
        return diff([self[run] if isinstance(run, str) else run for run in runs])


def _logged(run: RunRecord) -> list[tuple[str, int, str, float]]:
    try:
        lines = run.metrics()
    except ValueError as error:
        log.warning("%s: its log can't be read (%s)", run.folder, one_line(error))
        return []
    return [
        (run.name, line["step"], name, value)
        for line in lines
        for name, value in line.items()
        if name not in ("step", "time")
    ]


def _texts(run: RunRecord, split: str) -> dict[str, str]:
    """Texts by row id, of the mistakes that a run's report of a split lists."""
    path = run.folder / "report" / f"{split}.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {one["id"]: one["text"] for one in told.get("worst", [])}


def _in_order(keys: Sequence[str]) -> list[str]:
    """Parameters together, then values, whatever sweep they come from."""
    first = [key for key in keys if key in ("study", "number", "state")]
    params, values = ([key for key in keys if key.startswith(kind)] for kind in ("params.", "values."))
    return [*first, *params, *values, *(key for key in keys if key not in {*first, *params, *values})]
