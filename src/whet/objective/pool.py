"""Texts without labels beside the labelled batch: where they come from, and what objectives do with them.

The unlabelled rows of a micro-batch are drawn from the seed, the step and the micro-batch's number alone, so
a resumed run draws the same ones without a look back. Their loss is a mean over them, on the scale of the
task's loss: the engine divides what an objective yields by the window's weight, so it is multiplied by the
labelled micro-batch's share of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whet.data.batch import Batch, Collator
from whet.data.tokens import encode, texts_hash, tokenize
from whet.errors import ConfigError, DataError, RunError
from whet.objective.base import Forward, Objective, Setting
from whet.ranks import here
from whet.types import NonNegativeFloat, PositiveInt

if TYPE_CHECKING:
    import torch

    from whet.augmentation.base import Augmentation

    Rows = NDArray[np.int64]
    Texts = list[tuple[str, ...]]

log = logging.getLogger("whet.objective")
REST = "rest"
Augment = Callable[..., Any]


class Pool:
    """Unlabelled texts of a run, tokenised.

    Args:
        texts: one or two strings a row.
        setting: of the run.
    """

    def __init__(self, texts: Texts, setting: Setting) -> None:
        self.texts, self._setting, self._rank = texts, setting, here().rank
        source = hashlib.sha256(setting.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        room = setting.paths.cached("tokens")
        tokens = tokenize(texts, setting.tokenizer, setting.max_length, source, room, setting.prompt)
        self._collator = self._collated(tokens)

    @classmethod
    def of(cls, where: str, setting: Setting) -> Pool:
        """The pool that a config names: `rest`, or a file.

        Raises:
            DataError: it has no texts.
        """
        texts = setting.left if where == REST else _read(where, setting)
        if not texts:
            problem = "holds no texts"
            if where == REST:
                problem = "no training rows are left out: set task.shots, or name a file of texts"
            raise DataError("objective.pool", problem, where)
        log.info("%s texts without labels (objective.pool=%s)", f"{len(texts):,}", where)
        return cls(texts, setting)

    def rng(self, forward: Forward, purpose: int = 0) -> np.random.Generator:
        """The generator of this micro-batch."""
        return np.random.default_rng([self._setting.seed, forward.step, self._rank, forward.piece, purpose])

    def draw(self, forward: Forward, count: int) -> list[Rows]:
        """So many rows (all, where there are fewer), each once, in pieces that the memory holds."""
        rows = self.rng(forward).choice(len(self.texts), min(count, len(self.texts)), replace=False)
        lengths = self._collator.tokens.lengths
        ordered = rows[lengths[rows].argsort(kind="stable")]
        return list(self._setting.batching.cut(ordered, lengths, 1))

    def batch(self, rows: Rows) -> Batch:
        """The texts as they are."""
        return self._collator(rows, self._setting.amp.device)

    def changed(self, rows: Rows, augment: Augment, rng: np.random.Generator) -> Batch:
        """The texts augmented, in the same order.

        Raises:
            ConfigError: the augmentation doesn't give one text for each.
        """
        texts, _ = augment([self.texts[row] for row in rows], [0] * len(rows), rng)
        if len(texts) != len(rows):
            problem = (
                f"must give one text for each, without the original: it gave {len(texts)} for {len(rows)}"
            )
            raise ConfigError("objective.augmentation", problem)
        tokens = encode(
            texts, self._setting.tokenizer, self._setting.max_length, shown="off", prompt=self._setting.prompt
        )
        return self._collated(tokens)(np.arange(len(rows)), self._setting.amp.device)

    def digest(self) -> torch.Tensor:
        """[32] SHA-256 of the texts."""
        import torch

        return torch.tensor(list(bytes.fromhex(texts_hash(self.texts))), dtype=torch.uint8)

    def _collated(self, tokens: Any) -> Collator:
        nothing = np.zeros(len(tokens), dtype=np.int64)
        return Collator.of(tokens, nothing, self._setting.tokenizer, self._setting.batching)


def changer(given: Augment | Augmentation, setting: Setting, key: str = "augmentation") -> Augment:
    """An augmentation as a function of texts, labels and a generator that gives each text changed once.

    Args:
        given: one of whet's, or such a function already.
        setting: of the run.
        key: of the objective, for messages.
    """
    from whet.augmentation.base import Augmentation, Item, Surroundings

    if not isinstance(given, Augmentation):
        return given
    change = given.changer(Surroundings(setting.paths, setting.label_names, f"objective.{key}"))

    def augment(texts: Texts, labels: list[Any], rng: np.random.Generator) -> tuple[Texts, list[Any]]:
        keys = rng.integers(2**32, size=(len(texts), 2)).tolist()
        return change([Item(text, None, tuple(own)) for text, own in zip(texts, keys, strict=True)]), labels

    return augment


def _read(where: str, setting: Setting) -> Texts:
    """Texts of a file with the task's text columns, or of plain lines."""
    from whet.data.rows import read_rows

    try:
        return [row.texts for row in read_rows(where, setting.task.columns, None, "auto", setting.paths)]
    except DataError as error:
        raise DataError("objective.pool", error.problem, where) from None


