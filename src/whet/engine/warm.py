"""Data and pretrained weights that stay in memory between the runs of one process: a sweep's trials."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from whet.engine.assemble import Prepared
    from whet.model.encoder import Loaded

    Base = tuple[Loaded, Prepared]

T = TypeVar("T")

MOST = 2
"""Bases kept: those of the last two kinds of runs."""


@dataclass(frozen=True)
class Kept:
    """What loading gave, and the random generators' states after it."""

    loaded: Loaded
    data: Prepared
    states: tuple[Any, ...]

    def taken(self) -> Base:
        """A copy that a run may change; the generators are as if it had just been loaded."""
        _set_generators(self.states)
        corpus = replace(self.data.corpus, splits=dict(self.data.corpus.splits))
        data = replace(self.data, corpus=corpus, tokens=dict(self.data.tokens))
        return replace(self.loaded, model=copy.deepcopy(self.loaded.model)), data


_kept: OrderedDict[str, Kept] | None = None
_found: dict[tuple[str, str], Any] = {}
"""What earlier runs have found out."""


def keeping_on() -> None:
    """From now on runs in this process find what earlier ones have loaded."""
    global _kept
    if _kept is None:
        _kept = OrderedDict()


def forget() -> None:
    """Keep nothing any more."""
    global _kept
    _kept = None
    _found.clear()


def load_base(key: str, load: Callable[[], Base]) -> Base:
    """What `load` gives, loaded once for each key where it is to be kept.

    The copy, and the random numbers drawn after it, are those of a fresh process to the bit.
    """
    if _kept is None:
        return load()
    if key not in _kept:
        loaded, data = load()
        _kept[key] = Kept(loaded, data, _generators())
        while len(_kept) > MOST:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return _kept[key].taken()


def once(key: str, what: str, find: Callable[[], T]) -> T:
    """What `find` finds, found once in a process that keeps things.

    Args:
        key: all that it depends on.
        what: is found.
        find: may raise, then nothing is kept.
    """
    if _kept is None:
        return find()
    place = (key, what)
    if place not in _found:
        _found[place] = find()
    found: T = _found[place]
    return found


def _generators() -> tuple[Any, ...]:
    import numpy as np
    import torch

    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_generators(states: tuple[Any, ...]) -> None:
    import numpy as np
    import torch

    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
