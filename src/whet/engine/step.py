"""One optimizer update."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from whet.engine.distributed import ALONE, World, full
from whet.errors import ConfigError, NonFiniteError
from whet.objective.base import Forward, Turn, passes
from whet.objective.base import Objective as Several
from whet.peft.base import companions

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from whet.data.batch import Batch, Collator, Examples
    from whet.engine.plan import Plan, Rows, Update
    from whet.engine.precision import Amp
    from whet.objective.base import Result
    from whet.task.base import Criterion

log = logging.getLogger("whet.engine")
MOST_SKIPPED = 10
"""Updates that may be left out in a row."""

Schedule = Callable[[int, int, int], float]
Objective = Callable[[Forward, "Batch"], "Result"]


@dataclass(frozen=True)
class StepResult:
    """What one update was like."""

    loss: float | torch.Tensor
    """Weighted mean over the window's items; on a GPU it may still be there, see `figures`."""
    grad_norm: float | torch.Tensor
    """L2 norm before clipping."""
    lr: float
    """Largest learning rate of the groups."""
    tokens: int
    """Real tokens seen."""
    rows: int


@dataclass(frozen=True)
class Figures(StepResult):
    """A result whose numbers have been read."""

    loss: float
    grad_norm: float


def figures(results: Sequence[StepResult]) -> list[Figures]:
    """The same results with their numbers read from the device, all at once."""
    import torch

    held = [value for result in results for value in (result.loss, result.grad_norm)]
    if any(isinstance(value, torch.Tensor) for value in held):
        held = torch.stack(
            [torch.as_tensor(value, dtype=torch.float32).flatten()[0] for value in held]
        ).tolist()
    pairs = zip(results, held[::2], held[1::2], strict=True)
    return [Figures(float(loss), float(norm), r.lr, r.tokens, r.rows) for r, loss, norm in pairs]


