"""What every augmentation is: training rows in, the rows of each epoch out.

A method fills in `open`, which loads what the method needs and returns its `Change`: a pure function of
items, each of which carries the seed of its own random numbers. A copy is therefore the same whatever the
order of the rows, the batches they lie in and the number of processes.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from whet.config import Component
from whet.types import PositiveInt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from whet.data.batch import Examples
    from whet.paths import Paths

    Rows = NDArray[np.int64]

log = logging.getLogger("whet.augmentation")
Texts = tuple[str, ...]
"""One text, or a pair."""
CHUNK = 256
"""Copies made between two signs of progress."""


@dataclass(frozen=True)
class Item:
    """One copy to be made."""

    texts: Texts
    label: Any
    """As the task encodes it; it never changes. None: nobody knows it."""
    key: tuple[int, ...]
    """Seed of its random numbers: the run's seed, epoch, row, number of the copy."""

    def rng(self, *further: int) -> np.random.Generator:
        """A generator of its own; `further` numbers part it from others of the same item."""
        import numpy as np

        return np.random.default_rng([*self.key, *further])


Change = Callable[[Sequence[Item]], list[Texts]]
"""Makes the texts of the copies, in order."""


@dataclass(frozen=True)
class Surroundings:
    """What a method may need beside texts."""

    paths: Paths
    label_names: tuple[str, ...] = ()
    """Names of class labels; empty for a regression."""
    key: str = "augmentation"
    """Where the method stands in the config, for messages."""


@dataclass(frozen=True)
class Training:
    """The rows that a run trains on."""

    examples: Examples
    """Original rows first, if they are kept, then copies, an edition after the other."""
    editions: tuple[Rows, ...] = ()
    """Rows of each epoch; empty: all of them in every epoch."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the run's record."""


class Augmentation(Component, ABC):
    """Changes to training texts; the other splits stay as they are."""

    @property
    @abstractmethod
    def by_epoch(self) -> bool:
        """Whether every epoch has texts of its own."""

    @abstractmethod
    def training(
        self, train: Examples, around: Surroundings, seed: int, epochs: Callable[[int], int]
    ) -> Training:
        """The rows to train on.

        Args:
            train: the training split.
            around: cache and label names.
            seed: every copy follows from it.
            epochs: how many epochs the run has at most, for so many rows an epoch.
        """

    def wrap(self, objective: Any) -> Any:
        """The run's objective, or one around it where batches are changed rather than texts."""
        return objective

    def changer(self, around: Surroundings) -> Change:
        """What makes one changed text of each item, for those who change texts of their own."""
        return lambda items: [item.texts for item in items]


@dataclass(kw_only=True)
class Copying(Augmentation):
    """Settings of all methods that make changed copies of rows."""

    copies: PositiveInt = 1
    """Changed copies of each row."""
    keep: bool = True
    """Train on the original rows too."""
    editions: Literal["epoch", "once"] = "epoch"
    """epoch: new copies in every epoch; once: the same in all of them."""

    @abstractmethod
    def open(self, around: Surroundings) -> Change:
        """Load what the method needs.

        Raises:
            ConfigError: it isn't to be had, or a setting doesn't fit.
        """

    @property
    def by_epoch(self) -> bool:
        return self.editions == "epoch"

    def changer(self, around: Surroundings) -> Change:
        return self.open(around)

    def training(
        self, train: Examples, around: Surroundings, seed: int, epochs: Callable[[int], int]
    ) -> Training:
        count = epochs(len(train) * (self.copies + self.keep)) if self.by_epoch else 1
        change = self.open(around)
        texts = list(self._texts(train, change, seed, count))
        examples = self._joined(train, texts, count)
        changed = sum(new != train.texts[n % len(train)] for n, new in enumerate(texts)) / max(1, len(texts))
        log.info("augmentation: %s copies, %.1f%% of them changed", f"{len(texts):,}", 100 * changed)
        facts = {"copies": self.copies, "editions": count, "changed": round(changed, 4)}
        return Training(examples, self._rows(len(train), count) if count > 1 else (), facts)

    def _texts(self, train: Examples, change: Change, seed: int, count: int) -> Iterator[Texts]:
        """Copies of all editions, one after the other, with a sign of progress."""
        from whet.tracking.progress import progress

        with progress(len(train) * self.copies * count, "augmenting", "texts") as advance:
            for epoch in range(count):
                items = copies_of(train, self.copies, (seed, epoch))
                for start in range(0, len(items), CHUNK):
                    made = change(items[start : start + CHUNK])
                    yield from made
                    advance(len(made))

    def _joined(self, train: Examples, texts: list[Texts], count: int) -> Examples:
        import numpy as np

        kept = int(self.keep)
        numbers = [*([""] * kept), *(f"#{copy}" for copy in range(1, self.copies + 1))]
        marks = numbers[:kept] + numbers[kept:] * count
        ids = [f"{name}{mark}" for mark in marks for name in train.ids]
        labels = np.concatenate([train.labels] * len(marks))
        return replace(train, ids=np.array(ids), texts=[*(train.texts * kept), *texts], labels=labels)

    def _rows(self, size: int, count: int) -> tuple[Rows, ...]:
        """Rows of each epoch among those of all: the originals, and the copies of its edition."""
        import numpy as np

        kept, each = size * self.keep, size * self.copies
        starts = [kept + epoch * each for epoch in range(count)]
        return tuple(np.concatenate([np.arange(kept), np.arange(s, s + each)]) for s in starts)


def copies_of(train: Examples, copies: int, key: tuple[int, ...]) -> list[Item]:
    """Every row's first copy, then every row's second, and so on.

    Args:
        train: the rows.
        copies: of each.
        key: the run's seed and the epoch.
    """
    return [
        Item(texts, train.labels[row], (*key, row, copy))
        for copy in range(1, copies + 1)
        for row, texts in enumerate(train.texts)
    ]


def by_text(function: Callable[[str, np.random.Generator], str]) -> Change:
    """A change that treats every text for itself; the texts of a pair draw from one generator in turn."""

    def change(items: Sequence[Item]) -> list[Texts]:
        return [_each(item, function) for item in items]

    return change


def _each(item: Item, function: Callable[[str, np.random.Generator], str]) -> Texts:
    rng = item.rng()
    return tuple(function(text, rng) for text in item.texts)
