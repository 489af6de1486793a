"""Several processes train one model: `torchrun --nproc-per-node=2 -m whet train …`.

The plan of a run doesn't know of processes. Each takes its share of every update's rows; gradients and losses
are sums over all of them, divided by the weight of the whole update, so the update is that of one process.

Gradients are summed once an update, after the last micro-batch, in buckets, rather than by torch's
DistributedDataParallel, for four reasons. It fits its buckets to the first backward pass, so the first update
after a resume would add in another order than the update it repeats (three processes: other bits). Its
collectives start inside the backward pass, where processes can't agree any more on what one of them met there
(memory that ran out). It wants one backward pass for each forward pass, in equal number everywhere, and
objectives may run several, and shares may be empty. And a parameter without a gradient needs no search of the
graph here. What it would gain is to hide the sum behind the backward pass.

Two groups of processes: the gradients' (NCCL between GPUs, else gloo) and one for what they agree on (gloo
always, so that it neither waits for a GPU nor is waited for). Whoever fails first says so in the launcher's
store and tells the user; the others end in silence.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from whet.engine.ending import Ending
from whet.engine.reduction import sum_gradients
from whet.engine.signals import StopRequest
from whet.errors import ConfigError, WhetError
from whet.ranks import Ranks, here

if TYPE_CHECKING:
    import torch
    from torch import distributed as dist
    from torch import nn

    from whet.data.batching import Batching

    Rows = NDArray[np.int64]

log = logging.getLogger("whet.engine")
T = TypeVar("T")
Parallel = Literal["ddp", "fsdp"]
ECHO = 3.0
"""Seconds after a signal in which another one is taken for the same."""
PATIENCE = timedelta(days=1)
"""The longest that the others wait while one process works alone; a process that dies is noticed at once."""


# ---------------------------------------------------------------- pure parts


def share(rows: Rows, lengths: Rows, rank: int, size: int) -> Rows:
    """The rows of one process: dealt out from the longest on, forth and back.

    Every row goes to one process; numbers of rows differ by at most one, sums of tokens by at most the
    longest row.

    Args:
        rows: of one update, in any order.
        lengths: [n] tokens of every row of the split.
        rank: the process.
        size: processes.

    Returns:
        Rows by length, shortest first.
    """
    ordered = rows[lengths[rows].argsort(kind="stable")][::-1]
    turn, seat = np.divmod(np.arange(len(ordered)), size)
    holder = np.where(turn % 2 == 0, seat, size - 1 - seat)
    own: Rows = ordered[holder == rank][::-1]
    return own


def own_seed(seed: int, rank: int) -> int:
    """The seed of one process's random numbers; the first one has the run's own."""
    return (
        seed if rank == 0 else int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0] >> 1)
    )


# ---------------------------------------------------------------- one process


@dataclass(kw_only=True, eq=False)
class World:
    """The processes of a job, as one of them sees it; this one is alone."""

    ranks: Ranks = field(default_factory=Ranks)

    @property
    def first(self) -> bool:
        """Whether this process writes: run folder, checkpoints, logs, trackers, console."""
        return self.ranks.first

    def seed(self, seed: int) -> int:
        """What this process's random numbers start from, once all have made the same model."""
        return own_seed(seed, self.ranks.rank)

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        return number

    def gather(self, value: T) -> list[T]:
        """All processes' values, by rank, on every process."""
        return [value]

    def told(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first process, on every process; only the first calls it."""
        return make()

    def stop_request(self) -> StopRequest:
        """What a signal to any of the processes becomes."""
        return StopRequest()

    def agree(self, request: StopRequest) -> None:
        """Let all processes know what each of them was asked."""

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """What is read or made here is cached: one process of a machine does it, then the others find it."""
        yield

    @contextlib.contextmanager
    def witnessed(self) -> Iterator[None]:
        """An error that another process's end caused is told as that."""
        yield

    def spread(self, model: nn.Module, device: torch.device, parallel: Parallel) -> None:
        """Make the model equal on all processes; under `fsdp` each keeps a part of every tensor.

        It is changed in place, before its optimizer is made; names of parameters stay what they are.
        """

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise ConfigError for an optimizer that can't work on parts of tensors, where it would have to."""

    def share(self, micro_batches: list[Rows], lengths: Rows, batching: Batching) -> list[Rows]:
        """This process's micro-batches of one update."""
        return micro_batches

    @property
    def sharded(self) -> bool:
        """Whether each process holds but a part of every tensor."""
        return False

    def idle(self, passes: int) -> int:
        """Passes without rows that this process must add to its own, where all must make equally many."""
        return 0

    def reduce(self, parameters: Sequence[torch.Tensor], ready: bool) -> bool:
        """Sum the gradients of all processes, in place.

        A parameter without a gradient here counts as zeros; without one anywhere it stays without.

        Returns:
            Whether all were ready; where one wasn't, nothing is summed.
        """
        return ready

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on the tensor's device."""
        return tensor


ALONE = World()
"""No other process."""

# ---------------------------------------------------------------- several


@dataclass(kw_only=True, eq=False)
class Group(World):
    """The processes that torchrun started."""

    control: dist.ProcessGroup
    """For agreements; of CPU tensors."""
    ending: Ending
    parallel: Parallel = "ddp"

    @classmethod
    def open(cls, ranks: Ranks) -> Group:
        """Join the others; each waits until all are there."""
        import torch
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        if ranks.size == ranks.local_size and (loop := _loopback()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loop)
        shared, rank, size = next(iter(rendezvous("env://")))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # what the last one said is still there
        store = PrefixStore(attempt, shared)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size)
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        peers: list[Any] = [None] * size
        dist.all_gather_object(peers, (platform.node(), os.getpid()), group=control)
        ending = Ending(ranks, PrefixStore("whet", store), peers)
        return cls(ranks=ranks, control=control, ending=ending)

    # ------------------------------------------------------------ agreement

    def most(self, number: int) -> int:
        import torch
        import torch.distributed as dist

        value = torch.tensor([number])
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control)
        return int(value)

    def gather(self, value: T) -> list[T]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.ranks.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def told(self, make: Callable[[], T]) -> T:
        import torch.distributed as dist

        box: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(box, src=0, group=self.control)
        made: T = box[0]
        return made

    def stop_request(self) -> StopRequest:
        return JointRequest()

    def agree(self, request: StopRequest) -> None:
        if isinstance(request, JointRequest):
            request.agree(self.most)

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        import torch.distributed as dist

        if self.sharded:  # no forward pass without the others
            yield
            return
        if self.ranks.local_rank:
            dist.barrier(group=self.control)
        yield
        if not self.ranks.local_rank:
            dist.barrier(group=self.control)

    # ------------------------------------------------------------ training

    def spread(self, model: nn.Module, device: torch.device, parallel: Parallel) -> None:
        import torch.distributed as dist

        self.parallel = parallel
        for tensor in model.state_dict().values():
            same = tensor.contiguous()
            dist.broadcast(same, src=0)
            tensor.copy_(same)
        if self.sharded:
            _shard(model, device, self.ranks.size)

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        import torch

        fused = isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["fused"]
        if self.sharded and (fused or type(optimizer).__name__ == "Adafactor"):
            problem = "not with this one: take adamw, adam, or sgd with optimizer.implementation=foreach"
            raise ConfigError("engine.parallel", problem, "fsdp")

    def share(self, micro_batches: list[Rows], lengths: Rows, batching: Batching) -> list[Rows]:
        own = share(np.concatenate(micro_batches), lengths, self.ranks.rank, self.ranks.size)
        return list(batching.cut(own, lengths, 1))

    @property
    def sharded(self) -> bool:
        return self.parallel == "fsdp"

    def idle(self, passes: int) -> int:
        return self.most(passes) - passes if self.sharded else 0

    def reduce(self, parameters: Sequence[torch.Tensor], ready: bool) -> bool:
        """Under fsdp the backward pass has taken their mean; there all are ready or the job ends."""
        if self.sharded:
            if not ready:
                problem = "engine.parallel=fsdp can't cut them while others wait: set it lower"
                raise WhetError(f"out of memory for micro-batches of engine.batching.size; {problem}")
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if not gradients:
                raise WhetError("engine.parallel=fsdp can't follow this model's kind of output: take ddp")
            for gradient in gradients:
                gradient.mul_(self.ranks.size)
            return True
        return sum_gradients(parameters, ready, self.control)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        import torch.distributed as dist

        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    # ------------------------------------------------------------ the end

    @contextlib.contextmanager
    def witnessed(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self.ending.begun = True
            cause = self.ending.cause(error)
            if cause is None:
                raise
            raise cause from error

    def leave(self, error: BaseException | None = None) -> BaseException | None:
        """End this process's part in the job.

        Returns:
            What to raise: `error` itself where this process is the one that tells the user.
        """
        import torch.distributed as dist

        if error is None:
            self.ending.part()
            dist.destroy_process_group()
            return None
        self.ending.begun = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(error, RuntimeError):
            error = self.ending.cause(error) or error
        return error if self.ending.claim(error) else self.ending.heard() or error


@dataclass(kw_only=True)
class JointRequest(StopRequest):
    """Signals of all processes of a job: what one of them hears, all heed after the same update."""

    heard: int = 0
    """Twice the signal that came here, and 1 if a notice came."""
    since: float = 0.0
    """When the signal came, in seconds of `time.monotonic`."""

    def agree(self, most: Callable[[int], int]) -> None:
        """Heed what any process has heard; `most` gives the largest of all processes' numbers."""
        told = self.heard
        asked = most(told)
        self.heard ^= told & 1
        self.number, self.noticed = asked >> 1, bool(asked & 1)
        if self:
            log.warning("%s: stopping after this update", signal.Signals(self.number).name)

    def _note(self, number: int, frame: Any) -> None:
        """A launcher passes on to its processes what the terminal has sent them already."""
        if self.heard < 2:
            self.heard, self.since = self.heard | number << 1, time.monotonic()
        elif time.monotonic() - self.since > ECHO:
            raise KeyboardInterrupt

    def _pass(self, number: int, frame: Any) -> None:
        self.heard |= 1


_current: World = ALONE


def current() -> World:
    """The processes of this job."""
    return _current


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Join the other processes of the job, if a launcher started some, and part from them at the end.

    Raises:
        Elsewhere: another process has an error, and has told it.
    """
    global _current
    ranks = here()
    if not ranks.launched:
        yield _current
        return
    group = Group.open(ranks)
    signal.signal(signal.SIGTERM, group.ending.on_sigterm)
    _current = group
    try:
        yield group
    except BaseException as error:
        raised = group.leave(error)
        if raised is None or raised is error:
            raise
        raise raised from None
    group.leave()


# ---------------------------------------------------------------- pieces


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor whose parts lie on several processes (all must call it); else itself."""
    gather = getattr(tensor, "full_tensor", None)  # a DTensor's; asking for its class would cost an import
    whole: torch.Tensor = tensor if gather is None else gather()
    return whole


def laid_out(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`whole`, of which each process keeps the part that it has of `like`; the reverse of `full`."""
    if not hasattr(like, "full_tensor") or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    like = cast("DTensor", like)
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)


def _shard(model: nn.Module, device: torch.device, size: int) -> None:
    """FSDP2 (Zhao et al., 2023) around every block and the rest; its gradients are means."""
    from torch.distributed.device_mesh import init_device_mesh

    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise ConfigError("engine.parallel", "needs torch 2.6 or later", "fsdp") from None
    mesh = init_device_mesh(device.type, (size,))
    for block in [*_blocks(model), model]:
        name = type(block).__name__
        fully_shard(block, mesh=mesh)
        type(block).__name__ = name  # it is of a class of its own now, whose name is exported


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Items of the outermost lists of modules."""
    from torch import nn

    if isinstance(model, nn.ModuleList):
        return [item for item in model if any(True for _ in item.parameters())]
    return [block for child in model.children() for block in _blocks(child)]


def _loopback() -> str | None:
    """Name of the interface that never leaves the machine."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), None)
