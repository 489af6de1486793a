"""Kill, interrupt and damage runs at random; every one must end exactly like the one left in peace.

    make chaos            50 kills, 20 SIGTERMs, all boundaries of a save, 200 bit flips, 50 cuts, deletions,
                          30 file-size limits, 10 NaN steps; prints the counts and writes outputs/chaos.json

A tiny model with dropout, accumulation, early stopping and checkpoints every three updates. Each run is a
forked child, so that a run costs a second and a kill is a real `kill -9`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

KEYS = [
    "task=mine", "model=tiny", "tracking=local", "tracking.sinks.console.progress=off",
    "tracking.log_every=1",
    "engine.duration=10ep", "engine.batching.size=4", "engine.accumulate=2", "engine.evaluate_every=5st",
    "engine.patience=8", "engine.checkpoint_every=3st", "engine.precision=fp32", "engine.threads=1",
    "optimizer.lr=1e-3",
]  # fmt: skip
TASK = """# reviews
_target_: whet.task.single_label.SingleLabel
name: mine
data: {_target_: whet.data.files.Files, path: own.csv}
"""
TIMING = ("time", "train/tokens_per_second")


def make_workplace(folder: Path) -> None:
    (folder / "conf/task").mkdir(parents=True)
    (folder / "conf/task/mine.yaml").write_text(TASK, encoding="utf-8")
    rng = random.Random(0)
    words = {0: ["bad", "awful", "dull", "poor"], 1: ["good", "great", "fine", "lovely"]}
    rows = [f"a {' '.join(rng.choices(words[n % 2], k=4))} film {n},{n % 2}" for n in range(80)]
    (folder / "own.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    os.chdir(folder)


def child(arguments: list[str], before: Callable[[], None] | None = None) -> int:
    """Fork a process that runs `whet train`; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        if before is not None:
            before()
        from whet.cli.main import main

        code = main(["train", *arguments])
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def end_of(name: str) -> str | None:
    """All that a finished run says, as one string: hashes of weights, optimizer and generators; the log."""
    folder = Path("outputs/runs") / name
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if record["status"] != "finished":
        return None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    log = [{k: v for k, v in line.items() if k not in TIMING} for line in lines]
    return json.dumps([record["hashes"]["final"], record["metrics"], log])


def finish(name: str) -> None:
    """Go on by itself until the end."""
    if not (Path("outputs/runs") / name / "run.json").is_file():
        wait(child([*KEYS, f"name={name}"]))
    elif end_of(name) is None:
        wait(child([f"resume=outputs/runs/{name}"]))


def kills(number: int, which: int, rng: random.Random, length: float, whole: str) -> int:
    """Runs that were signalled at a random time and ended like the whole one."""
    good = 0
    for place in range(number):
        name = f"signal{which}-{place}"
        pid = child([*KEYS, f"name={name}"])
        time.sleep(rng.uniform(0.02, 0.95) * length)
        os.kill(pid, which)
        wait(pid)
        finish(name)
        good += end_of(name) == whole
    return good


def boundaries(whole: str) -> tuple[int, int]:
    """Killed at every file boundary inside a save: before each sync of the third save."""
    from whet.engine import checkpoint

    good, syncs = 0, 8

    for boundary in range(syncs):

        def arm(boundary: int = boundary) -> None:
            calls, sync = iter(range(10**6)), checkpoint._sync

            def killing(path: Path) -> None:
                if next(calls) == 2 * syncs + boundary:
                    os.kill(os.getpid(), signal.SIGKILL)
                sync(path)

            checkpoint._sync = killing

        name = f"boundary-{boundary}"
        wait(child([*KEYS, f"name={name}"], arm))
        finish(name)
        good += end_of(name) == whole
    return good, syncs


def damaged(number: int, how: str, rng: random.Random, whole: str, source: Path) -> tuple[int, int]:
    """(detected, ended identically) among copies of an interrupted run with one wounded file."""
    from whet.engine.checkpoint import Checkpoints, damage

    found = same = 0
    files = sorted(p.name for p in Checkpoints(source / "checkpoints").at(newest(source)).iterdir())
    for place in range(number if how != "delete" else len(files)):
        copy = source.with_name(f"{how}-{place}")
        shutil.copytree(source, copy)
        folder = Checkpoints(copy / "checkpoints").at(newest(copy))
        path = folder / (files[place] if how == "delete" else rng.choice(files))
        data = bytearray(path.read_bytes())
        if how == "flip":
            bit = rng.randrange(len(data) * 8)
            data[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(data)
        elif how == "cut":
            path.write_bytes(data[: rng.randrange(len(data))])
        else:
            path.unlink()
        found += damage(folder) is not None
        finish(copy.name)
        same += end_of(copy.name) == whole
        shutil.rmtree(copy)
    return found, same


def newest(folder: Path) -> int:
    from whet.engine.checkpoint import Checkpoints

    return Checkpoints(folder / "checkpoints").steps()[-1]


def full_disks(number: int, rng: random.Random, whole: str) -> int:
    """Runs under a file-size limit: what is kept stays good, and without the limit they end well."""
    good = 0
    for place in range(number):
        name, limit = f"disk-{place}", int(10 ** rng.uniform(4.2, 5.7))

        def arm(limit: int = limit) -> None:
            from whet.engine.callbacks import Save

            inner, state = Save._save, {"saves": 0}

            def limited(self: Save, now: object) -> None:
                state["saves"] += 1
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit if state["saves"] > 2 else hard, hard))
                inner(self, now)  # type: ignore[arg-type]
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

            Save._save = limited  # type: ignore[method-assign,assignment]

        wait(child([*KEYS, f"name={name}", "engine.on_save_error=stop"], arm))
        finish(name)
        good += end_of(name) == whole
    return good


