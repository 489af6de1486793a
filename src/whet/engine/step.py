"""One optimizer update."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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

log = logging.getLogger("whet.engine")
MOST_SKIPPED = 10
"""Updates that may be left out in a row."""

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
    on_nan: Literal["stop", "skip"] = "stop"
    """What to do about a loss or gradient that isn't finite: end training, or leave the update out."""
    pieces: int = 1
    """Every micro-batch is cut into so many; doubled whenever memory runs out."""
    skipped: int = 0
    """Updates left out in a row."""

    def __post_init__(self) -> None:
        self.scaler = self.amp.scaler()
        self.forward = Forward(self.model, self.criterion)

    def update(self, update: Update) -> StepResult:
        """Train on one window.

        The loss is the sum over the window's items divided by their total weight, so the gradient is that of
        one big batch, however the window is cut and however short the last one is.

        Raises:
            NonFiniteError: loss or gradient is NaN or infinite; the weights are untouched. With
                `on_nan=skip` only after ten such updates in a row. Under fp16 an infinite gradient is tried
                again at half the loss scale first, and counts once that is at 1.
        """
        self.model.train()
        lr = self._set_rate(update.step)
        rows = np.concatenate(update.micro_batches)
        cut, losses = self._gradient(update, rows)
        loss, norm, guilty = self._checked(cut, losses, self._clip())
        if guilty is None:
            self.skipped = 0
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self._not_finite(update, guilty, loss, norm)
        return StepResult(loss, norm, lr, int(self.collator.tokens.lengths[rows].sum()), len(rows))

    def _gradient(self, update: Update, rows: Rows) -> tuple[list[Rows], list[torch.Tensor]]:
        """The window's gradient, from micro-batches small enough for the memory; they and their losses."""
        weight = float(self.criterion.weights(self.collator.labels[rows]).sum()) or 1.0  # no row has a label
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            cut = [
                part
                for piece in update.micro_batches
                for part in np.array_split(piece, self.pieces)
                if len(part)
            ]
            try:
                return cut, [self._backward(part, weight) for part in cut]
            except RuntimeError as error:
                if not is_out_of_memory(error) or max(len(part) for part in cut) == 1:
                    raise
            self._halve(update)

    def _halve(self, update: Update) -> None:
        """Smaller micro-batches from now on; the update stays the same sum over the same rows."""
        import torch

        self.pieces *= 2
        if self.amp.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "out of memory at step %d: micro-batches are cut into %d from now on",
            update.step + 1,
            self.pieces,
        )

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

    def _checked(
        self, cut: list[Rows], losses: list[torch.Tensor], norm: torch.Tensor
    ) -> tuple[float, float, Rows | None]:
        """Loss and norm as numbers, read from the device once, and the rows at fault if one isn't finite."""
        import torch

        *parts, size = torch.stack([*losses, norm.to(losses[0])]).tolist()
        bad = [rows for rows, part in zip(cut, parts, strict=True) if not math.isfinite(part)]
        guilty = bad[0] if bad else None
        # with fp16's scaling the step is skipped and the scale halved, until there's nothing left to halve
        if guilty is None and not math.isfinite(size) and self.scaler.get_scale() <= 1:
            guilty = np.concatenate(cut)
        return sum(parts), size, guilty

    def _not_finite(self, update: Update, rows: Rows, loss: float, norm: float) -> None:
        """Leave the update out, or end training (always after ten in a row: the weights can't recover)."""
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        self.scaler.update()
        what, value = ("loss", loss) if not math.isfinite(loss) else ("gradient norm", norm)
        told = self._tell(update, rows, what, value)
        if self.on_nan == "stop" or self.skipped >= MOST_SKIPPED:
            raise NonFiniteError(f"{told}. Try a lower optimizer.lr")
        log.warning("%s; this update is left out", told)

    def _tell(self, update: Update, rows: Rows, what: str, value: float) -> str:
        """Name the step, the value and the texts, and leave the facts in the run folder."""
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
            path = self.folder / (
                "nonfinite.json" if self.on_nan == "stop" else f"nonfinite-{update.step + 1}.json"
            )
            path.write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
            where = f"; texts and rates in {path}"
        shown = ", ".join(ids[:8]) + (", …" if len(ids) > 8 else "")
        return f"{what} is {value} at step {update.step + 1}, rows {shown}{where}"


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on a GPU or on the CPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
