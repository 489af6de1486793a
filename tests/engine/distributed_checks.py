"""What test_distributed.py has several processes do: `torchrun -m tests.engine.distributed_checks FOLDER`.

Each check returns what the tests look at; the first process writes all of it to FOLDER/found.json.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tests.engine.test_step import CLASSES, NAMES, Bag, sgd, stepper, task
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from whet.data.batch import Collator
from whet.data.batching import Batching
from whet.data.files import Files
from whet.data.tokens import encode
from whet.engine.callbacks import State
from whet.engine.distributed import ALONE, Group, full, joined
from whet.engine.evaluate import logits_of
from whet.engine.precision import Amp
from whet.engine.reduction import sum_gradients
from whet.engine.resume import read, take
from whet.model.encoder import Encoder
from whet.model.kernels import RowEmbedding, clear_gradients, touched_rows
from whet.model.tiny import TinyWeights
from whet.objective.awp import AWP
from whet.objective.fgm import FGM
from whet.objective.free import Free
from whet.objective.pgd import PGD
from whet.objective.plain import plain
from whet.objective.sam import SAM
from whet.optimizer.adamw import adamw
from whet.paths import Paths
from whet.task.single_label import SingleLabel

CPU = torch.device("cpu")
CUT = {"batching": Batching(size=4, tokens=None), "accumulate": 2, "duration": "2ep"}
"""29 rows in windows of 8: the last one has 5, micro-batches of 4."""
OBJECTIVES = {
    "fgm": FGM(), "pgd": PGD(), "free": Free(), "sam": SAM(rho=0.2), "asam": SAM(rho=1.0, adaptive=True),
    "awp": AWP(gamma=0.1),
}  # fmt: skip
LONELY = {"batching": Batching(size=14, tokens=None), "accumulate": 1, "duration": "2ep"}
"""Windows of 14, 14 and 1: one of two processes has nothing to do in the last."""


class Sack(Bag):
    """A bag whose output FSDP can follow, and that shows its table."""

    def get_input_embeddings(self):
        return self.table

    def forward(self, **inputs):
        return SequenceClassifierOutput(logits=super().forward(**inputs).logits)


def flat(model: nn.Module) -> list[float]:
    return torch.cat([full(p.detach()).flatten() for p in model.parameters()]).tolist()


def trained(world, cut, parallel="ddp", objective=plain, **settings) -> dict:
    """Losses, norms and weights of a small model's training."""
    model = Sack()
    world.spread(model, CPU, parallel)
    made = stepper(
        model, task().criterion(CLASSES, NAMES), CLASSES, **cut, optimizer=sgd(model, lr=0.1), world=world,
        objective=objective, **settings,
    )  # fmt: skip
    results = [made.update(update) for update in made.plan]
    return {
        "losses": [r.loss for r in results], "norms": [r.grad_norm for r in results],
        "rows": [r.rows for r in results], "tokens": [r.tokens for r in results],
        "weights": world.gather(flat(model)), "pieces": made.pieces,
    }  # fmt: skip


# ---------------------------------------------------------------- agreement


def agreement(world, folder):
    rank = world.ranks.rank
    return {
        "most": world.most(10 * rank), "gather": world.gather(f"from {rank}"),
        "told": world.gather(world.told(lambda: os.getpid())), "first": os.getpid() if world.first else None,
        "seeds": world.gather(world.seed(7)), "size": world.ranks.size,
    }  # fmt: skip


def preparing(world, folder):
    """Whether the second process of a machine finds what the first one made."""
    place = folder / "prepared"
    with world.preparing():
        found = place.exists()
        if not found:
            time.sleep(0.3)
            place.touch()
    return world.gather(found)


def signals(world, folder):
    """A signal that only the last process gets; a launcher's echo of it; then a notice."""
    request, seen = world.stop_request(), []
    last = world.ranks.rank == world.ranks.size - 1
    with request.listening():
        world.agree(request)
        seen.append(bool(request))
        if last:
            os.kill(os.getpid(), signal.SIGTERM)
        before = bool(request)
        world.agree(request)
        seen += [before, request.number]
        os.kill(os.getpid(), signal.SIGTERM)  # would stop at once if it counted
        world.agree(request)
    notice = world.stop_request()
    if last:
        notice._pass(signal.SIGTERM, None)
    for _ in range(2):
        world.agree(notice)
        seen.append(notice.take_notice())
    return world.gather(seen)


# ---------------------------------------------------------------- gradients


def sums(world, folder):
    """Dense, missing here, missing everywhere, tables that touch other rows; against a plain sum."""
    rank = world.ranks.rank
    torch.manual_seed(rank)
    dense, here, nowhere = (nn.Parameter(torch.zeros(3, 5)) for _ in range(3))
    large = nn.Parameter(torch.zeros(3, 1_000_001))  # more than two buckets
    table, late = RowEmbedding(40, 6), RowEmbedding(40, 6)
    dense.grad, large.grad = torch.randn(3, 5), torch.randn(3, 1_000_001).T.contiguous().T
    if rank == 1:
        here.grad = torch.randn(3, 5)
        late(torch.tensor([[3, 4]])).square().sum().backward()
    found = {}
    for turn, ids in enumerate(([[1, 2, 2]], [[2 + rank, 30 + rank]])):
        table(torch.tensor(ids)).mul(rank + 1.0).sum().backward()
        parameters = [dense, here, nowhere, large, table.weight, late.weight]
        own = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        expected = [sum(parts) for parts in zip(*world.gather(own), strict=True)]
        not_ready = sum_gradients(parameters, rank == 0, world.control)
        same = all(torch.equal(a, b) for a, b in zip(own, parameters_of(parameters), strict=True))
        ready = sum_gradients(parameters, True, world.control)
        found[f"turn {turn}"] = {
            "ready": [not_ready, ready], "untouched": same, "nowhere": nowhere.grad is None,
            "worst": [float((p - e).abs().max()) for p, e in zip(parameters_of(parameters), expected, strict=True)],
            "rows": touched_rows(table.weight).tolist(), "late": touched_rows(late.weight).tolist(),
        }  # fmt: skip
        clear_gradients(parameters)
        found[f"turn {turn}"]["cleared"] = all(float(p.abs().max()) == 0 for p in parameters_of(parameters))
        dense.grad, large.grad = torch.randn(3, 5), torch.randn(3, 1_000_001)
    return world.gather(found)


