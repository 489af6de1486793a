"""A study and its budget: as many trials as it is to have wait in it, and peers take them one by one.

Optuna's states do the bookkeeping: a peer takes a trial that waits, and one whose peer has died waits again.
So the sum is exact, whoever comes, goes or is killed.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.errors import ConfigError
from whet.sweep.storage import locked, open_storage, patiently

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial

PEER = "peer"
"""Trial attribute: who works on it, and how often that peer has given a sign of life."""
CONFIG = "whet"
"""Study attribute: what may not change while it goes on."""


@dataclass(frozen=True)
class Address:
    """Where a study is."""

    name: str
    url: str
    folder: Path
    """Of the sweep: trials' folders, locks."""
    directions: tuple[str, ...]

    def storage(self) -> BaseStorage:
        """A connection of this process's own."""
        return open_storage(self.url, self.folder)


@dataclass
class Budgeted:
    """A study seen by one process."""

    address: Address
    storage: BaseStorage
    study: Study
    sampler: BaseSampler | None = None
    pruner: BasePruner | None = None

    @classmethod
    def open(cls, address: Address) -> Budgeted:
        """The study, made if it isn't there.

        Raises:
            ConfigError: its storage can't be opened, or it has other directions.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = address.storage()
        directions: Any = list(address.directions)

        def make() -> Study:
            return optuna.create_study(
                study_name=address.name, storage=storage, directions=directions, load_if_exists=True
            )

        with locked(storage, address.name, address.folder):
            study = patiently(make, address.url)
        found = [direction.name.lower() for direction in study.directions]
        if found != directions:
            problem = f"the study {address.name} has {found}; choose another hydra.sweeper.study_name"
            raise ConfigError("hydra.sweeper.direction", problem, directions)
        return cls(address, storage, study)

    @property
    def id(self) -> int:
        """Of the study in its storage."""
        return int(self.storage.get_study_id_from_name(self.address.name))

    def trials(self) -> list[FrozenTrial]:
        """All of them, by number, as they are now."""
        return list(self.storage.get_all_trials(self.id, deepcopy=False))

    def begun(self) -> int:
        """Trials that have been taken at some time."""
        return sum(trial.state.name != "WAITING" for trial in self.trials())

    # ------------------------------------------------------------ budget

    def keep_to(self, meaning: Mapping[str, Any]) -> None:
        """Note what the study is about, or see that it is still the same.

        Raises:
            ConfigError: it isn't; the first difference is named.
        """
        with locked(self.storage, self.address.name, self.address.folder):
            before = self.study.user_attrs.get(CONFIG)
            if before is None:
                self.study.set_user_attr(CONFIG, dict(meaning))
                return
        for key in sorted({*before, *meaning}):
            if before.get(key) != meaning.get(key):
                told = (
                    f"the study {self.address.name} has {before.get(key)}: go on with that, or start another"
                )
                raise ConfigError(key, f"{told} with hydra.sweeper.study_name=…", meaning.get(key))

    def fill(self, total: int, more: int, points: Sequence[Mapping[str, Any]]) -> int:
        """Let trials wait until there are `total`, and `more`; returns how many the study has then.

        Args:
            total: all trials, those that are done included.
            more: on top of what there was.
            points: parameters of the first ones; those that the study knows already aren't tried again.
        """
        with locked(self.storage, self.address.name, self.address.folder):
            trials = self.trials()
            known = [trial.system_attrs.get("fixed_params") for trial in trials]
            wanted = max(total, len(trials) + more) - len(trials)
            new = [dict(point) for point in points if dict(point) not in known][:wanted]
            for point in new:
                self._wait({"fixed_params": point})
            for _ in range(wanted - len(new)):
                self._wait({})
            return len(trials) + wanted

    def _wait(self, facts: dict[str, Any]) -> None:
        from optuna.trial import TrialState, create_trial

        self.storage.create_new_trial(self.id, create_trial(state=TrialState.WAITING, system_attrs=facts))

    # ------------------------------------------------------------ taking and giving back

    def take(self, beat: Beat) -> Trial | None:
        """A trial that waits, the oldest first; None if none does."""
        import optuna
        from optuna.trial import TrialState

        with locked(self.storage, self.address.name, self.address.folder):  # until it bears its peer's name
            waiting = [trial for trial in self.trials() if trial.state == TrialState.WAITING]
            if not waiting:
                return None
            place = self.place(waiting[0].number)
            beat.attempt = waiting[0].user_attrs.get(PEER, {}).get("attempt", 0) + 1
            self.storage.set_trial_state_values(place, TrialState.RUNNING)
            self.storage.set_trial_user_attr(place, PEER, beat.next())
        study = optuna.load_study(
            study_name=self.address.name, storage=self.storage, sampler=self.sampler, pruner=self.pruner
        )
        study.get_trials(deepcopy=False)  # Optuna's cache knows only trials that it has listed
        return optuna.trial.Trial(study, place)

    def place(self, number: int) -> int:
        """A trial's id in the storage."""
        return int(self.storage.get_trial_id_from_study_id_trial_number(self.id, number))

    def give_back(self, number: int) -> None:
        """Let a trial that was stopped wait for the next peer."""
        from optuna.trial import TrialState

        self.storage.set_trial_state_values(self.place(number), TrialState.WAITING)

    def revive(self, watch: Watch) -> list[int]:
        """Let trials of dead peers wait again; returns their numbers."""
        if not [trial for trial in self._running() if watch.is_dead(trial)]:
            return []
        with locked(self.storage, self.address.name, self.address.folder):
            dead = [trial for trial in self._running() if watch.is_dead(trial)]
            for trial in dead:
                self.give_back(trial.number)
        return [trial.number for trial in dead]

    def _running(self) -> list[FrozenTrial]:
        from optuna.trial import TrialState

        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    def is_open(self) -> bool:
        """Whether a trial waits or runs."""
        return any(not trial.state.is_finished() for trial in self.trials())


# ---------------------------------------------------------------- signs of life


@dataclass
class Beat:
    """The signs of life of one peer."""

    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    born: float = field(default_factory=lambda: _born(os.getpid()) or 0.0)
    count: int = 0
    attempt: int = 1
    """Peers that have begun the trial at hand, this one included."""

    def next(self) -> dict[str, Any]:
        """The next one."""
        self.count += 1
        told = {"host": self.host, "pid": self.pid, "born": self.born}
        return {**told, "beat": self.count, "attempt": self.attempt}


@dataclass
class Watch:
    """What one process has seen of other peers' signs of life, by its own clock."""

    grace: float
    """Seconds without one after which a peer counts as dead."""
    seen: dict[int, tuple[Any, float]] = field(default_factory=dict)

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Whether the peer of a running trial is.

        On this machine its process tells; elsewhere it is dead when its last sign has been seen for too long.
        """
        peer = trial.user_attrs.get(PEER)
        if peer is not None and peer["host"] == platform.node():
            return bool(_born(peer["pid"]) != peer["born"])
        now = time.monotonic()
        sign, since = self.seen.get(trial.number, (None, now))
        if sign != peer or trial.number not in self.seen:
            self.seen[trial.number] = peer, now
            return False
        return now - since > self.grace


def _born(pid: int) -> float | None:
    """When a process began; None if it is gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None
