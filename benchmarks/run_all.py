"""Run the benchmarks one after the other, or one of them.

    make bench                                       all of them; the time left is shown
    make bench ARGS="--quick"                        all of them, small: shows that they run, measures nothing
    make bench ARGS="train_throughput --pairs 7"     one of them, with its own options
    make bench ARGS="train_throughput --help"        what it measures, and its options

Each prints a table with the median ratio over at least five interleaved rounds, and writes its JSON to
outputs/benchmarks/. Options without a name go to all of them (--pairs, --quick, --threads).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
OTHERS = {"common", "training", "run_all", "chaos", "methods", "regenerate"}
"""Files here that aren't benchmarks of speed."""


def names() -> list[str]:
    """Benchmarks, the central one first."""
    found = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in OTHERS)
    return sorted(found, key=lambda name: name != "train_throughput")


def run(name: str, options: Sequence[str]) -> int:
    """Exit code of one benchmark."""
    return subprocess.run([sys.executable, str(HERE / f"{name}.py"), *options], check=False).returncode


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 if all ran, whatever they measured."""
    known = names()
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"{(__doc__ or '').strip()}\n\nbenchmarks: {', '.join(known)}")
        return 0
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in known:
            print(f"{arguments[0]}: no such benchmark ({', '.join(known)})", file=sys.stderr)
            return 2
        return run(arguments[0], arguments[1:])
    failed = [name for name in known if run(name, arguments)]
    print(f"failed: {', '.join(failed)}" if failed else f"{len(known)} benchmarks ran")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
