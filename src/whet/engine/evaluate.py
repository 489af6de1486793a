"""Run a model over a split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whet.engine.distributed import ALONE, World
from whet.engine.speed import uncompiled
from whet.evaluation.predictions import Predictions
from whet.task.metrics import compute_metrics

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from whet.data.batch import Collator, Examples
    from whet.engine.precision import Amp
    from whet.evaluation.report import Report
    from whet.task.base import Criterion, Task


def logits_of(
    model: nn.Module, collator: Collator, amp: Amp, title: str = "", world: World = ALONE
) -> NDArray[np.float32]:
    """[n, outputs] logits of every row, in the rows' own order.

    The processes of `world` deal out whole batches, so that a row's logits don't depend on their number.
    """
    batches = collator.batching.evaluation(collator.tokens.lengths)
    own = batches[world.ranks.rank :: world.ranks.size]
    idle = batches[:1] * world.idle(len(own))
    made = _forward(model, collator, amp, [*own, *idle], title or "evaluating")[: len(own)]
    parts = [part for some in world.gather(list(zip(own, made, strict=True))) for part in some]
    if not parts:
        return np.empty((0, 0), dtype=np.float32)
    found = np.empty((len(collator.tokens), parts[0][1].shape[1]), dtype=np.float32)
    for rows, values in parts:
        found[rows] = values
    return found


def _forward(
    model: nn.Module, collator: Collator, amp: Amp, batches: list[NDArray[np.int64]], title: str
) -> list[NDArray[np.float32]]:
    """Logits of each batch."""
    import torch

    from whet.tracking.progress import progress

    model.eval()
    found = []
    shown = progress(sum(map(len, batches)), title, "texts")
    with torch.inference_mode(), uncompiled(), shown as advance:
        for rows in batches:
            with amp.autocast():
                logits = model(**collator(rows, amp.device).inputs).logits
            found.append(logits.float().cpu().numpy())
            advance(len(rows))
    return found


@dataclass
class Evaluator:
    """Predictions and metrics of one split."""

    task: Task
    label_names: tuple[str, ...]
    criterion: Criterion
    collator: Collator
    examples: Examples
    amp: Amp
    world: World = ALONE
    """Processes that share the work; all of them call `predict` and `metrics`."""

    def predict(self, model: nn.Module) -> Predictions:
        """What `model` says about every row."""
        logits = logits_of(model, self.collator, self.amp, f"evaluating {self.examples.split}", self.world)
        examples = self.examples
        return Predictions(examples.ids, logits, examples.labels, examples.split, self.label_names)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """The task's metrics and its loss (without label: left out; no label at all: NaN)."""
        return self.world.told(lambda: self._metrics(predictions))

    def _metrics(self, predictions: Predictions) -> dict[str, float]:
        probabilities = self.task.probabilities(predictions.logits)
        decisions = self.task.decide(probabilities)
        found = compute_metrics(
            self.task.metrics, self.task.kind, predictions.labels, probabilities, decisions
        )
        return {**found, "loss": self._loss(predictions)}

    def report(
        self, predictions: Predictions, metrics: dict[str, float], folder: Path, pictures: bool = True
    ) -> Report:
        """Write the report of these rows to `folder`, with or without pictures.

        Raises:
            RunError: no row has a label.
        """
        from whet.evaluation.report import make_report, write_report

        task, texts = self.task, [" ⏎ ".join(row) for row in self.examples.texts]
        probabilities = task.probabilities(predictions.logits)
        decisions = task.decide(probabilities)
        report = make_report(
            predictions, task.kind, probabilities, decisions, metrics, task.directions(), texts
        )
        write_report(report, predictions, probabilities, folder, pictures)
        return report

    def _loss(self, predictions: Predictions) -> float:
        import torch

        labels = torch.from_numpy(np.ascontiguousarray(predictions.labels))
        losses = self.criterion.losses(torch.from_numpy(predictions.logits), labels)
        weight = float(self.criterion.weights(predictions.labels).sum())
        return float(losses.sum(dtype=torch.float64)) / weight if weight else math.nan
