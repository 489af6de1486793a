"""What a small language model makes of 200 sentences, and how many a finished run still calls by their label.

SmolLM2-135M-Instruct rewrites training sentences of Rotten Tomatoes, told their label; a finished run judges
originals and copies. It has seen the originals in training, so its agreement with them says what the most is
that a copy can reach. The second pass over the same sentences comes from the cache.

    python benchmarks/regenerate.py run=outputs/runs/RUN            docs/regenerate.md, with the first 12 rows
    python benchmarks/regenerate.py run=outputs/runs/RUN rows=1000
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "regenerate.md"
SAMPLES = 12


def measured(run: str, rows: int) -> dict[str, Any]:
    """Texts before and after, the judge's decisions on both, seconds of both passes."""
    import numpy as np

    from whet.augmentation.base import Item, Surroundings
    from whet.augmentation.regenerate import judge
    from whet.config import build, compose
    from whet.engine.train import Parts

    parts = build(compose("train", ["augmentation=regenerate"]), Parts)()
    corpus = parts.task.load(parts.paths)
    some = corpus.sample(rows, seed=1).splits["train"]
    around = Surroundings(parts.paths, corpus.label_names)
    both = enumerate(zip(some.texts, some.labels, strict=True))
    items = [Item(texts, label, (1, row)) for row, (texts, label) in both]
    change, seconds, made = parts.augmentation.changer(around), [], []
    for _ in range(2):
        started = time.perf_counter()
        made = change(items)
        seconds.append(time.perf_counter() - started)
    decide = judge(run, around)
    return {
        "names": corpus.label_names, "labels": some.labels, "before": some.texts, "after": made,
        "seconds": seconds,
        "right_before": np.asarray(decide(some.texts)) == some.labels,
        "right_after": np.asarray(decide(made)) == some.labels,
    }  # fmt: skip


def page(found: dict[str, Any]) -> str:
    """docs/regenerate.md."""
    count = len(found["before"])
    changed = sum(a != b for a, b in zip(found["before"], found["after"], strict=True))
    rows = [
        f"| {found['names'][label]} | {cell(before)} | {cell(after)} | {'yes' if kept else 'no'} |"
        for label, before, after, kept in list(
            zip(found["labels"], found["before"], found["after"], found["right_after"], strict=True)
        )[:SAMPLES]
    ]
    told = [
        "# Sentences rewritten by SmolLM2-135M-Instruct", "",
        "Made by `python benchmarks/regenerate.py run=RUN`: training sentences of Rotten Tomatoes, rewritten",
        "by `augmentation=regenerate` as it comes, and judged by a finished run of `whet train` (MiniLM).",
        "",
        f"- {count} sentences, {changed} of them changed; {found['seconds'][0]:.0f} s on two cores,",
        f"  {found['seconds'][1]:.2f} s the second time (from the cache).",
        f"- The run gives their label to {found['right_before'].mean():.1%} of the originals (it was trained",
        f"  on them) and to {found['right_after'].mean():.1%} of the copies. `augmentation.filter_run=RUN`",
        f"  would leave {int((~found['right_after']).sum())} of the {count} as they were.", "",
        f"The first {SAMPLES} of them, not chosen:", "",
    ]  # fmt: skip
    return "\n".join([*told, "| label | sentence | rewritten | agrees |", "|---|---|---|---|", *rows, ""])


def cell(texts: Sequence[str]) -> str:
    return " / ".join(texts).replace("|", "\\|").replace("\n", " ")


def main(arguments: Sequence[str]) -> int:
    """Exit code."""
    given = dict(item.split("=", 1) for item in arguments if "=" in item)
    if "run" not in given or set(given) - {"run", "rows"}:
        print((__doc__ or "").strip())
        return 2
    PAGE.write_text(page(measured(given["run"], int(given.get("rows", 200)))), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
