"""One optimizer update."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.errors import NonFiniteError
from whet.objective.base import Forward

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from whet.data.batch import Batch, Collator, Examples
    from whet.engine.plan import Plan, Rows, Update
    from whet.engine.precision import Amp
    from whet.task.base import Criterion

Schedule = Callable[[int, int, int], float]
Objective = Callable[[Forward, "Batch"], "torch.Tensor"]


@dataclass(frozen=True)
class StepResult:
    """What one update was like."""

    loss: float
    """Weighted mean over the window's items."""
    grad_norm: float
    """L2 norm before clipping."""
    lr: float
    """Largest learning rate of the groups."""
    tokens: int
    """Real tokens seen."""
    rows: int


@dataclass
class Stepper:
    """Makes updates: forward, backward, clip, step."""

    model: nn.Module
    criterion: Criterion
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    plan: Plan
    collator: Collator
    examples: Examples
    amp: Amp
    clip: float | None
    folder: Path | None = None
    """Where the facts of a non-finite step are written."""

    def __post_init__(self) -> None:
        self.scaler = self.amp.scaler()
        self.forward = Forward(self.model, self.criterion)

    def update(self, update: Update) -> StepResult:
        """Train on one window.

        The loss is the sum over the window's items divided by their total weight, so the gradient is that of
        one big batch, however the window is cut and however short the last one is.

        Raises:
            NonFiniteError: loss or gradient is NaN or infinite; the weights are untouched.
        """
        self.model.train()
        lr = self._set_rate(update.step)
        self.optimizer.zero_grad(set_to_none=True)
        weight = sum(float(self.criterion.weights(self.collator.labels[rows]).sum()) for rows in update.micro_batches)
        loss, tokens = 0.0, 0
        for rows in update.micro_batches:
            batch = self.collator(rows, self.amp.device)
            loss += self._backward(batch, weight)
            tokens += batch.tokens
            if not math.isfinite(loss):
                self._stop(update, rows, "loss", loss)
        norm = self._apply(update)
        return StepResult(loss, norm, lr, tokens, sum(len(rows) for rows in update.micro_batches))

    def _set_rate(self, step: int) -> float:
        factor = self.schedule(step, self.plan.total, self.plan.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def _backward(self, batch: Batch, weight: float) -> float:
        with self.amp.autocast():
            loss = self.objective(self.forward, batch) / weight
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _apply(self, update: Update) -> float:
        """Clip and step; returns the norm of the gradient."""
        from torch.nn.utils import clip_grad_norm_

        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(clip_grad_norm_(parameters, math.inf if self.clip is None else self.clip))
        if not math.isfinite(norm) and not self.scaler.is_enabled():  # fp16 scaling skips such a step by itself
            self._stop(update, None, "gradient norm", norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def _stop(self, update: Update, rows: Rows | None, what: str, value: float) -> None:
        """Name the step, the value and the texts, and leave the facts in the run folder."""
        self.optimizer.zero_grad(set_to_none=True)
        guilty = rows if rows is not None else [row for batch in update.micro_batches for row in batch]
        ids = [str(self.examples.ids[row]) for row in guilty]
        facts: dict[str, Any] = {"step": update.step + 1, "what": what, "value": str(value), "ids": ids}
        facts["texts"] = [list(self.examples.texts[row]) for row in guilty]
        facts["lr"] = [float(group["lr"]) for group in self.optimizer.param_groups]
        where = ""
        if self.folder is not None:
            (self.folder / "nonfinite.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
            where = f"; texts and rates in {self.folder / 'nonfinite.json'}"
        shown = ", ".join(ids[:8]) + (", …" if len(ids) > 8 else "")
        raise NonFiniteError(f"{what} is {value} at step {update.step + 1}, rows {shown}{where}. Try a lower optimizer.lr")
