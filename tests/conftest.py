"""Shared by all tests: one thread a process, a cache of their own, small tasks on disk."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")

import contextlib
import gc
import logging
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import forked

WORDS = {
    "positive": ["good", "great", "fine", "lovely", "superb"],
    "negative": ["bad", "awful", "dull", "poor", "dreadful"],
}


def pytest_configure(config: pytest.Config) -> None:
    """Processes of the tests are forks of one server (see tests/forked.py)."""
    if not hasattr(config, "workerinput"):
        forked.offer()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        forked.withdraw()


LONG = (
    "test_resume", "test_resume_methods", "test_requeue", "test_distributed", "test_sweep", "test_real", "test_any_app",
    "test_peers", "test_report", "test_train", "test_speed_settings", "test_on_batches", "test_peft",
)  # fmt: skip
"""Files that take longest: begun first, so that in the end no process works while the other has nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, in the order above."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that all tests of one pytest run share. Downloads stay in the user's cache (see `downloads`)."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "whet-test-cache"


@pytest.fixture(scope="session")
def downloads() -> Path:
    """The user's cache: real wheels are downloaded once per machine."""
    return Path(os.environ.get("WHET_CACHE", "~/.cache/whet")).expanduser()


def write_reviews(path: Path) -> Path:
    """A CSV of 60 tiny reviews, columns `review,stars` (1 bad, 5 good)."""
    rng = random.Random(3)
    lines = ["review,stars"]
    for number in range(60):
        label = "positive" if number % 2 else "negative"
        words = rng.choices(WORDS[label], k=3)
        lines.append(f"a {' '.join(words)} film {number},{5 if number % 2 else 1}")
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


@contextlib.contextmanager
def at_work(folder: Path, cache: Path) -> Iterator[Path]:
    """Make `folder` a user's, with `conf/task/mine.yaml` beside the CSV, and for a while the current directory."""
    reviews = write_reviews(folder / "own.csv")
    (folder / "conf" / "task").mkdir(parents=True)
    (folder / "conf" / "task" / "mine.yaml").write_text(TASK.format(path=reviews), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WHET_CACHE", str(cache))
        yield folder


@pytest.fixture
def workplace(tmp_path: Path, cache: Path) -> Iterator[Path]:
    """A user's folder with `conf/task/mine.yaml` beside the CSV; the current directory during the test."""
    with at_work(tmp_path, cache) as folder:
        yield folder


QUICK = [
    "task=mine",
    "model=tiny",
    "tracking=none",
    "engine.threads=1",
    "engine.duration=1ep",
    "engine.pictures=false",
]
"""Overrides that make a run on `workplace` take about a second."""


@pytest.fixture
def quick() -> list[str]:
    """Overrides for a run of about a second."""
    return list(QUICK)


_modules_seen = 0


@pytest.fixture(autouse=True)
def _modules_are_no_garbage() -> None:
    """Every run collects garbage first: a third of a second, were torch's and transformers' objects looked through."""
    global _modules_seen
    if len(sys.modules) > _modules_seen + 50:
        _modules_seen = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _loud() -> Iterator[None]:
    """A sweep in this process has its runs keep quiet; later tests' runs don't."""
    yield
    from whet.tracking.progress import be_quiet

    be_quiet(False)


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


def pytest_terminal_summary(terminalreporter) -> None:
    """How many combinations the property table held."""
    passed = terminalreporter.stats.get("passed", [])
    table = [report for report in passed if report.nodeid.startswith("tests/properties/")]
    if table:
        terminalreporter.write_line(f"property table: {len(table):,} combinations hold")
