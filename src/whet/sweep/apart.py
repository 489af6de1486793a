"""What a process does that runs a single trial for its peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.sweep.current import Current, working_on
from whet.sweep.peer import returned

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from whet.sweep.peer import Peer


@dataclass(frozen=True)
class Returned:
    """What came of it."""

    returned: Any
    facts: dict[str, float]


@dataclass(frozen=True)
class Errand:
    """One run of one trial."""

    peer: Peer
    config: DictConfig
    number: int
    facts: dict[str, Any]

    def __call__(self) -> Returned:
        """Run it; raises what it raises."""
        import optuna

        study = self.peer.search.open(self.peer.number)
        study.study.get_trials(deepcopy=False)
        trial = optuna.trial.Trial(study.study, study.place(self.number))
        found = Current(trial=trial, **self.facts)
        with working_on(found):
            return Returned(returned(self.peer.job(self.config)), found.facts)
