"""What every task is: where its rows come from, how labels become numbers, what the head must give.

A task never names a model. One file per kind of task fills in encoding, loss, decoding and metrics.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from whet.config import Component
from whet.data.audit import Audit, Findings, is_missing
from whet.data.prompt import Prompt
from whet.data.scarce import few, mislabelled
from whet.data.source import Source
from whet.data.split import Split
from whet.data.table import Table
from whet.errors import ConfigError, DataError, nearest
from whet.task.metrics import Kind, metric
from whet.types import PositiveInt, Probability

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from whet.data.batch import Examples
    from whet.paths import Paths

    Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Head:
    """What a task needs of a model's head."""

    outputs: int
    """Logits per text."""
    problem: str
    """transformers' `problem_type`: single_label_classification, multi_label_classification, regression."""
    names: tuple[str, ...]
    """Label names in logit order; empty for regression."""
    prompt: Prompt | None = None
    """A pattern with a gap, for `model.head=prompt`."""


@dataclass(frozen=True)
class Criterion:
    """The loss of a task, in a form that accumulates exactly.

    The loss of a window of micro-batches is `sum(losses) / sum(weights)` over all its items, whatever the
    micro-batches: never a mean of means. A row without a label has loss 0 and weight 0.
    """

    losses: Loss
    """(logits [batch, outputs], labels) → [batch] weighted losses, fp32."""
    weights: Callable[[NDArray[Any]], NDArray[Any]]
    """labels → [batch] what each item adds to the divisor."""
    each: Loss | None = None
    """Of several labels: (logits, labels) → [batch, labels] losses, a row's loss being their mean."""


@dataclass(frozen=True)
class Corpus:
    """A task's data, ready to tokenise."""

    splits: dict[str, Examples]
    label_names: tuple[str, ...]
    findings: Findings
    tables: dict[str, Table]
    """The same rows before encoding, for those who want to look."""
    left: list[tuple[str, ...]] = field(default_factory=list)
    """Texts of the training rows that `shots` left out: a pool without labels."""

    def sample(self, rows: int, seed: int) -> Corpus:
        """At most `rows` random examples of each split, in their order."""
        import numpy as np

        splits, tables = dict(self.splits), dict(self.tables)
        for name, examples in self.splits.items():
            kept = np.sort(np.random.default_rng(seed).permutation(len(examples))[:rows])
            splits[name] = examples.take(kept)
            tables[name] = self.tables[name].take(kept.tolist())
        return replace(self, splits=splits, tables=tables)


