"""A finished run, loaded to be used: by evaluate, predict and whoever reviews runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whet.config import Node, load, part
from whet.data.batch import Collator, Examples
from whet.data.tokens import encode
from whet.debug import Debug
from whet.engine import artifact
from whet.engine.engine import Engine
from whet.engine.evaluate import Evaluator, logits_of
from whet.engine.precision import Amp, Precision, pick_device
from whet.engine.run import read_record
from whet.errors import DataError, RunError, nearest

if TYPE_CHECKING:
    from whet.paths import Paths


@dataclass
class Finished:
    """A run's best model on a device, with the settings it was trained under."""

    folder: Path
    config: Node
    record: Node
    trained: artifact.Trained
    engine: Engine
    amp: Amp

    def logits(self, texts: list[tuple[str, ...]], title: str = "") -> NDArray[np.float32]:
        """[n, outputs] logits of texts."""
        return logits_of(self.trained.model, self._collator(texts, np.zeros(len(texts))), self.amp, title)

    def judge(self, examples: Examples) -> Evaluator:
        """An evaluator of labelled rows, batched and cut as in training."""
        task, names = self.trained.task, self.trained.label_names
        collator = self._collator(examples.texts, examples.labels)
        criterion = task.criterion(self._training_labels(examples), names)
        return Evaluator(task, names, criterion, collator, examples, self.amp)

    def _training_labels(self, examples: Examples) -> NDArray[Any]:
        """Class labels as often as training had them: balanced class weights come from there."""
        counts = self.record.get("data", {}).get("label_counts")
        return np.repeat(np.arange(len(counts)), counts) if counts else examples.labels

    def _collator(self, texts: list[tuple[str, ...]], labels: NDArray[Any]) -> Collator:
        limit = min(
            self.trained.task.max_length, int(self.record.get("max_length") or self.trained.task.max_length)
        )
        tokens = encode(texts, self.trained.tokenizer, limit, prompt=self.trained.prompt)
        return Collator.of(tokens, labels, self.trained.tokenizer, self.engine.batching)


def open_run(
    folder: Path, paths: Paths, device: str = "auto", precision: Precision | None = None
) -> Finished:
    """Load the best model of a run.

    Args:
        folder: the run folder.
        paths: where its base weights are cached.
        device: where to run it.
        precision: number format; None takes that of the training, whatever the device.

    Raises:
        RunError: the run isn't finished, or is damaged.
    """
    record, config = read_record(folder), load(folder / "config.yaml")
    home = folder if (folder / artifact.CARD).is_file() else folder / "model"  # a merged run is its model
    if not (home / artifact.CARD).is_file():
        raise RunError(
            f"run={folder}: it has no model ({record.get('status')}: {record.get('reason') or 'no reason'})"
        )
    trained = artifact.load(home, paths)
    engine = part(config["engine"], Engine, "engine")
    place = pick_device(device)
    amp = Amp.of(precision or record.get("precision") or "auto", place)
    trained.model.to(place)
    return Finished(folder, config, record, trained, engine, amp)


def split_of(run: Finished, split: str, paths: Paths) -> Examples:
    """The rows of one of the run's splits, read again.

    Raises:
        DataError: no such split, or the data's labels aren't the model's.
    """
    debug: Debug = part(run.config["debug"], Debug, "debug")
    corpus = debug.cut(run.trained.task.load(paths), int(run.config["seed"]))
    if split not in corpus.splits:
        raise DataError("split", f"no such split; {nearest(split, corpus.splits)}", split)
    same_labels(corpus.label_names, run)
    return corpus.splits[split]


def rows_of(run: Finished, path: str, paths: Paths) -> Examples:
    """Labelled rows of a file with the task's columns."""
    from whet.data.files import Files
    from whet.data.source import UNSPLIT

    task = run.trained.task
    try:
        raw = Files(path=path).read(paths)
    except DataError as error:
        raise DataError("input", error.problem, path) from None
    table = task.table(next(iter(raw.values())), Path(path).stem)
    audited, _ = task.audit.run({UNSPLIT: table}, run.trained.label_names or None)
    rows = audited[UNSPLIT]
    labels = task.encode(rows.labels, run.trained.label_names)
    return Examples(Path(path).stem, np.array(rows.ids, dtype=np.str_), rows.texts, labels)


def same_labels(names: tuple[str, ...], run: Finished) -> None:
    """Refuse data whose labels, or their order, aren't those of the model."""
    if tuple(names) != run.trained.label_names:
        problem = f"the model was trained with {list(run.trained.label_names)}"
        raise DataError("task.labels", problem, list(names))