@dataclass(kw_only=True)
class WithPool(Objective):
    """What all objectives with unlabelled texts share."""

    pool: str = REST
    """`rest`: the training rows that task.shots left out; or a file of texts. Labels are never read."""
    ratio: PositiveInt = 3
    """Unlabelled texts for each labelled one of a batch."""
    weight: NonNegativeFloat = 1.0
    """Of the loss on unlabelled texts, once it has risen."""

    _pool: Pool = field(init=False, repr=False)
    _setting: Setting = field(init=False, repr=False)

    def prepare(self, setting: Setting) -> None:
        if any(hasattr(tensor, "full_tensor") for tensor in setting.model.parameters()):
            problem = "not together with unlabelled texts: processes would make unequal numbers of passes"
            raise ConfigError("engine.parallel", problem, "fsdp")
        self._setting, self._pool = setting, Pool.of(self.pool, setting)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"pool": self._pool.digest()}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if not tensors["pool"].equal(self._pool.digest()):
            raise RunError(
                f"objective.pool={self.pool}: its texts aren't those of the run any more; start anew"
            )

    @property
    def kind(self) -> str:
        """Of the run's task."""
        return self._setting.task.kind

    def needs_classes(self, setting: Setting) -> None:
        """Raise ConfigError for a task whose rows haven't got one class of several."""
        if not setting.task.one_class:
            problem = f"{type(self).__name__} needs one class of several for each text"
            raise ConfigError("objective", problem)

    def share(self, forward: Forward, batch: Batch) -> float:
        """Weight of the labelled batch in its window: what a mean is multiplied by."""
        return float(forward.criterion.weights(self._setting.train.labels[batch.rows]).sum())

    def drawn(self, forward: Forward, batch: Batch) -> Iterator[tuple[Rows, float]]:
        """Unlabelled rows for a batch, in pieces, with the factor that makes sums parts of their mean."""
        pieces = self._pool.draw(forward, self.ratio * len(batch.rows))
        total = sum(map(len, pieces))
        for rows in pieces:
            yield rows, self.weight * self.share(forward, batch) / total


@contextlib.contextmanager
def without_gradient() -> Iterator[None]:
    """For targets: no graph, and none of autocast's copies of weights, which later passes would take over."""
    import torch

    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(before)


def log_probabilities(logits: torch.Tensor, kind: str) -> torch.Tensor:
    """[batch, classes] of a task of one class a text; `binary` has one logit and two classes."""
    import torch.nn.functional as F
    from torch import stack

    values = logits.float()
    if kind == "binary":
        return stack([F.logsigmoid(-values[:, 0]), F.logsigmoid(values[:, 0])], 1)
    return values.log_softmax(-1)


def rising(done: float, start: float, end: float) -> float:
    """0 up to `start`, 1 from `end` on, a line between (all shares of the run)."""
    if done >= end:
        return 1.0
    return 0.0 if done <= start else (done - start) / (end - start)
