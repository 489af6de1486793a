"""From config parts to what the loop needs: data, model, stepper, evaluators."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.data.batch import Collator, Examples
from whet.data.tokens import Tokens, texts_hash, tokenize_splits
from whet.engine.distributed import ALONE, World
from whet.engine.evaluate import Evaluator
from whet.engine.plan import Plan
from whet.engine.step import Objective, Schedule, Stepper
from whet.errors import DataError
from whet.peft.base import trained_names

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from whet.debug import Debug
    from whet.engine.engine import Engine
    from whet.engine.precision import Amp
    from whet.model.encoder import Loaded
    from whet.paths import Paths
    from whet.task.base import Corpus, Criterion, Task

log = logging.getLogger("whet.engine")
_LAG = 8
"""Updates that the host may be ahead of a GPU."""


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass
class Prepared:
    """Tokenised data of a run."""

    corpus: Corpus
    tokens: dict[str, Tokens]
    criterion: Criterion

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each split's texts."""
        return {name: texts_hash(examples.texts) for name, examples in self.corpus.splits.items()}


def prepare(
    task: Task, corpus: Corpus, loaded: Loaded, augmentation: Any, paths: Paths, seed: int
) -> Prepared:
    """Augment the training rows, tokenise every split.

    Raises:
        DataError: a split is missing or empty.
    """
    for name in ("train", "validation", "test"):
        if name not in corpus.splits or not len(corpus.splits[name]):
            raise DataError("task.split", f"no rows for the {name} split; split.{name} sets its share", "")
    train = corpus.splits["train"]
    texts, labels = augmentation(train.texts, list(train.labels), np.random.default_rng(seed))
    ids = train.ids if len(texts) == len(train) else np.array([f"augmented-{i}" for i in range(len(texts))])
    corpus.splits["train"] = Examples("train", ids, texts, np.asarray(labels, dtype=train.labels.dtype))
    limit, folder, room = max_length(task, loaded), loaded.located.folder, paths.cached("tokens")
    tokens = tokenize_splits(corpus.splits, loaded.tokenizer, limit, folder, room)
    return Prepared(corpus, tokens, task.criterion(corpus.splits["train"].labels, corpus.label_names))


def max_length(task: Task, loaded: Loaded) -> int:
    """The task's length, within what the model has positions for."""
    positions = getattr(loaded.model.config, "max_position_embeddings", None) or task.max_length
    pad = loaded.model.config.pad_token_id or 0
    usable = positions - pad - 1 if loaded.model.config.model_type in _OFFSET_POSITIONS else positions
    if 0 < usable < task.max_length:
        log.warning(
            "task.max_length=%d: the model has %d positions; texts are cut there", task.max_length, usable
        )
        return int(usable)
    return task.max_length


_OFFSET_POSITIONS = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "longformer",
    "xlm-roberta-xl",
    "data2vec-text",
)
"""Architectures whose position ids start after the padding id."""


def evaluator(name: str, task: Task, data: Prepared, loaded: Loaded, engine: Engine, amp: Amp) -> Evaluator:
    """The evaluator of one split."""
    examples = data.corpus.splits[name]
    collator = Collator.of(data.tokens[name], examples.labels, loaded.tokenizer, engine.batching)
    return Evaluator(task, data.corpus.label_names, data.criterion, collator, examples, amp)


def make_plan(data: Prepared, engine: Engine, debug: Debug, seed: int) -> Plan:
    """All updates of the run."""
    lengths = data.tokens["train"].lengths
    return Plan.of(lengths, engine.batching, engine.accumulate, seed, engine.duration, debug.steps)


def make_stepper(
    model: nn.Module,
    data: Prepared,
    loaded: Loaded,
    engine: Engine,
    plan: Plan,
    amp: Amp,
    objective: Objective,
    optimizer: Any,
    scheduler: Schedule,
    folder: Path,
    world: World = ALONE,
) -> Stepper:
    """What makes the updates; moves the model to the device."""
    model.to(amp.device)
    train = data.corpus.splits["train"]
    return Stepper(
        model=model,
        criterion=data.criterion,
        objective=objective,
        optimizer=optimizer(model),
        schedule=scheduler,
        plan=plan,
        collator=Collator.of(data.tokens["train"], train.labels, loaded.tokenizer, engine.batching),
        examples=train,
        amp=amp,
        clip=engine.clip,
        folder=folder,
        on_nan=engine.on_nan,
        lag=_LAG if amp.device.type == "cuda" else 0,
        world=world,
    )


def describe_data(data: Prepared, plan: Plan, padding: float) -> str:
    """One paragraph on rows, lengths, padding and truncation."""
    rows = ", ".join(f"{len(examples):,} {name}" for name, examples in data.corpus.splits.items())
    train = data.tokens["train"]
    return (
        f"data: {rows} rows; {train.lengths.mean():.1f} tokens a text, padding {padding:.1%}, "
        f"truncated {train.truncated.mean():.1%}; {plan.per_epoch} updates an epoch, {plan.total} in all"
    )


def describe_trained(model: nn.Module, new: frozenset[str]) -> tuple[str, dict[str, int]]:
    """The table of what trains, and the two sums."""
    from whet.model.layers import describe_training

    rows = describe_training(model, new)
    total, trained = sum(row[1] for row in rows), sum(row[2] for row in rows)
    lines = [f"{'part':<18}{'parameters':>14}{'trained':>14}"]
    lines += [f"{part:<18}{count:>14,}{moving:>14,}" for part, count, moving in rows]
    lines.append(f"{'all':<18}{total:>14,}{trained:>14,}  ({trained / total:.2%})")
    if new:
        lines.append(f"newly initialised (always trained and saved): {', '.join(sorted(new))}")
    table = "\n".join(lines)
    return table, {
        "parameters": total,
        "trained_parameters": trained,
        "trained_tensors": len(trained_names(model)),
    }
