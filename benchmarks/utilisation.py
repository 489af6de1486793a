"""Which share of the machine's matrix multiplication rate training achieves.

Floating-point operations of one update, by the usual count (Kaplan et al., 2020, section 2.1, with its
attention term; a multiply-add is two, backward is twice forward):

    6 x P x tokens + 12 x layers x width x sum of length^2 + 6 x H x rows

P: weights of the trunk's linear layers; H: those of the head, which sees one position a row. Embeddings,
norms, softmax and the optimizer count as nothing. `useful` counts real tokens only, `executed` padding as
well. Both are divided by the rate of one large matrix multiplication in the same number format, measured in
the same process with the same threads, a burst after every few updates, so that both meet the same
neighbours.

    make bench ARGS="utilisation"
    python benchmarks/utilisation.py --only imdb --model mpnet_base engine.batching.size=64
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import common
import numpy as np
import training

from whet.engine.callbacks import Callback, State
from whet.engine.plan import Plan
from whet.engine.step import Stepper, StepResult

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from whet.engine.precision import Amp

WARM, EVERY, BURST = 3, 4, 0.3
"""Updates before the clock starts, updates between two bursts, and seconds of a burst."""
ROWS = {"sentences": 1024, "imdb": 384}


def races(given: argparse.Namespace) -> list[common.Race]:
    contestants = {}
    for name in training.DATA:
        keys, _ = training.data(argparse.Namespace(**{**vars(given), "data": name}), ROWS)
        contestants[name] = {"keys": [*keys, *given.overrides]}
    return [
        common.Race(
            title=f"utilisation of training {given.model}",
            contestants=contestants,
            figure="useful",
            unit="share of the GEMM rate",
            columns={
                "executed": ".1%",
                "gflops": ".1f",
                "gemm_gflops": ".1f",
                "padding": ".1%",
                "seconds_per_step": ".3f",
                "busy_cores": ".2f",
            },
        )
    ]


def child(settings: common.Figures) -> common.Figures:
    setup = training.set_up(settings["keys"], settings["threads"])
    made: list[Bursts] = []

    def beside(plan: Plan, stepper: Stepper, own: Sequence[Callback]) -> list[Callback]:
        made.append(Bursts(Gemm(stepper.amp), plan.total))
        return made.copy()

    trained = training.fit(setup, WARM, more=beside)
    useful, executed = operations(Sizes.of(setup.ready.model), trained.plan)
    figures, bursts = trained.figures(), made[0]
    seconds = figures["seconds"] - sum(bursts.seconds)
    rate = statistics.median(bursts.rates)
    return {
        **figures,
        "seconds_per_step": seconds / figures["steps"],
        "useful": useful / seconds / rate,
        "executed": executed / seconds / rate,
        "gflops": useful / seconds / 1e9,
        "gemm_gflops": rate / 1e9,
    }


# ---------------------------------------------------------------- training's operations


@dataclass(frozen=True)
class Sizes:
    """What the count needs to know of a model."""

    trunk: int
    """Weights of the linear layers in the blocks."""
    head: int
    """Weights of all other linear layers."""
    layers: int
    width: int

    @classmethod
    def of(cls, model: nn.Module) -> Sizes:
        """Of a model of transformers."""
        from whet.model.layers import block_modules, is_linear, linear_layers

        inside = set(linear_layers(model))
        linear = {name: module.weight.numel() for name, module in model.named_modules() if is_linear(module)}
        trunk = sum(count for name, count in linear.items() if name in inside)
        width = int(model.config.hidden_size)
        return cls(trunk, sum(linear.values()) - trunk, len(block_modules(model)), width)

    def flops(self, lengths: NDArray[np.int64]) -> float:
        """Of forward and backward over texts of `lengths` tokens, everything being trained."""
        attention = 12 * self.layers * self.width * float((lengths.astype(float) ** 2).sum())
        return 6.0 * self.trunk * int(lengths.sum()) + attention + 6.0 * self.head * len(lengths)


def operations(sizes: Sizes, plan: Plan) -> tuple[float, float]:
    """Operations of the timed updates: of real tokens, and of padded ones."""
    pieces = [piece for update in plan.after(WARM) for piece in update.micro_batches]
    lengths = [plan.lengths[piece] for piece in pieces]
    padded = [np.full(len(found), plan.batching.padded(int(found.max()))) for found in lengths]
    return sizes.flops(np.concatenate(lengths)), sizes.flops(np.concatenate(padded))


# ---------------------------------------------------------------- the machine's rate


class Gemm:
    """One large matrix multiplication in training's number format."""

    def __init__(self, amp: Amp) -> None:
        import torch

        kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        self.size = 8192 if amp.device.type == "cuda" else 1536
        shape, kind = (self.size, self.size), kinds[amp.name]
        self.left, self.right = (torch.randn(shape, device=amp.device).to(kind) for _ in range(2))
        self.rate(0.3)  # the first ones prepare

    def rate(self, seconds: float) -> float:
        """FLOP/s over about so many seconds."""
        import torch

        started, ended, count = training.now(), 0.0, 0
        while ended - started < seconds:
            torch.mm(self.left, self.right)
            count, ended = count + 1, training.now()
        return 2.0 * self.size**3 * count / (ended - started)


class Bursts(Callback):
    """Measures the machine's rate after every few timed updates."""

    def __init__(self, gemm: Gemm, total: int) -> None:
        self.gemm, self.total = gemm, total
        self.rates: list[float] = []
        self.seconds: list[float] = []
        """That the bursts took: no part of training."""

    def on_update(self, state: State, result: StepResult) -> None:
        if state.step > WARM and (state.step % EVERY == 0 or state.step == self.total):
            started = training.now()
            self.rates.append(self.gemm.rate(BURST))
            self.seconds.append(training.now() - started)


if __name__ == "__main__":
    raise SystemExit(common.main(training.parser("utilisation", __doc__ or "", data=False), races, child))
