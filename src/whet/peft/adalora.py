"""AdaLoRA: low-rank updates whose ranks follow from how much each direction matters (Zhang et al., 2023).

"AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning": W + (alpha / r) P Λ Q, with P and Q
kept near orthogonal (equation 4) and the least important of Λ set to zero on a schedule (algorithm 1). The
layers are peft's; which directions stay is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whet.errors import ConfigError
from whet.peft.base import Companion, accompany, freeze
from whet.peft.lora import Targets, target_names, transposed
from whet.types import Duration, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Probability

if TYPE_CHECKING:
    import torch
    from torch import nn

WARMUP, FINAL = Duration(0.1, "share"), Duration(0.3, "share")


def adalora(
    model: nn.Module,
    *,
    r: PositiveInt = 12,
    target_r: PositiveInt = 8,
    alpha: PositiveFloat = 16.0,
    dropout: Probability = 0.0,
    targets: Targets = "all",
    warmup: Duration = WARMUP,
    final: Duration = FINAL,
    every: PositiveInt = 10,
    beta1: Fraction = 0.85,
    beta2: Fraction = 0.85,
    orthogonality: NonNegativeFloat = 0.1,
) -> nn.Module:
    """Put low-rank maps beside linear layers of the blocks, and take rank away where it matters least.

    Args:
        r: rank of every layer at the start.
        target_r: rank of a layer in the end, on average.
        alpha: the update is scaled by alpha / r.
        dropout: before Q.
        targets: every linear layer of the blocks, those of attention, those outside it, or name patterns
            (`*.query`).
        warmup: how long all keep their rank.
        final: how long, at the end, the ranks stay as they are.
        every: updates from one allocation to the next.
        beta1: share of the old in the running mean of importance.
        beta2: share of the old in the running mean of its fluctuation.
        orthogonality: weight of the penalty that keeps P and Q near orthogonal.

    Raises:
        ModelError: the targets, or one of the patterns, match nothing.
        ConfigError: `target_r` above `r`; or (once the run's length is known) no time between `warmup` and
            `final`.
    """
    from peft import AdaLoraConfig, inject_adapter_in_model

    if target_r > r:
        raise ConfigError("peft.target_r", f"must be at most peft.r, which is {r}", target_r)
    names = target_names(model, targets)
    freeze(model)
    config = AdaLoraConfig(
        init_r=r,
        target_r=target_r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        fan_in_fan_out=transposed(model, names),
        total_step=1,  # of peft's own allocator, which isn't used
    )
    adapted: nn.Module = inject_adapter_in_model(config, model)
    layers = [_triple(module) for module in adapted.modules() if hasattr(module, "lora_E")]
    budget = Budget(layers, target_r, warmup, final, every, beta1, beta2, orthogonality)
    accompany(adapted, budget)
    return adapted


def _triple(module: Any) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    return module.lora_E["default"], module.lora_A["default"], module.lora_B["default"]


@dataclass
class Budget(Companion):
    """Keeps as many directions as the schedule allows, those of the highest scores (algorithm 1)."""

    layers: list[tuple[nn.Parameter, nn.Parameter, nn.Parameter]]
    """Λ [r, 1], Q [r, in] and P [out, r] of each layer."""
    target_r: int
    warmup: Duration
    final: Duration
    every: int
    beta1: float
    beta2: float
    orthogonality: float
    phases: tuple[int, int] = (0, 1)
    """Updates after which allocation begins, and after which it has ended."""
    importance: list[torch.Tensor] = field(default_factory=list)
    """Of every number of every layer, smoothed (equation 8)."""
    fluctuation: list[torch.Tensor] = field(default_factory=list)
    """The same (equation 9)."""
    kept: torch.Tensor | None = None
    """[directions of all layers] bool: the final choice."""

    def __post_init__(self) -> None:
        import torch

        self.importance = [torch.zeros_like(tensor) for tensor in self._tensors()]
        self.fluctuation = [torch.zeros_like(tensor) for tensor in self._tensors()]

    def before_update(self, step: int, total: int, per_epoch: int) -> None:
        start = self.warmup.steps(per_epoch, total)
        end = total - self.final.steps(per_epoch, total)
        if start >= end:
            problem = f"of {total} updates, {total - end} are peft.final: there is no time to allocate ranks"
            raise ConfigError("peft.warmup", problem, str(self.warmup))
        self.phases = start, end

    def after_gradient(self) -> None:
        """Add the gradient of the penalty, the mean of |P'P - I| and |QQ' - I| over all layers."""
        import torch

        if not self.orthogonality:
            return
        with torch.enable_grad():
            grams = [gram for _, q, p in self.layers for gram in (q @ q.T, p.T @ p)]
            apart = [torch.linalg.norm(g - torch.eye(len(g), device=g.device, dtype=g.dtype)) for g in grams]
            penalty = self.orthogonality * torch.stack(apart).mean()
        tensors = [tensor for _, q, p in self.layers for tensor in (q, p)]
        for tensor, gradient in zip(tensors, torch.autograd.grad(penalty, tensors), strict=True):
            tensor.grad = gradient if tensor.grad is None else tensor.grad.add_(gradient)

    def after_update(self, step: int) -> None:
        done, (start, end) = step + 1, self.phases
        if self.kept is None:
            self._observe()
            if done >= end:
                self.kept = self._best(self._room(end))
            elif done > start and done % self.every == 0:
                self._silence(self._best(self._room(done)))
        if self.kept is not None:
            self._silence(self.kept)

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        names = ("importance", "fluctuation")
        found = {name: torch.cat([t.flatten() for t in getattr(self, name)]) for name in names}
        return found if self.kept is None else {**found, "kept": self.kept}

    def load_state(self, saved: dict[str, torch.Tensor]) -> None:
        import torch

        for held, name in ((self.importance, "importance"), (self.fluctuation, "fluctuation")):
            parts = torch.split(saved[name], [tensor.numel() for tensor in held])
            for tensor, part in zip(held, parts, strict=True):
                tensor.copy_(part.view_as(tensor))
        kept = saved.get("kept")
        self.kept = None if kept is None else kept.to(self.layers[0][0].device)

    def _tensors(self) -> list[nn.Parameter]:
        return [tensor for triple in self.layers for tensor in triple]

    def _observe(self) -> None:
        """Importance of a number is |number x gradient|; it and its fluctuation are smoothed."""
        import torch

        with torch.no_grad():
            for place, tensor in enumerate(self._tensors()):
                if tensor.grad is None:
                    continue
                self._follow(tensor)
                now = (tensor * tensor.grad).abs()
                mean = self.importance[place].mul_(self.beta1).add_(now, alpha=1 - self.beta1)
                apart = (now - mean).abs_()
                self.fluctuation[place].mul_(self.beta2).add_(apart, alpha=1 - self.beta2)

    def _follow(self, tensor: torch.Tensor) -> None:
        """Be where the model is: it was moved after the method was applied."""
        if self.importance[0].device != tensor.device:
            self.importance = [held.to(tensor.device) for held in self.importance]
            self.fluctuation = [held.to(tensor.device) for held in self.fluctuation]

    def _room(self, done: int) -> int:
        """Directions that may stay after `done` updates (equation 12: a cubic decay)."""
        start, end = self.phases
        first = sum(len(values) for values, _, _ in self.layers)
        last = min(first, self.target_r * len(self.layers))
        return int(last + (first - last) * (1 - (done - start) / (end - start)) ** 3)

    def _best(self, count: int) -> torch.Tensor:
        """[directions] bool: those with the highest scores (equation 7, with the means of P and Q)."""
        import torch

        scores = [mean * apart for mean, apart in zip(self.importance, self.fluctuation, strict=True)]
        whole = torch.cat(
            [
                scores[place].flatten() + scores[place + 1].mean(1) + scores[place + 2].mean(0)
                for place in range(0, len(scores), 3)
            ]
        )
        best = torch.zeros(len(whole), dtype=torch.bool, device=whole.device)
        return best.index_fill_(0, whole.argsort(descending=True, stable=True)[:count], True)

    def _silence(self, kept: torch.Tensor) -> None:
        import torch

        with torch.no_grad():
            parts = torch.split(kept, [len(values) for values, _, _ in self.layers])
            for (values, _, _), part in zip(self.layers, parts, strict=True):
                values.masked_fill_(~part[:, None], 0)