@dataclass(frozen=True)
class Unread:
    """Numbers of an update that are on their way from the device."""

    update: Update
    cut: list[Rows]
    numbers: torch.Tensor
    """[micro-batches + 2] on the host: this process's losses, all's sum, norm; right once `there` is done."""
    there: torch.cuda.Event | None

    def arrived(self) -> bool:
        """Whether reading them waits for nothing."""
        return self.there is None or bool(self.there.query())  # type: ignore[no-untyped-call]


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
    lag: int = 0
    """The host may be so many updates behind in reading losses; 0 reads each at once."""
    world: World = ALONE
    """Processes that share each update."""
    judged: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    """While it lasts the model has the weights that are judged, saved as the model and exported."""

    def __post_init__(self) -> None:
        self.scaler = self.amp.scaler()
        self.forward = Forward(self.model, self.criterion, total=self.plan.total)
        self._unread: deque[Unread] = deque()
        self._made: dict[int, list[Batch]] = {}
        self._bad: torch.Tensor | None = None
        self.companions = companions(self.model)
        if self.companions and self.world.sharded:
            problem = "this PEFT method looks at whole tensors at each update; take ddp"
            raise ConfigError("engine.parallel", problem, "fsdp")
        blind = not self.optimizer.defaults.get("fused") or self.scaler.is_enabled() or self.world.sharded
        if blind or self.companions:
            self.lag = (
                0  # only fused updates can be left out by the device itself, and nobody may follow them
            )

    def adopt(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Let what an objective brings train beside the model."""
        if parameters:
            first = max(self.optimizer.param_groups, key=lambda group: float(group["base_lr"]))
            rates = {"lr": first["lr"], "base_lr": first["base_lr"], "weight_decay": 0.0}
            names = {"param_names": list(parameters)} if "param_names" in first else {}
            self.optimizer.add_param_group({"params": list(parameters.values()), **rates, **names})

    def before_judging(self) -> None:
        """Let the objective do what it does before an evaluation."""
        before = getattr(self.objective, "before_judging", None)
        if before is not None:
            before(self.forward)

    def ahead(self, updates: Iterable[Update]) -> Iterator[Update]:
        """`updates`, the batches of the next one made meanwhile in a thread."""
        with ThreadPoolExecutor(1, "whet-collate") as pool:
            waiting: tuple[Update, Future[list[Batch]]] | None = None
            for update in updates:
                after = (update, pool.submit(self._collate, update))
                if waiting is not None:
                    yield self._take(*waiting)
                waiting = after
            if waiting is not None:
                yield self._take(*waiting)

    def _collate(self, update: Update) -> list[Batch]:
        return [self.collator(rows, self.amp.device) for rows in self._own(update)]

    def _own(self, update: Update) -> list[Rows]:
        """This process's share of the micro-batches."""
        return self.world.share(update.micro_batches, self.plan.lengths, self.plan.batching)

    def _take(self, update: Update, made: Future[list[Batch]]) -> Update:
        self._made = {update.step: made.result()}
        return update

    def update(self, update: Update) -> StepResult:
        """Train on one window.

        The loss is the sum over the window's items divided by their total weight, so the gradient is that of
        one big batch, however the window is cut and however short the last one is.

        Raises:
            NonFiniteError: loss or gradient is NaN or infinite; the weights are untouched. With
                `on_nan=skip` only after ten such updates in a row. Under fp16 an infinite gradient is tried
                again at half the loss scale first, and counts once that is at 1. With a lag it is raised so
                many updates later; the device has left out this update and those after it.
        """
        if not self.model.training:  # it goes through all modules
            self.model.train()
        lr = self._set_rate(update.step)
        for companion in self.companions:
            companion.before_update(update.step, self.plan.total, self.plan.per_epoch)
        rows = np.concatenate(update.micro_batches)
        self.forward.step = update.step
        cut, losses = self._gradients(update, rows)
        finish = self._step_unseen if self.lag else self._step_seen
        loss, norm = finish(update, cut, losses, self._clip())
        if isinstance(self.objective, Several):
            self.objective.after(self.forward)
        return StepResult(loss, norm, lr, int(self.collator.tokens.lengths_of(rows).sum()), len(rows))

    def settle(self, behind: int = 0) -> None:
        """Read what has arrived, and wait while more than `behind` updates are unread; raises as `update`."""
        alone = self.world.ranks.size == 1  # several processes read the same updates after the same step
        while self._unread and (len(self._unread) > behind or (alone and self._unread[0].arrived())):
            told = self._unread.popleft()
            if told.there is not None:
                told.there.synchronize()
            loss, norm, guilty = self._checked(told.update, told.cut, told.numbers)
            self._judge(told.update, guilty, loss, norm)

    def _step_seen(
        self, update: Update, cut: list[Rows], losses: list[torch.Tensor], norm: torch.Tensor
    ) -> tuple[float, float]:
        """Look at loss and norm, then make the update or leave it out."""
        loss, size, guilty = self._checked(update, cut, self._numbers(losses, norm))
        if guilty is None:
            self.scaler.step(self.optimizer)
            for companion in self.companions if math.isfinite(size) else ():  # else the scaler left it out
                companion.after_update(update.step)
        else:
            self._clear()
        self.scaler.update()
        self._judge(update, guilty, loss, size)
        return loss, size

    def _step_unseen(
        self, update: Update, cut: list[Rows], losses: list[torch.Tensor], norm: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Let the device leave the update out by itself; the host looks when the numbers have arrived."""
        import torch

        numbers = self._numbers(losses, norm)
        bad = (~torch.isfinite(numbers[-2:])).any().to(torch.float32)
        if self.on_nan == "stop" and self._bad is not None:
            bad = torch.maximum(bad, self._bad)
        self._bad = bad
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # torch's fused updates heed it
        self.optimizer.step()
        there = torch.cuda.Event() if numbers.is_cuda else None  # type: ignore[no-untyped-call]
        self._unread.append(Unread(update, cut, numbers.to("cpu", non_blocking=True), there))
        if there is not None:
            there.record()
        self.settle(self.lag)
        return numbers[-2], norm

    def _numbers(self, losses: list[torch.Tensor], norm: torch.Tensor) -> torch.Tensor:
        """[losses + 2] this process's losses, the sum of all processes', the norm."""
        import torch

        total = self.world.sum(torch.stack([norm.new_zeros(()), *losses]).sum())
        return torch.stack([*losses, total, norm])

    def _gradients(self, update: Update, rows: Rows) -> tuple[list[Rows], list[torch.Tensor]]:
        """The gradient that the optimizer is to see; losses are those of the first one made for it."""
        self.forward.round = 0
        cut, losses = self._gradient(update, rows)
        if not isinstance(self.objective, Several):
            return cut, losses
        try:
            for turn in range(1, self.objective.rounds):
                self.objective.between(Turn(self._parameters(), self._norm, self._early_step))
                self.forward.round = turn
                self._gradient(update, rows)
        finally:
            self.objective.restore()
        return cut, losses

    def _norm(self) -> torch.Tensor:
        from whet.model.kernels import clip_gradients

        return full(clip_gradients(self._parameters(), math.inf))

    def _early_step(self) -> None:
        """A step with the gradient as it stands; what isn't finite, or comes after such, is left out."""
        import torch

        ended = self.on_nan == "stop" and self._bad is not None and bool(self._bad)
        if torch.isfinite(self._clip()) and not ended:
            self.optimizer.found_inf = None  # type: ignore[attr-defined]  # what was said of the last update
            self.scaler.step(self.optimizer)
        self.scaler.update()

    def _gradient(self, update: Update, rows: Rows) -> tuple[list[Rows], list[torch.Tensor]]:
        """The window's gradient, from micro-batches small enough for the memory.

        Returns:
            This process's micro-batches, and their parts of the loss; zeros follow where it had to keep
            others company.
        """
        weight = float(self.criterion.weights(self.collator.labels[rows]).sum()) or 1.0  # no row has a label
        own = self._own(update)
        while True:
            self._clear()
            cut = [part for piece in own for part in np.array_split(piece, self.pieces) if len(part)]
            made = self._made.pop(update.step, []) if self.pieces == 1 else []
            shares = [(part, weight) for part in cut]
            shares += [(rows[:1], math.inf)] * self.world.idle(len(cut))
            losses: list[torch.Tensor] = []
            ready = True
            try:
                for self.forward.piece, (part, divisor) in enumerate(shares):
                    batch = made.pop(0) if made else self.collator(part, self.amp.device)
                    losses.append(self._backward(batch, divisor))
            except RuntimeError as error:
                if not is_out_of_memory(error) or max(map(len, cut), default=1) == 1:
                    raise
                ready = False
            if self.world.reduce(self._parameters(), ready):
                return cut, losses
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

    def _backward(self, batch: Batch, weight: float) -> torch.Tensor:
        """Add the gradient of one micro-batch, pass by pass; returns its part of the loss."""
        found: list[torch.Tensor] = []
        with self.amp.autocast():
            each = passes(self.objective(self.forward, batch))
        while True:
            with self.amp.autocast():
                loss = next(each, None)
            if loss is None:
                return found[0] if len(found) == 1 else torch_sum(found)
            loss = loss / weight
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            found.append(loss.detach())

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _clear(self) -> None:
        from whet.model.kernels import clear_gradients

        clear_gradients(self._parameters())

    def _clip(self) -> torch.Tensor:
        """Clip the gradient; returns its norm before."""
        from whet.model.kernels import clip_gradients

        self.scaler.unscale_(self.optimizer)
        for companion in self.companions:
            companion.after_gradient()
        return full(clip_gradients(self._parameters(), math.inf if self.clip is None else self.clip))

    def _checked(
        self, update: Update, cut: list[Rows], numbers: torch.Tensor
    ) -> tuple[float, float, Rows | None]:
        """Loss and norm as numbers, read from the device once, and the rows at fault if one isn't finite."""
        *parts, loss, size = numbers.tolist()
        if not math.isfinite(loss):
            bad = [rows for rows, part in zip(cut, parts, strict=False) if not math.isfinite(part)]
            found = [rows for some in self.world.gather(bad) for rows in some]
            return loss, size, found[0] if found else np.concatenate(update.micro_batches)
        # with fp16's scaling the step is skipped and the scale halved, until there's nothing left to halve
        hopeless = not math.isfinite(size) and self.scaler.get_scale() <= 1
        return loss, size, np.concatenate(update.micro_batches) if hopeless else None

    def _judge(self, update: Update, guilty: Rows | None, loss: float, norm: float) -> None:
        """Say that an update was left out, or end training (always after ten in a row)."""
        if guilty is None:
            self.skipped = 0
            return
        self.skipped += 1
        what, value = ("loss", loss) if not math.isfinite(loss) else ("gradient norm", norm)
        told = self._tell(update, guilty, what, value)
        if self.on_nan == "stop" or self.skipped >= MOST_SKIPPED:
            raise NonFiniteError(f"{told}. Try a lower optimizer.lr")
        log.warning("%s; this update is left out", told)

    def _tell(self, update: Update, rows: Rows, what: str, value: float) -> str:
        """Name the step, the value and the texts, and leave the facts in the run folder."""
        ids = [str(self.examples.ids[row]) for row in rows]
        path = self.world.told(lambda: self._write_facts(update, rows, what, value))
        where = "" if path is None else f"; texts and rates in {path}"
        shown = ", ".join(ids[:8]) + (", …" if len(ids) > 8 else "")
        return f"{what} is {value} at step {update.step + 1}, rows {shown}{where}"

    def _write_facts(self, update: Update, rows: Rows, what: str, value: float) -> Path | None:
        if self.folder is None:
            return None
        facts = {
            "step": update.step + 1,
            "what": what,
            "value": str(value),
            "ids": [str(self.examples.ids[row]) for row in rows],
            "texts": [list(self.examples.texts[row]) for row in rows],
            "lr": [float(group["lr"]) for group in self.optimizer.param_groups],
        }
        name = "nonfinite.json" if self.on_nan == "stop" else f"nonfinite-{update.step + 1}.json"
        path = self.folder / name
        path.write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
        return path


def torch_sum(parts: list[torch.Tensor]) -> torch.Tensor:
    """Sum of scalars, in their order."""
    return functools.reduce(operator.add, parts)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on a GPU or on the CPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