def parameters_of(parameters):
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def updates(world, folder):
    return {
        f"{parallel} {name}": trained(world, cut, parallel)
        for parallel in ("ddp", "fsdp")
        for name, cut in (("cut", CUT), ("lonely", LONELY))
    }


def objectives(world, folder):
    """Several passes, several gradients, several steps an update."""
    return {
        f"{parallel} {name}": trained(world, CUT, parallel, replace(objective))
        for parallel in ("ddp", "fsdp")
        for name, objective in OBJECTIVES.items()
    }


def not_finite(world, folder):
    """The row with the NaN is in one process's share; both leave the update out and name it."""

    def poisoned(forward, batch):
        loss = plain(forward, batch)
        return loss * math.nan if 11 in batch.rows else loss

    place = folder / "nan"
    place.mkdir(exist_ok=True)
    found = trained(world, CUT, objective=poisoned, on_nan="skip", folder=place if world.first else None)
    facts = [json.loads(path.read_text()) for path in sorted(place.glob("*.json"))] if world.first else None
    return {**found, "facts": facts}


def memory(world, folder):
    """Memory runs out on the last process alone, after a part of its gradients is there."""

    def hungry(forward, batch):
        if world.ranks.rank == world.ranks.size - 1 and len(batch.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(forward, batch)

    return trained(world, CUT, objective=hungry)


# ---------------------------------------------------------------- evaluation, resume


def encoder(world, parallel, folder):
    torch.manual_seed(0)
    made = SingleLabel(name="t", data=Files(path="unused.csv"))
    with world.preparing():
        loaded = Encoder(name="tiny", weights=TinyWeights()).load(made.head(NAMES), Paths(cache=str(folder)))
    world.spread(loaded.model, CPU, parallel)
    return made, loaded, loaded.model


def evaluation(world, folder):
    """Five batches for two processes; every row's logits, to the bit those of one process."""
    rng = np.random.default_rng(1)
    texts = [("x" * int(n),) for n in rng.integers(1, 60, 57)]
    found = {}
    for parallel in ("ddp", "fsdp"):
        _, loaded, model = encoder(world, parallel, folder)
        batching = Batching(size=2, tokens=None, evaluation_factor=6)
        tokens = encode(texts, loaded.tokenizer, 64)
        collator = Collator.of(tokens, np.zeros(57), loaded.tokenizer, batching)
        assert len(batching.evaluation(tokens.lengths)) % 2
        held = sum(getattr(p, "_local_tensor", p).numel() for p in model.parameters())
        share = held / sum(p.numel() for p in model.parameters())
        logits = logits_of(model, collator, Amp(CPU, "fp32"), world=world)
        alone = logits_of(encoder(ALONE, "ddp", folder)[2], collator, Amp(CPU, "fp32"))
        found[parallel] = [
            bool(np.array_equal(logits, alone)),
            list(logits.shape),
            type(model).__name__,
            share,
        ]
    return world.gather(found)


def resumed(world, folder):
    """Three updates, a checkpoint, three more; and a new model that goes on from the checkpoint."""
    found = {}
    for parallel in ("ddp", "fsdp"):
        place, ends = folder / f"checkpoint-{parallel}", []
        for fresh in (True, False):
            made, _, model = encoder(world, parallel, folder)
            one = stepper(
                model, made.criterion(CLASSES, NAMES), CLASSES, **CUT, optimizer=adamw(model, lr=1e-2), world=world
            )  # fmt: skip
            torch.manual_seed(world.seed(5) if fresh else 99 + world.ranks.rank)
            updates = list(one.plan)
            if fresh:
                for update in updates[:3]:
                    one.update(update)
                contents = take(one, State(step=3, total=6), [], world)
                world.told(lambda place=place, contents=contents: place.mkdir() or contents.write(place))
            else:
                state = read(place, one, [], world)
                assert (state.step, state.total) == (3, 6)
            losses = [one.update(update).loss for update in updates[3:6]]
            ends.append([losses, flat(model), torch.rand(1).item()])
        names = sorted(name for name in dict(model.named_parameters()))
        found[parallel] = {"same": ends[0] == ends[1], "draw": ends[0][2], "names": names}
    return world.gather(found)


CHECKS = (agreement, preparing, signals, sums, updates, objectives, not_finite, memory, evaluation, resumed)


def main(folder: Path) -> None:
    with joined() as world:
        assert isinstance(world, Group)
        torch.set_num_threads(1)
        found = {check.__name__: check(world, folder) for check in CHECKS}
        if world.first:
            (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
