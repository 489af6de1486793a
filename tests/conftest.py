"""Shared by all tests: one thread a process, a cache of their own, small tasks on disk."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

WORDS = {
    "positive": ["good", "great", "fine", "lovely", "superb"],
    "negative": ["bad", "awful", "dull", "poor", "dreadful"],
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that all tests of one pytest run share. Downloads stay in the user's cache (see `downloads`)."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "whet-test-cache"


@pytest.fixture(scope="session")
def downloads() -> Path:
    """The user's cache: real wheels are downloaded once per machine."""
    return Path(os.environ.get("WHET_CACHE", "~/.cache/whet")).expanduser()


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A CSV of 60 tiny reviews, columns `review,stars` (1 bad, 5 good)."""
    rng = random.Random(3)
    lines = ["review,stars"]
    for number in range(60):
        label = "positive" if number % 2 else "negative"
        words = rng.choices(WORDS[label], k=3)
        lines.append(f"a {' '.join(words)} film {number},{5 if number % 2 else 1}")
    path = tmp_path / "own.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


TASK = """# My reviews
_target_: whet.task.single_label.SingleLabel
name: mine
data:
  _target_: whet.data.files.Files
  path: {path}
text: review
label: stars
"""


@pytest.fixture
def workplace(tmp_path: Path, reviews: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with `conf/task/mine.yaml` beside the CSV; the current directory during the test."""
    folder = tmp_path / "conf" / "task"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(TASK.format(path=reviews), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHET_CACHE", str(cache))
    return tmp_path


QUICK = ["task=mine", "model=tiny", "tracking=none", "engine.threads=1", "engine.duration=1ep"]
"""Overrides that make a run on `workplace` take about a second."""


@pytest.fixture
def quick() -> list[str]:
    """Overrides for a run of about a second."""
    return list(QUICK)


@pytest.fixture
def told() -> Iterator[list[str]]:
    """Every message that whet logs during the test."""
    found: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    ear = Ear()
    logging.getLogger("whet").addHandler(ear)
    yield found
    logging.getLogger("whet").removeHandler(ear)
