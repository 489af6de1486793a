"""Run a model over a split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whet.evaluation.predictions import Predictions
from whet.task.metrics import compute_metrics

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from whet.data.batch import Collator, Examples
    from whet.engine.precision import Amp
    from whet.evaluation.report import Report
    from whet.task.base import Criterion, Task


def logits_of(model: nn.Module, collator: Collator, amp: Amp, title: str = "") -> NDArray[np.float32]:
    """[n, outputs] logits of every row, in the rows' own order."""
    import torch

    from whet.tracking.progress import progress

    batches = collator.batching.evaluation(collator.tokens.lengths)
    model.eval()
    found: NDArray[np.float32] | None = None
    with torch.inference_mode(), progress(len(collator.tokens), title or "evaluating", "texts") as advance:
        for rows in batches:
            with amp.autocast():
                logits = model(**collator(rows, amp.device).inputs).logits
            values = logits.float().cpu().numpy()
            if found is None:
                found = np.empty((len(collator.tokens), values.shape[1]), dtype=np.float32)
            found[rows] = values
            advance(len(rows))
    return found if found is not None else np.empty((0, 0), dtype=np.float32)


@dataclass
class Evaluator:
    """Predictions and metrics of one split."""

    task: Task
    label_names: tuple[str, ...]
    criterion: Criterion
    collator: Collator
    examples: Examples
    amp: Amp

    def predict(self, model: nn.Module) -> Predictions:
        """What `model` says about every row."""
        logits = logits_of(model, self.collator, self.amp, f"evaluating {self.examples.split}")
        examples = self.examples
        return Predictions(examples.ids, logits, examples.labels, examples.split, self.label_names)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """The task's metrics and its loss (without label: left out; no label at all: NaN)."""
        probabilities = self.task.probabilities(predictions.logits)
        decisions = self.task.decide(probabilities)
        found = compute_metrics(
            self.task.metrics, self.task.kind, predictions.labels, probabilities, decisions
        )
        return {**found, "loss": self._loss(predictions)}

    def report(self, predictions: Predictions, metrics: dict[str, float], folder: Path) -> Report:
        """Write the report of these rows to `folder`.

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
        write_report(report, predictions, probabilities, folder)
        return report

    def _loss(self, predictions: Predictions) -> float:
        import torch

        labels = torch.from_numpy(np.ascontiguousarray(predictions.labels))
        losses = self.criterion.losses(torch.from_numpy(predictions.logits), labels)
        weight = float(self.criterion.weights(predictions.labels).sum())
        return float(losses.sum(dtype=torch.float64)) / weight if weight else math.nan
