"""Side-by-side measurements: rounds of contestants in turn, each in a fresh process, and their ratios.

A machine's speed drifts (heat, neighbours), so figures taken one after the other don't compare. Here every
contestant is measured once a round, in the order A B C in the first round and C B A in the next, and only
figures of one round are divided by each other. What is told is the median of the rounds' ratios, with an
interval for it that assumes nothing about how the ratios are distributed.
"""

from __future__ import annotations

import argparse
import atexit
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

Figures = dict[str, Any]
"""What one measurement yields: JSON."""
Derive = Callable[[list[Figures]], Figures]
RESULTS = Path("outputs/benchmarks")
Target = tuple[Literal[">=", "<="], float]
"""What a median should be."""
MARK = "figures: "


# ---------------------------------------------------------------- statistics


def orders(names: Sequence[str], rounds: int) -> list[list[str]]:
    """Who is measured when: A B C, then C B A, and so on, so that a steady drift favours nobody."""
    return [list(names) if number % 2 == 0 else list(names)[::-1] for number in range(rounds)]


def coverage(count: int, rank: int) -> float:
    """How surely the median lies between the `rank`-th smallest and largest (from 1) of `count` values.

    The number of values below the median is binomial(count, 1/2), whatever continuous distribution they
    come from (Thompson, 1936).
    """
    return 1 - 2 * sum(math.comb(count, k) for k in range(rank)) / 2**count


def median_interval(values: Sequence[float], confidence: float = 0.9) -> tuple[float, float, float]:
    """(low, high, how surely the median lies between): the narrowest pair of order statistics that will do.

    Where not even the smallest and largest reach `confidence`, it is they, and the last number says how
    much they are worth.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    ranked, count = sorted(values), len(values)
    ranks = [rank for rank in range(1, (count + 1) // 2 + 1) if coverage(count, rank) >= confidence]
    rank = max(ranks, default=1)
    return ranked[rank - 1], ranked[-rank], coverage(count, rank)


def compare(over: Sequence[float], under: Sequence[float]) -> Figures:
    """The ratios of paired figures: each, their median, its interval, and the whole spread."""
    found = [top / bottom for top, bottom in zip(over, under, strict=True)]
    low, high, sure = median_interval(found)
    return {
        "median": statistics.median(found),
        "interval": [low, high],
        "confidence": sure,
        "spread": [min(found), max(found)],
        "ratios": found,
    }


def remaining(todo: Sequence[str], taken: dict[str, list[float]]) -> float:
    """Seconds that `todo` will take, from what each took so far (one not yet seen: the mean of all)."""
    seen = [seconds for each in taken.values() for seconds in each]
    mean = sum(seen) / len(seen) if seen else math.nan
    return sum(sum(taken[name]) / len(taken[name]) if taken.get(name) else mean for name in todo)


# ---------------------------------------------------------------- races


@dataclass(frozen=True)
class Race:
    """Contestants that are compared by one figure."""

    title: str
    contestants: dict[str, Figures]
    """Name and the settings that its child process gets."""
    figure: str
    """Name of the figure compared."""
    unit: str
    reference: str | None = None
    """Who the others are compared with; None: the figures speak for themselves."""
    reference_on_top: bool = False
    """The ratio is reference / other (for rates), else other / reference (for times)."""
    targets: dict[str, Target] = field(default_factory=dict)
    """Contestant and what its median ratio (without a reference: its median) should be."""
    columns: dict[str, str] = field(default_factory=dict)
    """Further figures to show, and their formats: {"padding": ".1%"}."""
    also: tuple[str, ...] = ()
    """Columns whose median ratio (other / reference) is shown, too."""
    warm_up: int = 0
    """Rounds at the start that aren't counted."""


@dataclass(frozen=True)
class Options:
    """What every benchmark can be told."""

    pairs: int
    quick: bool
    threads: int
    out: Path
    only: tuple[str, ...] = ()
    """Contestants that take part beside the reference; empty: all."""


def take_part(race: Race, only: Sequence[str]) -> Race:
    """The race with the reference and the named contestants only.

    Raises:
        SystemExit: a name isn't a contestant's.
    """
    names = list(race.contestants)
    unknown = [name for name in only if name not in names]
    if unknown:
        raise SystemExit(f"--only {unknown[0]}: no such contestant in {race.title!r} ({', '.join(names)})")
    kept = {
        name: settings
        for name, settings in race.contestants.items()
        if not only or name in only or name == race.reference
    }
    return Race(**{**race.__dict__, "contestants": kept})


