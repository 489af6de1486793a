"""Runs and sweeps as they lie on disk."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config import Node
from whet.engine.continuing import MULTIRUN
from whet.errors import RunError, one_line
from whet.evaluation.predictions import Predictions
from whet.secrets import MASK
from whet.tracking.jsonl import FILE, read_metrics

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

log = logging.getLogger("whet")
SWEEP = "sweep.json"
"""A sweep's facts, in its folder: `outputs/sweeps/<study>/`."""
RUN = "run.json"
PATIENCE = 30.0
"""Seconds to wait for a sweep that writes to its study."""


@dataclass(frozen=True)
class RunRecord:
    """One run folder."""

    folder: Path

    @cached_property
    def record(self) -> Node:
        """`run.json`: status, metrics, timings, versions; of a sweep's run also `trial`."""
        found: Node = json.loads((self.folder / RUN).read_text(encoding="utf-8"))
        return found

    @cached_property
    def config(self) -> Node:
        """The resolved config; empty where the run ended before it had one."""
        path = self.folder / "config.yaml"
        return read_yaml(path) if path.is_file() else {}

    @property
    def name(self) -> str:
        """Of the run; that of a sweep or a multirun bears its name, too: `<study>/0003`, `<stamp>/0003`."""
        trial = self.record.get("trial")
        for parent in self.folder.parents[:2]:
            if (parent / SWEEP).is_file() or (parent / MULTIRUN).is_file():
                whole = trial["study"] if trial else parent.name
                return f"{whole}/{self.folder.relative_to(parent).as_posix()}"
        name = str(self.record.get("name"))
        return f"{trial['study']}/{name}" if trial else name

    @property
    def status(self) -> str:
        """starting, running, finished, pruned, failed or interrupted."""
        return str(self.record.get("status"))

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of the local log: `step`, `time`, and figures by name; none where it wasn't kept."""
        path = self.folder / FILE
        return read_metrics(path) if path.is_file() else []

    def predictions(self, split: str) -> Predictions | None:
        """What the run said about a split, if it was kept."""
        path = self.folder / "predictions" / f"{split}.npz"
        return Predictions.load(path) if path.is_file() else None


@dataclass(frozen=True)
class SweepRecord:
    """One sweep folder."""

    folder: Path

    @cached_property
    def facts(self) -> Node:
        """`sweep.json`: study, storage, objectives, directions, space, n_trials, command, status."""
        found: Node = json.loads((self.folder / SWEEP).read_text(encoding="utf-8"))
        return found

    @property
    def name(self) -> str:
        """Of the study."""
        return str(self.facts["study"])

    def study(self) -> optuna.Study:
        """The Optuna study, for reading; a file is found where its sweep has been moved to, too.

        Raises:
            RunError: it isn't there, or can't be read.
            ConfigError: its storage can't be opened.
        """
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            return optuna.load_study(study_name=self.name, storage=self._storage())
        except KeyError:
            raise RunError(f"{self.folder}: its storage has no study {self.name}") from None
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise RunError(f"{self.folder}: the study can't be read ({one_line(error)})") from None

    def _storage(self) -> BaseStorage:
        from optuna.storages import RDBStorage

        from whet.sweep.storage import open_storage

        url = str(self.facts["storage"])
        if MASK in url:
            raise RunError(
                f"{self.folder}: the study can't be read: its storage's password isn't kept ({url})"
            )
        scheme, _, path = url.partition(":///")
        if scheme not in ("sqlite", "journal"):
            return open_storage(url, self.folder)
        there = Path(path)
        found = [file for file in (there, self.folder / there.name) if file.is_file()]
        if not found:
            raise RunError(f"{self.folder}: the study's file {there} is gone")
        if scheme == "journal":
            return open_storage(f"journal:///{found[0]}", self.folder)
        return RDBStorage(f"sqlite:///{found[0]}", engine_kwargs={"connect_args": {"timeout": PATIENCE}})

    def runs(self) -> list[RunRecord]:
        """Runs of its trials, by number."""
        return find_runs([self.folder])


def find_runs(places: Sequence[Path]) -> list[RunRecord]:
    """Runs at or below `places`, by name of their folders; each once."""
    found = {path.parent for place in places for path in _below(place, RUN)}
    return [RunRecord(folder) for folder in sorted(found)]


def find_sweeps(places: Sequence[Path]) -> list[SweepRecord]:
    """Sweeps at or below `places`; each once."""
    found = {path.parent for place in places for path in _below(place, SWEEP)}
    return [SweepRecord(folder) for folder in sorted(found)]


def read_yaml(path: Path) -> Node:
    """A config that `whet.config.save` wrote, by libyaml where it is there: many are read at a time.

    Raises:
        ValueError: it isn't the YAML of a mapping.
    """
    import yaml

    try:
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text(encoding="utf-8"))
        found = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name}: not a mapping")  # noqa: TRY004 (what is wrong is the file)
    return found


def _below(place: Path, name: str) -> Iterator[Path]:
    """Files of that name at or below `place`; run folders aren't entered."""

    def tell(error: OSError) -> None:
        log.warning("%s can't be read (%s)", error.filename, error.strerror)

    for folder, inside, files in os.walk(place.absolute(), onerror=tell):
        if name in files:
            yield Path(folder) / name
        if RUN in files:
            inside.clear()
