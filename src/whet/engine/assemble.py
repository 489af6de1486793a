"""From config parts to what the loop needs: data, model, stepper, evaluators."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.augmentation.base import Augmentation, Surroundings, Training
from whet.data.batch import Collator
from whet.data.tokens import Tokens, texts_hash, tokenize_splits
from whet.engine.distributed import ALONE, World
from whet.engine.evaluate import Evaluator
from whet.engine.plan import Plan
from whet.engine.step import Objective, Schedule, Stepper
from whet.errors import DataError, ModelError
from whet.peft.base import trained_names
from whet.randomness import untouched

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
    """As it was loaded."""
    training: Training
    """The rows that are trained on."""
    tokens: dict[str, Tokens]
    """Of every split; those of `training` under `train`."""
    criterion: Criterion

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each split's texts; of the training split's with all copies."""
        splits = {**self.corpus.splits, "train": self.training.examples}
        return {name: texts_hash(examples.texts) for name, examples in splits.items()}


def prepare(
    task: Task,
    corpus: Corpus,
    loaded: Loaded,
    augmentation: Augmentation,
    paths: Paths,
    seed: int,
    epochs: Callable[[int], int],
) -> Prepared:
    """Augment the training rows, tokenise every split.

    Args:
        task: says how rows are cut and weighted; class weights come from the original rows.
        corpus: the rows.
        loaded: the model, for its tokenizer.
        augmentation: makes the rows that are trained on.
        paths: of the caches.
        seed: of the augmentation.
        epochs: how many epochs the run has at most, for so many rows an epoch.

    Raises:
        DataError: a split is missing or empty.
    """
    for name in ("train", "validation", "test"):
        if name not in corpus.splits or not len(corpus.splits[name]):
            raise DataError("task.split", f"no rows for the {name} split; split.{name} sets its share", "")
    train = corpus.splits["train"]
    around = Surroundings(paths, corpus.label_names)
    with untouched():
        training = augmentation.training(train, around, seed, epochs)
    limit, folder, room = max_length(task, loaded), loaded.located.folder, paths.cached("tokens")
    splits = {**corpus.splits, "train": training.examples}
    tokens = tokenize_splits(splits, loaded.tokenizer, limit, folder, room, loaded.prompt)
    return Prepared(corpus, training, tokens, task.criterion(train.labels, corpus.label_names))


def max_length(task: Task, loaded: Loaded) -> int:
    """The task's length, within what the model has positions for."""
    from whet.model.layers import positions

    usable = positions(loaded.model.config) or task.max_length
    if 0 < usable < task.max_length:
        log.warning(
            "task.max_length=%d: the model has %d positions; texts are cut there", task.max_length, usable
        )
        return usable
    return task.max_length


def check_room(task: Task, loaded: Loaded, model: nn.Module) -> None:
    """See whether the longest texts leave room for the soft tokens of a prompt.

    Raises:
        ModelError: they don't.
    """
    from whet.model.layers import positions
    from whet.peft.prompt import soft_tokens

    room, soft = positions(loaded.model.config), soft_tokens(model)
    if soft and room is not None and max_length(task, loaded) + soft > room:
        problem = f"the model has {room} positions, and peft.tokens takes {soft} of them: set {room - soft}"
        raise ModelError("task.max_length", problem, task.max_length)


def evaluator(name: str, task: Task, data: Prepared, loaded: Loaded, engine: Engine, amp: Amp) -> Evaluator:
    """The evaluator of one split."""
    examples = data.corpus.splits[name]
    collator = Collator.of(data.tokens[name], examples.labels, loaded.tokenizer, engine.batching)
    return Evaluator(task, data.corpus.label_names, data.criterion, collator, examples, amp)


def make_plan(data: Prepared, engine: Engine, debug: Debug, seed: int) -> Plan:
    """All updates of the run."""
    lengths, editions = data.tokens["train"].lengths, data.training.editions
    return Plan.of(lengths, engine.batching, engine.accumulate, seed, engine.duration, debug.steps, editions)


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
    train = data.training.examples
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
    added = len(data.training.examples) - len(data.corpus.splits["train"])
    copies = f", {added:,} rows added by augmentation" if added else ""
    return (
        f"data: {rows} rows{copies}; {train.lengths.mean():.1f} tokens a text, padding {padding:.1%}, "
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