def run(races: Sequence[Race], options: Options, derive: Derive | None = None) -> list[Figures]:
    """Measure all races, print a table of each, write the JSON; returns the summaries.

    Args:
        races: one after the other.
        options: for all of them.
        derive: makes further figures of the summaries, to print and write.
    """
    script = Path(sys.argv[0]).resolve()
    chosen = [take_part(race, options.only) for race in races]
    told: list[Figures] = []
    for place, race in enumerate(chosen):
        note(f"{race.title} ({place + 1} of {len(chosen)})")
        rows = measure(race, options, lambda settings: child_process(script, settings, options.threads))
        told.append(summary(race, rows))
        show(told[-1], options)
        write(options.out, {**facts(options), "races": told})
    derived = derive(told) if derive is not None else {}
    for name, value in derived.items():
        print(f"{name}: {value}")
    write(options.out, {**facts(options), "races": told, "derived": derived})
    print(f"written to {options.out}")
    return told


def measure(race: Race, options: Options, one: Callable[[Figures], Figures]) -> list[Figures]:
    """Every measurement of a race: the figures of `one(settings)` with contestant and round."""
    plan = [
        (number - race.warm_up, name)
        for number, order in enumerate(orders(list(race.contestants), options.pairs + race.warm_up))
        for name in order
    ]
    rows: list[Figures] = []
    taken: dict[str, list[float]] = {}
    for done, (number, name) in enumerate(plan):
        started = time.perf_counter()
        figures = one({**race.contestants[name], "round": max(number, 0), "threads": options.threads})
        taken.setdefault(name, []).append(time.perf_counter() - started)
        if number >= 0:
            rows.append({"round": number, "contestant": name, **figures})
        left = remaining([later for _, later in plan[done + 1 :]], taken)
        told = f"{race.figure} {figures[race.figure]:.4g} {race.unit}"
        note(f"  [{done + 1}/{len(plan)}] {name}: {told}; about {clock(left)} left")
    return rows


def summary(race: Race, rows: Sequence[Figures]) -> Figures:
    """Median of each figure and the ratio to the reference, for every contestant."""
    of = {name: [row for row in rows if row["contestant"] == name] for name in race.contestants}
    base = of[race.reference] if race.reference is not None else None
    return {
        "title": race.title,
        "figure": race.figure,
        "unit": race.unit,
        "ratio": _ratio_name(race),
        "columns": race.columns,
        "also": race.also,
        "contestants": {name: entry(race, name, mine, base) for name, mine in of.items()},
        "measurements": list(rows),
    }


def entry(race: Race, name: str, mine: Sequence[Figures], base: Sequence[Figures] | None) -> Figures:
    """What is told of one contestant: `ratio` is that of its figure, or the figure itself without `base`."""
    found: Figures = {"settings": race.contestants[name]}
    found |= {column: typical(mine, column) for column in (race.figure, *race.columns)}
    values = [row[race.figure] for row in mine]
    if base is None:
        found["ratio"] = compare(values, [1.0] * len(values))
    elif name != race.reference:
        others = [row[race.figure] for row in base]
        found["ratio"] = compare(others, values) if race.reference_on_top else compare(values, others)
        found["also"] = {
            column: compare([row[column] for row in mine], [row[column] for row in base])
            for column in race.also
        }
    if name in race.targets and "ratio" in found:
        target = race.targets[name]
        found["target"] = {"is": list(target), "met": is_met(found["ratio"]["median"], target)}
    return found


def typical(rows: Sequence[Figures], column: str) -> float | None:
    """The median of a figure where it was measured."""
    known = [row[column] for row in rows if row.get(column) is not None]
    return statistics.median(known) if known else None


def is_met(value: float, target: Target) -> bool:
    """Whether a median is what it should be."""
    sign, bound = target
    return value >= bound if sign == ">=" else value <= bound


def _ratio_name(race: Race) -> str:
    if race.reference is None:
        return "median"
    return f"{race.reference} / it" if race.reference_on_top else f"it / {race.reference}"


# ---------------------------------------------------------------- child processes


def child_process(script: Path, settings: Figures, threads: int) -> Figures:
    """The figures that `script --child SETTINGS` prints last, run in a fresh process.

    Raises:
        SystemExit: it failed; its last messages are shown.
    """
    return parse(spawn([sys.executable, str(script), "--child", json.dumps(settings)], threads))


