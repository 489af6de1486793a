"""One optimizer update."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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
            NonFiniteError: loss or gradient is NaN or infinite; the weights are untouched. Under fp16 an
                infinite gradient is tried again at half the loss scale first, and raises once that is at 1.
        """
        self.model.train()
        lr = self._set_rate(update.step)
        self.optimizer.zero_grad(set_to_none=True)
        rows = np.concatenate(update.micro_batches)
        weight = float(self.criterion.weights(self.collator.labels[rows]).sum()) or 1.0  # no row has a label
        losses = [self._backward(piece, weight) for piece in update.micro_batches]
        loss, norm = self._checked(update, losses, self._clip())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return StepResult(loss, norm, lr, int(self.collator.tokens.lengths[rows].sum()), len(rows))

    def _set_rate(self, step: int) -> float:
        factor = self.schedule(step, self.plan.total, self.plan.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def _backward(self, rows: Rows, weight: float) -> torch.Tensor:
        """Add the gradient of one micro-batch; returns its part of the loss."""
        batch = self.collator(rows, self.amp.device)
        with self.amp.autocast():
            loss = self.objective(self.forward, batch) / weight
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _clip(self) -> torch.Tensor:
        """Clip the gradient; returns its norm before."""
        from torch.nn.utils import clip_grad_norm_

        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return clip_grad_norm_(parameters, math.inf if self.clip is None else self.clip)

    def _checked(self, update: Update, losses: list[torch.Tensor], norm: torch.Tensor) -> tuple[float, float]:
        """Loss and norm as numbers, read from the device once, or the end of training."""
        import torch

        *parts, size = torch.stack([*losses, norm.to(losses[0])]).tolist()
        for rows, part in zip(update.micro_batches, parts, strict=True):
            if not math.isfinite(part):
                self._stop(update, rows, "loss", part)
        # with fp16's scaling the step is skipped and the scale halved, until there's nothing left to halve
        if not math.isfinite(size) and self.scaler.get_scale() <= 1:
            self._stop(update, np.concatenate(update.micro_batches), "gradient norm", size)
        return sum(parts), size

    def _stop(self, update: Update, rows: Rows, what: str, value: float) -> None:
        """Name the step, the value and the texts, and leave the facts in the run folder."""
        self.optimizer.zero_grad(set_to_none=True)
        ids = [str(self.examples.ids[row]) for row in rows]
        where = ""
        if self.folder is not None:
            facts = {
                "step": update.step + 1,
                "what": what,
                "value": str(value),
                "ids": ids,
                "texts": [list(self.examples.texts[row]) for row in rows],
                "lr": [float(group["lr"]) for group in self.optimizer.param_groups],
            }
            path = self.folder / "nonfinite.json"
            path.write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
            where = f"; texts and rates in {path}"
        shown = ", ".join(ids[:8]) + (", …" if len(ids) > 8 else "")
        problem = f"{what} is {value} at step {update.step + 1}, rows {shown}{where}"
        raise NonFiniteError(f"{problem}. Try a lower optimizer.lr")
