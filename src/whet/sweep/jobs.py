"""A peer as a job of any Hydra launcher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from whet.sweep.peer import Peer


@dataclass(frozen=True)
class PeerJob:
    """The function that a launcher calls in place of the app's own."""

    peer: Peer

    def __call__(self, config: DictConfig) -> None:
        """Work until the study is done; the job's number is the peer's."""
        from hydra.core.hydra_config import HydraConfig

        replace(self.peer, number=int(HydraConfig.get().job.num)).work()