def prepared(threads: int, **settings: Any) -> Figures:
    """What `child` of the running script says to `{"contestant": "prepare"}`, given a folder for its files.

    The folder goes when this process ends.
    """
    folder = tempfile.mkdtemp(prefix="whet-benchmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    note("preparing …")
    told = {**settings, "contestant": "prepare", "folder": folder, "threads": threads}
    return child_process(Path(sys.argv[0]).resolve(), told, threads)


def spawn(command: Sequence[str], threads: int, folder: Path | None = None) -> str:
    """Run a command with so many threads; its standard output.

    Raises:
        SystemExit: it failed; its last messages are shown.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as messages:
        done = subprocess.run(
            list(command), stdout=subprocess.PIPE, stderr=messages, text=True, cwd=folder,
            env=environment(threads), check=False,
        )  # fmt: skip
        if done.returncode:
            messages.seek(0)
            tail = messages.read()[-3000:]
            raise SystemExit(f"{tail}\nfailed ({done.returncode}): {' '.join(command)}")
    return done.stdout


def environment(threads: int) -> dict[str, str]:
    """The same for all: thread counts set, no network, no trackers, no warnings."""
    return {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "PYTHONWARNINGS": "ignore",
    }


def parse(output: str) -> Figures:
    """The figures among what a child printed.

    Raises:
        SystemExit: there are none.
    """
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    if not lines:
        raise SystemExit(f"a child process printed no figures but: {output[-500:]!r}")
    figures: Figures = json.loads(lines[-1].removeprefix(MARK))
    return figures


# ---------------------------------------------------------------- telling


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """`8 s`, `4 min`, `2.5 h`."""
    if math.isnan(seconds):
        return "an unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show(told: Figures, options: Options) -> None:
    """Print the table of one race."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=told["title"], title_justify="left")
    table.add_column("", no_wrap=True)
    for title in (*_titles(told), "interval", "target"):
        table.add_column(title, justify="right")
    for name, found in told["contestants"].items():
        table.add_row(name, *_cells(told, found, options.quick))
    quick = "; --quick only shows that it runs" if options.quick else ""
    table.caption = f"medians of {options.pairs} interleaved rounds, {options.threads} threads{quick}"
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def _titles(told: Figures) -> Iterator[str]:
    yield f"{told['figure']}, {told['unit']}".replace("_", " ")
    for column in told["columns"]:
        yield column.replace("_", " ")
        if column in told["also"]:
            yield f"… {told['ratio']}"
    yield told["ratio"]


def _cells(told: Figures, found: Figures, quick: bool) -> Iterator[str]:
    yield f"{found[told['figure']]:.4g}"
    for column, form in told["columns"].items():
        yield "" if found[column] is None else format(found[column], form)
        if column in told["also"]:
            yield f"{found['also'][column]['median']:.3f}" if "also" in found else ""
    ratio = found.get("ratio")
    yield "" if ratio is None else f"{ratio['median']:.3f}"
    yield "" if ratio is None else interval(ratio)
    target = found.get("target")
    verdict = "" if quick or target is None else ": met" if target["met"] else ": missed"
    yield "" if target is None else f"{target['is'][0]} {target['is'][1]:g}{verdict}"


def interval(ratio: Figures) -> str:
    """`1.02 to 1.11 (94%)`: the median's interval and how sure it is."""
    low, high = ratio["interval"]
    return f"{low:.3f} to {high:.3f} ({ratio['confidence']:.0%})"


def facts(options: Options) -> Figures:
    """Machine, versions, date and options: what a figure means nothing without."""
    from whet.engine.run import git_state, hardware, versions

    return {
        "name": options.out.stem,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "machine": {**hardware(), "cpu": cpu(), "load": os.getloadavg()[0]},
        "versions": versions(),
        "git": git_state(),
        "pairs": options.pairs,
        "threads": options.threads,
        "quick": options.quick,
    }


def cpu() -> str:
    """The processor's name and what it is known for."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {name.strip(): value.strip() for name, value in facts.items()}
    useful = [
        flag
        for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        if flag in found.get("flags", "").split()
    ]
    return (
        f"{found.get('model name') or platform.processor() or platform.machine()} {' '.join(useful)}".strip()
    )


def write(path: Path, found: Figures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- command line


def parser(name: str, text: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    made = argparse.ArgumentParser(
        prog=f"python benchmarks/{name}.py",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--pairs", type=int, default=5, help="interleaved rounds (default 5)")
    made.add_argument(
        "--quick", action="store_true", help="one small round: shows that it runs, measures nothing"
    )
    made.add_argument(
        "--threads", type=int, default=cores(), help="of every contestant (default: one a core)"
    )
    made.add_argument("--out", type=Path, help=f"JSON file (default {RESULTS}/{name}.json, or …-quick.json)")
    made.add_argument(
        "--only", type=listed, default=(), metavar="A,B", help="contestants beside the reference"
    )
    made.add_argument("--child", help=argparse.SUPPRESS)
    made.set_defaults(name=name)
    return made


def listed(text: str) -> tuple[str, ...]:
    """`a,b` as names."""
    return tuple(name for name in text.split(",") if name)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def options_of(given: argparse.Namespace) -> Options:
    if given.pairs < 1 or given.threads < 1:
        raise SystemExit("--pairs and --threads must be at least 1")
    out = given.out or RESULTS / f"{given.name}{'-quick' if given.quick else ''}.json"
    return Options(1 if given.quick else given.pairs, given.quick, given.threads, out, given.only)


def main(
    made: argparse.ArgumentParser,
    races: Callable[[argparse.Namespace], Sequence[Race]],
    child: Callable[[Figures], Figures],
    derive: Derive | None = None,
) -> int:
    """Be the child if asked to, else run the races that the arguments ask for."""
    given = made.parse_intermixed_args()
    if given.child is not None:
        settings = json.loads(given.child)
        print(MARK + json.dumps(child(settings)), flush=True)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that folders of ours go
    run(races(given), options_of(given), derive)
    return 0
