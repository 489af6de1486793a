"""`whet data`: what a task's data holds."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.augmentation.base import Augmentation, Copying, Surroundings, copies_of
from whet.cli.app import launch, listen
from whet.config import build, to_plain
from whet.debug import Debug
from whet.engine.engine import Engine
from whet.model.encoder import Encoder
from whet.paths import Paths
from whet.task.base import Task
from whet.types import NonNegativeInt

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from whet.engine.plan import Rows
    from whet.task.base import Corpus


def main(arguments: list[str]) -> int:
    """Describe one task's data."""
    for text in launch("data", run, arguments):
        print(text)
    return 0


def run(composed: DictConfig) -> str:
    """The Hydra task."""
    listen()
    return str(build(to_plain(composed), describe_data)())


def describe_data(
    *,
    task: Task,
    model: Encoder,
    augmentation: Augmentation,
    engine: Engine,
    paths: Paths,
    debug: Debug,
    seed: int = 1,
    samples: NonNegativeInt = 10,
    output: str | None = None,
) -> str:
    """Counts, label balance, lengths, padding, truncation, findings of the audit, samples, augmented rows."""
    from whet.data.tokens import tokenize_splits
    from whet.evaluation.changes import render_changes
    from whet.evaluation.describe import describe, render

    corpus = debug.cut(task.load(paths), seed)
    tokenizer, located = model.tokenizer(paths)
    room = paths.cached("tokens")
    tokens = tokenize_splits(corpus.splits, tokenizer, task.max_length, located.folder, room)
    found = describe(
        corpus.tables,
        {name: item.lengths for name, item in tokens.items()},
        {name: int(item.truncated.sum()) for name, item in tokens.items()},
        max_length=task.max_length,
        padding={name: _padding(item.lengths, engine, seed) for name, item in tokens.items()},
        findings=corpus.findings,
        sample_rows=samples,
        seed=seed,
    )
    columns = shutil.get_terminal_size((100, 24)).columns
    text = render(found, columns)
    if (changes := _changes(augmentation, corpus, paths, seed, samples)) is not None:
        found["augmentation"] = changes
        text += "\n" + render_changes(changes, columns)
    if output is not None:
        Path(output).write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
    return text


def _changes(
    augmentation: Augmentation, corpus: Corpus, paths: Paths, seed: int, samples: int
) -> dict[str, Any] | None:
    """Some training rows as the first epoch has them, and what that costs; None where nothing changes."""
    import numpy as np

    train = corpus.splits.get("train")
    if not isinstance(augmentation, Copying) or train is None or not samples or not len(train):
        return None
    drawn = np.random.default_rng(seed).permutation(len(train))[:samples]
    items = copies_of(train, augmentation.copies, (seed, 0))
    some = [items[copy * len(train) + row] for row in sorted(drawn) for copy in range(augmentation.copies)]
    began = time.perf_counter()
    change = augmentation.open(Surroundings(paths, corpus.label_names))
    change(some[:1])  # what loads late has loaded
    loaded = time.perf_counter()
    made = change(some)
    spent = time.perf_counter() - loaded
    rows = [
        {"id": f"{train.ids[item.key[2]]}#{item.key[3]}", "before": list(item.texts), "after": list(after)}
        for item, after in zip(some, made, strict=True)
    ]
    return {
        "loading_seconds": loaded - began,
        "milliseconds_per_text": 1000 * spent / len(some),
        "changed": sum(row["before"] != row["after"] for row in rows) / len(rows),
        "rows": rows,
    }


def _padding(lengths: Rows, engine: Engine, seed: int) -> float:
    """Share of padding in one epoch under the engine's batching; a split may be empty."""
    from whet.engine.plan import Plan

    return Plan(lengths, engine.batching, engine.accumulate, seed, counts=(), total=0).padding()
