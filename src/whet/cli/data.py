"""`whet data`: what a task's data holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from whet.evaluation.describe import describe, render

    corpus = debug.cut(task.load(paths), seed)
    tokens = _tokens(task, model, corpus, paths)
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


def _tokens(task: Task, model: Encoder, corpus: Any, paths: Paths) -> dict[str, Any]:
    from whet.data.tokens import tokenize, tokenizer_hash

    tokenizer, located = model.tokenizer(paths)
    source, room = tokenizer_hash(located.folder), paths.cached("tokens")
    return {
        name: tokenize(examples.texts, tokenizer, task.max_length, source, room)
        for name, examples in corpus.splits.items()
    }


def _padding(lengths: Any, engine: Engine, seed: int) -> float:
    """Share of padding under the engine's batching."""
    import numpy as np

    windows = engine.batching.windows(lengths, engine.accumulate, np.random.default_rng([seed, 0]))
    return engine.batching.padding(lengths, [rows for window in windows for rows in window])