def nans(number: int, rng: random.Random, last: int) -> int:
    """Steps made NaN that were stopped at, by name."""
    from whet.engine.step import Stepper

    good = 0
    for place in range(number):
        name, step = f"nan-{place}", rng.randrange(1, last)

        def arm(step: int = step) -> None:
            inner, update, now = Stepper._backward, Stepper.update, [0]

            def counted(self: Stepper, plan: object) -> object:
                now[0] = plan.step + 1  # type: ignore[attr-defined]
                return update(self, plan)  # type: ignore[arg-type]

            Stepper.update = counted  # type: ignore[method-assign,assignment]
            Stepper._backward = lambda s, r, w: inner(s, r, w) * (math.nan if now[0] == step else 1)  # type: ignore

        code = wait(child([*KEYS, f"name={name}"], arm))
        path = Path("outputs/runs") / name / "nonfinite.json"
        good += code == 1 and path.is_file() and json.loads(path.read_text())["step"] == step
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/chaos.json"))
    options = parser.parse_args()
    output = options.output.absolute()
    rng, started = random.Random(options.seed), time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        make_workplace(Path(folder))
        os.environ["WHET_CACHE"] = f"{folder}/cache"
        results = experiment(rng, options.scale)
    results["seconds"] = round(time.perf_counter() - started)
    for name, value in results.items():
        print(f"{name:<44} {value}")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1), encoding="utf-8")
    bad = [
        name for name, value in results.items() if "/" in str(value) and len(set(str(value).split("/"))) > 1
    ]
    print(f"written to {output}; " + (f"FAILED: {', '.join(bad)}" if bad else "all as it must be"))
    return 1 if bad else 0


def experiment(rng: random.Random, scale: float) -> dict[str, object]:
    def many(count: int) -> int:
        return max(1, round(count * scale))

    from whet.cli.main import main as whet

    with (
        Path("stderr.txt").open("w") as file,
        contextlib.redirect_stderr(file),
        contextlib.redirect_stdout(file),
    ):
        code = whet(["train", *KEYS, "name=warm"])  # in this process: children inherit what is loaded
    assert code == 0, Path("stderr.txt").read_text()
    start = time.perf_counter()
    assert wait(child([*KEYS, "name=whole"])) == 0
    length = time.perf_counter() - start
    whole = end_of("whole")
    assert whole is not None and whole == end_of("warm"), (
        f"the same run twice differs: {whole} {end_of('warm')}"
    )
    last = json.loads(Path("outputs/runs/whole/run.json").read_text())["steps"]
    found: dict[str, object] = {"updates of a run, seconds": (last, round(length, 2))}

    def tell(name: str, value: object) -> None:
        found[name] = value
        print(f"… {name}: {value}", file=sys.stderr, flush=True)

    tell(
        "kill -9 at a random time: same end",
        f"{kills(many(50), signal.SIGKILL, rng, length, whole)}/{many(50)}",
    )
    tell("kill -9 at a file boundary of a save", "{}/{}".format(*boundaries(whole)))
    tell(
        "SIGTERM at a random time: same end",
        f"{kills(many(20), signal.SIGTERM, rng, length, whole)}/{many(20)}",
    )
    source = interrupted(last)
    for how, count in (("flip", many(200)), ("cut", many(50)), ("delete", 5)):
        detected, same = damaged(count, how, rng, whole, source)
        tell(f"{how}: detected", f"{detected}/{count}")
        tell(f"{how}: previous one used, same end", f"{same}/{count}")
    tell("file-size limits: last good kept, same end", f"{full_disks(many(30), rng, whole)}/{many(30)}")
    tell("NaN steps: stopped at, by name", f"{nans(many(10), rng, last)}/{many(10)}")
    return found


def interrupted(last: int) -> Path:
    """A run that died in its second half."""
    from whet.engine.step import Stepper

    def arm() -> None:
        inner = Stepper.update

        def dying(self: Stepper, plan: object) -> object:
            if plan.step == last - 3:  # type: ignore[attr-defined]
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(self, plan)  # type: ignore[arg-type]

        Stepper.update = dying  # type: ignore[method-assign,assignment]

    wait(child([*KEYS, "name=source"], arm))
    return Path("outputs/runs/source").absolute()


if __name__ == "__main__":
    raise SystemExit(main())
