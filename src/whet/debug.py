"""Cut a run down to see something at once: the `debug` config group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from whet.config import Component
from whet.types import Duration, PositiveInt

if TYPE_CHECKING:
    from whet.engine.engine import Engine
    from whet.task.base import Corpus


@dataclass(kw_only=True)
class Debug(Component):
    """What is cut or shown."""

    steps: PositiveInt | None = None
    """Stop after so many updates."""
    rows: PositiveInt | None = None
    """Use at most so many random rows of each split."""
    overfit: PositiveInt | None = None
    """Train, validate and test on the same so many training rows: the loss must go to about 0."""
    profile: bool = False
    """Write a profiler trace of a few updates to the run folder and print the costliest operations."""
    trace: bool = False
    """Show the whole traceback of an error."""

    def engine(self, engine: Engine) -> Engine:
        """The engine's settings under this debugging: overfitting runs its steps to the end."""
        if self.overfit is None or self.steps is None:
            return engine
        whole = Duration(1, "share")
        return replace(engine, duration=Duration(self.steps, "st"), evaluate_every=whole, patience=None)

    def cut(self, corpus: Corpus, seed: int) -> Corpus:
        """The rows that remain."""
        if self.overfit is not None:
            few = corpus.sample(self.overfit, seed)
            splits = {name: replace(few.splits["train"], split=name) for name in corpus.splits}
            return replace(corpus, splits=splits, tables=dict.fromkeys(splits, few.tables["train"]))
        return corpus if self.rows is None else corpus.sample(self.rows, seed)
