"""`whet train` in which the second process meets trouble: `python -m tests.engine.distributed_trouble KIND …`.

KIND: `kill` (SIGKILL after 7 updates), `stop` (SIGTERM in the 20th update), `error` (an exception in the third).
Processes that torchrun starts again are left in peace.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from whet.cli.main import main
from whet.engine.step import Stepper
from whet.ranks import here


def trouble(kind: str, step: int) -> None:
    """Before update `step` (from 0)."""
    if (kind, step) == ("kill", 7):
        os.kill(os.getpid(), signal.SIGKILL)
    if (kind, step) == ("stop", 19):
        os.kill(os.getpid(), signal.SIGTERM)
    if (kind, step) == ("error", 2):
        raise ValueError("only here")


if __name__ == "__main__":
    whole, kind = Stepper.update, sys.argv[1]

    def update(self: Stepper, update: Any) -> Any:
        trouble(kind, update.step)
        return whole(self, update)

    if here().rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        Stepper.update = update  # type: ignore[method-assign]
    raise SystemExit(main(["train", *sys.argv[2:]]))
