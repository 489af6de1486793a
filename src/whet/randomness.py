"""Only a training step may draw from the global random generators."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Give Python's, NumPy's and torch's CPU generators their states back afterwards.

    Trackers, evaluation and libraries that load late draw from them now and then; the numbers that the next
    update draws must not depend on it.
    """
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