@dataclass(kw_only=True)
class Task(Component, ABC):
    """Settings that all tasks share."""

    name: str
    """Used in run names."""
    data: Source
    """Where the rows come from."""
    text: str | list[str] = "text"
    """Column of the text, or two columns for a pair."""
    label: str | list[str] = "label"
    """Column of the label."""
    id: str | None = None
    """Column of the row id; null numbers the rows."""
    labels: list[str] | None = None
    """Label names in logit order; null takes those of the training rows, sorted."""
    label_names: dict[str, str] = field(default_factory=dict)
    """Name of each raw value of the label column, where the value isn't the name itself (1.0 is 1)."""
    split: Split = field(default_factory=Split)
    """How rows without given splits are divided."""
    shots: PositiveInt | None = None
    """Train on so many rows of each class only (regression, multi-label: in all); null: on all rows."""
    label_noise: Probability = 0.0
    """For experiments: this share of the training rows gets another class, drawn at random."""
    draw: int = 0
    """Seed of shots and label_noise, whatever the run's: runs share their rows. '${seed}' draws for each."""
    audit: Audit = field(default_factory=Audit)
    """What to do about empty texts, duplicates, leaks and the like."""
    max_length: PositiveInt = 128
    """Tokens kept of a text (or pair), special tokens included."""
    prompt: Prompt | None = None
    """A pattern with a gap and the words that fill it: what `model.head=prompt` reads."""
    metrics: list[str] = field(default_factory=list)
    """Computed at every evaluation; empty takes the kind's usual ones."""
    primary: str | None = None
    """Decides the best checkpoint and early stopping: one of `metrics` or `loss`; null takes the first."""

    kind: ClassVar[Kind]
    """Name by which metrics and reports know this kind of task."""
    usual: ClassVar[tuple[str, ...]]
    """Metrics by default, the primary one first."""

    def __post_init__(self) -> None:
        if isinstance(self.text, list) and len(self.text) not in (1, 2):
            raise ConfigError("text", "one column or two", self.text)
        pair = self.prompt is not None and "{text2}" in self.prompt.pattern
        if self.prompt is not None and pair != (len(self.columns) == 2):
            problem = "{text2} stands for the second text of a pair: there with two text columns, else not"
            raise ConfigError("prompt.pattern", problem, self.prompt.pattern)
        self.metrics = self.metrics or list(self.usual)
        self.primary = self.primary or self.metrics[0]
        known = self.directions()
        if self.primary not in known:
            problem = f"must be among task.metrics, or loss; {nearest(self.primary, known)}"
            raise ConfigError("primary", problem, self.primary)
        if self.label_noise and not self.one_class:
            raise ConfigError("label_noise", "only where a row has one class of several", self.label_noise)
        self._check_labels()

    # ------------------------------------------------ what a kind fills in

    @abstractmethod
    def head(self, label_names: Sequence[str]) -> Head:
        """What the model's head must give."""

    @abstractmethod
    def encode(self, labels: Sequence[Any], label_names: Sequence[str]) -> NDArray[Any]:
        """Labels of a table as an array; one that is missing or unknown becomes -1 (a regression's NaN)."""

    @abstractmethod
    def criterion(self, train: NDArray[Any], label_names: Sequence[str]) -> Criterion:
        """The loss; `train` are the encoded training labels (class weights come from them)."""

    @abstractmethod
    def probabilities(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Logits [n, outputs] as probabilities (regression: as values [n])."""

    @abstractmethod
    def decide(self, probabilities: NDArray[Any]) -> NDArray[Any]:
        """Decisions in the form of the encoded labels."""

    @abstractmethod
    def describe(self, probabilities: NDArray[Any], label_names: Sequence[str]) -> list[dict[str, Any]]:
        """One JSON-able dict a row: `label` and `probabilities`, or `value`."""

    @property
    def one_class(self) -> bool:
        """Whether a row's label is one class of several."""
        return self.kind in ("single_label", "binary")

    def _check_labels(self) -> None:
        if len(self._label_columns()) != 1:
            raise ConfigError("label", "one column", self.label)
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ConfigError("labels", "names must differ", self.labels)

    def _name(self, raw: Any) -> str | None:
        """Name of one raw label value; None where it is missing.

        3.0 is the same label as 3, whatever its type, unless the config knows a label of just that name.
        """
        if is_missing(raw):
            return None
        text = str(raw).strip()
        if text not in self.label_names and text not in (self.labels or ()):
            text = _WHOLE.sub(r"\1", text)
        return self.label_names.get(text, text) or None

    # ------------------------------------------------ shared

    @property
    def columns(self) -> list[str]:
        """Text columns."""
        return [self.text] if isinstance(self.text, str) else list(self.text)

    def directions(self) -> dict[str, str]:
        """Metric name → `maximize` | `minimize`, `loss` included."""
        found = {name: metric(name, self.kind).direction for name in self.metrics}
        return {**found, "loss": "minimize"}

    def load(self, paths: Paths) -> Corpus:
        """Read, map, audit, split and encode.

        Raises:
            DataError: missing columns, labels outside `labels`, or what the audit refuses.
        """
        from whet.data.batch import Examples
        from whet.data.source import UNSPLIT

        raw = _below("data", lambda: self.data.read(paths))
        tables = {name: self.table(rows, name) for name, rows in raw.items()}
        names = self._names(tables.get("train", tables.get(UNSPLIT)))
        tables, findings = _below("audit", lambda: self.audit.run(tables, names or None))
        tables = _below("split", lambda: self.split.divide(tables))
        tables["train"], left = self._scarce(tables["train"], names)
        splits = {
            name: Examples(name, _strings(rows.ids), rows.texts, self.encode(rows.labels, names))
            for name, rows in tables.items()
        }
        return Corpus(splits, tuple(names), findings, tables, left)

    def _scarce(self, train: Table, names: Sequence[str]) -> tuple[Table, list[tuple[str, ...]]]:
        """The rows to train on, and the texts of those left out."""
        kept, left = train, train.take([])
        if self.shots is not None:
            kept, left = few(train, self.shots, self.draw, names if self.one_class else ())
        if self.label_noise:
            kept = mislabelled(kept, self.label_noise, self.draw, names)
        return kept, left.texts

    def table(self, rows: datasets.Dataset, split: str) -> Table:
        """The mapped columns of one split."""
        wanted = [*self.columns, *self._label_columns(), *([self.id] if self.id else [])]
        for column in wanted:
            if column not in rows.column_names:
                key = "text" if column in self.columns else "id" if column == self.id else "label"
                problem = f"no such column; {nearest(column, rows.column_names)}"
                raise DataError(f"task.{key}", problem, column)
        parts = [
            ["" if value is None else str(value) for value in rows[column][:]] for column in self.columns
        ]
        numbers = rows[self.id][:] if self.id else (f"{split}-{i}" for i in range(len(rows)))
        ids = [str(value) for value in numbers]
        return Table(ids, list(zip(*parts, strict=True)), self._labels_of(rows))

    def _label_columns(self) -> list[str]:
        return [self.label] if isinstance(self.label, str) else list(self.label)

    def _labels_of(self, rows: datasets.Dataset) -> list[Any]:
        return [self._name(value) for value in rows[self._label_columns()[0]][:]]

    def _names(self, train: Table | None) -> list[str]:
        """Label names in logit order."""
        if self.labels is not None:
            return list(self.labels)
        if train is None:
            raise DataError("task.labels", "must be given: there are no training rows to take them from")
        return sorted({name for name in train.labels if name is not None}, key=natural)


def _below(key: str, work: Callable[[], Any]) -> Any:
    """Errors of a component of the task, with their keys completed."""
    try:
        return work()
    except DataError as error:
        raise error.under(f"task.{key}") from None


_WHOLE = re.compile(r"^(-?\d+)\.0+$")
"""A whole number written as a float."""
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def natural(name: str) -> tuple[int, float, str]:
    """Sort key: numbers in numeric order, before other names."""
    return (0, float(name), name) if _NUMBER.fullmatch(name) else (1, 0.0, name)


def classes(labels: Sequence[Any], label_names: Sequence[str]) -> NDArray[np.int64]:
    """[n] place of each label among the names, -1 where it is missing or unknown."""
    import numpy as np

    place = {name: number for number, name in enumerate(label_names)}
    return np.array([place.get(name, -1) for name in labels], dtype=np.int64)


def labelled(labels: NDArray[Any]) -> NDArray[np.float32]:
    """[n] 1 where the row has a label, 0 where it is missing (below 0)."""
    import numpy as np

    there = labels >= 0 if labels.ndim == 1 else np.all(labels >= 0, axis=1)
    return np.asarray(there, dtype=np.float32)


def _strings(values: Sequence[str]) -> NDArray[np.str_]:
    import numpy as np

    return np.array(values, dtype=np.str_)


def class_weights(
    setting: str | Mapping[str, float] | None, labels: NDArray[Any], names: Sequence[str]
) -> NDArray[Any] | None:
    """[classes] weights: `balanced` is n / (classes * count), as in King & Zeng (2001); or by name, else 1.

    Raises:
        ConfigError: a name that isn't a label, or a class that never occurs in training.
    """
    import numpy as np

    if setting is None:
        return None
    if isinstance(setting, str):
        labels = labels[labels >= 0]
        counts = np.bincount(labels, minlength=len(names))
        if not counts.all():
            empty = [name for name, count in zip(names, counts, strict=True) if not count]
            raise ConfigError("task.class_weights", f"no training rows for {', '.join(empty)}", setting)
        return np.asarray(len(labels) / (len(names) * counts), dtype=np.float32)
    for name in setting:
        if name not in names:
            raise ConfigError("task.class_weights", f"not a label; {nearest(name, names)}", name)
    return np.array([setting.get(name, 1.0) for name in names], dtype=np.float32)
