"""`whet data`: what a task's data holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

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
    engine: Engine,
    paths: Paths,
    debug: Debug,
    seed: int = 1,
    samples: NonNegativeInt = 10,
    output: str | None = None,
) -> str:
    """Counts, label balance, lengths, padding, truncation, findings of the audit, samples."""
    from whet.data.tokens import tokenize_splits
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
    if output is not None:
        Path(output).write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
    return render(found, shutil.get_terminal_size((100, 24)).columns)


def _padding(lengths: Rows, engine: Engine, seed: int) -> float:
    """Share of padding in one epoch under the engine's batching; a split may be empty."""
    from whet.engine.plan import Plan

    return Plan(lengths, engine.batching, engine.accumulate, seed, counts=(), total=0).padding()
