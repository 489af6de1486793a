"""Settings of training."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from whet.config import Component
from whet.data.batching import Batching
from whet.engine.distributed import Parallel
from whet.engine.precision import Precision
from whet.engine.speed import Compile, LastBlock, Packing, need_compiler
from whet.errors import ConfigError
from whet.ranks import Ranks, cores
from whet.types import Duration, NonNegativeFloat, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from whet.engine.precision import Amp

_SOME = "must be more than 0: 1ep, 200st or 0.1"


@dataclass(kw_only=True)
class Engine(Component):
    """How long, in which portions, with which numbers and where."""

    duration: Duration = Duration(3, "ep")
    """Length of training: epochs (`3ep`) or updates (`500st`)."""
    batching: Batching = field(default_factory=Batching)
    """How examples become batches."""
    accumulate: PositiveInt = 1
    """Micro-batches of one update; with batching.size (and .tokens) divided by k it stays the same update."""
    precision: Precision = "auto"
    """Autocast: auto takes bf16 where the device has it in hardware, fp16 on older CUDA cards, else fp32."""
    clip: PositiveFloat | None = 1.0
    """Largest L2 norm of the gradient; null doesn't clip."""
    evaluate_every: Duration = Duration(1, "ep")
    """Validate after so many epochs (`0.5ep`), updates (`200st`) or this share of the run."""
    patience: PositiveInt | None = 3
    """Stop after so many evaluations without improvement; null never stops early."""
    min_delta: NonNegativeFloat = 0.0
    """What counts as an improvement of the primary metric."""
    checkpoint_every: Duration | None = None
    """Save the whole state after so much training, beside every evaluation; null: at evaluations only."""
    keep: PositiveInt = 2
    """Newest checkpoints kept, beside the best."""
    on_save_error: Literal["go_on", "stop"] = "go_on"
    """When a checkpoint can't be written (disk full): go on with the last good one kept, or stop."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient that isn't finite ends training, or its update is left out (ten in a row end it)."""
    packing: Packing = "auto"
    """Lay the texts of training batches end to end, without padding: auto where that is faster and right."""
    last_block: LastBlock = "auto"
    """In training, leave out of it what the head doesn't read (all but the first token); or keep it whole."""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping what it computed: less memory."""
    compile: Compile = False
    """torch.compile the training step (true, reduce-overhead, max-autotune); seldom pays on a CPU."""
    deterministic: bool = False
    """Only deterministic kernels (slower on GPUs; the CPU's are), and no resume under other versions."""
    frozen: Literal["auto", "train", "eval"] = "auto"
    """Dropout below the layers that train: on (train), off (eval), or auto: off where no block trains."""
    trunk_cache: Literal["auto", "off"] = "auto"
    """Compute those layers once and keep their outputs on disk, where that changes nothing else."""
    trunk_cache_limit: PositiveFloat = 20.0
    """GiB of disk for such outputs of all runs; those that weren't used for longest make way."""
    pictures: bool = True
    """Draw confusion matrix, curves and learning curves of a run that is tested; false saves a second."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: PositiveInt | None = None
    """CPU threads of torch; null: one a core, or under torchrun each process's share of them."""
    parallel: Parallel = "ddp"
    """Under torchrun each process holds the whole model or a part of every tensor (fsdp, less memory)."""

    def __post_init__(self) -> None:
        if self.duration.unit == "share" or self.duration.value <= 0:
            raise ConfigError("duration", "write epochs as 3ep or updates as 500st", self.duration)
        if self.evaluate_every.value <= 0:
            raise ConfigError("evaluate_every", _SOME, self.evaluate_every)
        if self.checkpoint_every is not None and self.checkpoint_every.value <= 0:
            raise ConfigError("checkpoint_every", _SOME, self.checkpoint_every)
        self._choose()

    def _choose(self) -> None:
        """Settings that were never shown to go together don't."""
        wanted = {
            "compile": self.compile is not False,
            "packing": self.packing == "on",
            "gradient_checkpointing": self.gradient_checkpointing,
            "parallel": self.parallel == "fsdp",
        }
        for one, other in (("compile", "packing"), ("compile", "gradient_checkpointing"),
                           ("compile", "parallel"), ("packing", "parallel")):  # fmt: skip
            if wanted[one] and wanted[other]:
                problem = f"not together with engine.{other}={getattr(self, other)}: choose one"
                raise ConfigError(one, problem, getattr(self, one))

    def hooks_blocked(self, sharded: bool) -> str | None:
        """Why the model's blocks can't be run in another way than the usual one."""
        if sharded:
            return "engine.parallel=fsdp"
        return None if self.compile is False else f"engine.compile={self.compile}"

    def amp(self, ranks: Ranks | None = None) -> Amp:
        """Device and number format of this process; sets torch's threads.

        Raises:
            ConfigError: no such device here, or none for each process.
        """
        import torch

        from whet.engine.allocator import keep_freed_memory
        from whet.engine.precision import Amp, pick_device

        ranks = ranks or Ranks()
        keep_freed_memory()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        elif ranks.launched:
            torch.set_num_threads(ranks.threads(cores(), os.environ.get("OMP_NUM_THREADS")))
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:  # the call loads the compiler
            torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.benchmark = False
        amp = Amp.of(self.precision, pick_device(self._device(ranks)))
        if self.compile is not False:
            need_compiler(amp.device)
        if self.parallel == "fsdp":
            self._can_share(ranks, amp)
        return amp

    def _can_share(self, ranks: Ranks, amp: Amp) -> None:
        if not ranks.launched:
            problem = "shares a model among processes: start them with torchrun -m whet train …"
            raise ConfigError("engine.parallel", problem, self.parallel)
        if amp.name == "fp16":
            problem = "each process would scale its loss alone: take engine.precision=bf16 or fp32"
            raise ConfigError("engine.parallel", problem, self.parallel)

    def _device(self, ranks: Ranks) -> str:
        """The GPU of this process where a launcher started several and there are some."""
        import torch

        if not ranks.launched or self.device == "cpu" or not torch.cuda.is_available():
            return self.device
        if self.device not in ("auto", "cuda"):
            problem = "under torchrun each process has its own: auto or cpu"
            raise ConfigError("engine.device", problem, self.device)
        if ranks.local_size > (gpus := torch.cuda.device_count()):
            problem = f"{ranks.local_size} processes and {gpus} GPUs: start fewer, or take cpu"
            raise ConfigError("engine.device", problem, self.device)
        torch.cuda.set_device(ranks.local_rank)
        return f"cuda:{ranks.local_rank}"
