"""Kill, interrupt and damage runs at random; every one must end exactly like the one left in peace.

    make chaos                         everything, on all cores
    make chaos ARGS="--scale 0.1"      a tenth of it; --jobs 1: one run at a time; --seed 7: other numbers

    50 × kill -9 at a random time, one kill -9 at every file boundary inside a save, 20 × SIGTERM
    200 flipped bits, 50 truncations and each file deleted once, in the newest checkpoint of a killed run
    30 × RLIMIT_FSIZE from the third save on, 10 × a loss that becomes NaN

After each, the same command with `resume=auto` must come to the same end: the SHA-256 of the final weights,
of the optimizer with all random generators, and of the log of every step equal those of the undisturbed run.
The counts are printed and written to outputs/chaos.json; the exit code is 1 if one of them isn't full.

The run: a tiny model with dropout, accumulation, early stopping, a checkpoint every three updates. Every run
is a forked child of a process that has imported everything, so a kill is a real one and a run costs a second.
To save time the runs draw no pictures.
"""

from __future__ import annotations

import os

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # a process that forks has one thread
}

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import math
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEYS = [
    "task=mine", "model=tiny", "tracking=local", "~tracking.sinks.tensorboard",
    "tracking.sinks.console.progress=off", "tracking.log_every=1", "name=run",
    "engine.duration=6ep", "engine.batching.size=4", "engine.accumulate=2", "engine.evaluate_every=5st",
    "engine.patience=4", "engine.min_delta=1.0", "engine.checkpoint_every=3st", "engine.precision=fp32",
    "engine.threads=1", "engine.pictures=false", "optimizer.lr=5e-3",
]  # fmt: skip
"""No accuracy gets better by more than 1, so early stopping ends the run at its fifth evaluation, step 25."""
LAST = 25
TASK = """# reviews
_target_: whet.task.single_label.SingleLabel
name: mine
data: {_target_: whet.data.files.Files, path: own.csv}
"""
TIMING = ("time", "train/tokens_per_second")
SAVE = 3
"""The save at whose file boundaries a run is killed, and after which the disk is full."""
Arm = Callable[[], None]
Facts = dict[str, Any]
"""What a trial found: checks that must hold (true or false) and remarks that are counted (text)."""


# ---------------------------------------------------------------- runs


def make_workplace(folder: Path) -> None:
    """A task of 80 rows; the current directory from now on."""
    (folder / "conf/task").mkdir(parents=True)
    (folder / "conf/task/mine.yaml").write_text(TASK, encoding="utf-8")
    rng = random.Random(0)
    words = {0: ["bad", "awful", "dull", "poor"], 1: ["good", "great", "fine", "lovely"]}
    rows = [f"a {' '.join(rng.choices(words[n % 2], k=4))} film {n},{n % 2}" for n in range(80)]
    (folder / "own.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    os.environ["WHET_CACHE"] = f"{folder}/cache"
    os.chdir(folder)


def train(home: Path, *more: str) -> int:
    """`whet train` with outputs in `home`; the same command starts and goes on."""
    from whet.cli.main import main

    return main(["train", *KEYS, f"paths.output={home}", "resume=auto", *more])


def forked(work: Callable[[], int], log: Path | int) -> int:
    """Process id of a child that does `work` and nothing else; `log` gets its stderr."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        stderr = log if isinstance(log, int) else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(stderr, 2)
        code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def start(home: Path, arm: Arm | None = None, *more: str, log: int | None = None) -> int:
    """Fork a run; `arm` is called in the child first."""

    def work() -> int:
        if arm is not None:
            arm()
        return train(home, *more)

    return forked(work, home.with_suffix(".log") if log is None else log)


def wait(pid: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(home: Path, arm: Arm | None = None, *more: str) -> int:
    """Exit code of a forked run."""
    return wait(start(home, arm, *more))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def end_of(home: Path) -> dict[str, str] | None:
    """What the only run in `home` came to; None if it isn't finished, or not the only one."""
    records = list(home.glob("runs/*/run.json"))
    if len(records) != 1:
        return None
    record, folder = json.loads(records[0].read_text(encoding="utf-8")), records[0].parent
    if record["status"] != "finished":
        return None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    log = [{name: value for name, value in line.items() if name not in TIMING} for line in lines]
    steps = [line["step"] for line in log if "train/loss" in line]
    return {
        "weights": record["hashes"]["final"]["model.safetensors"],
        "optimizer and generators": record["hashes"]["final"]["training.safetensors"],
        "log of every step": sha256(json.dumps(log).encode()),
        "exported model": sha256(next(folder.glob("model/*.safetensors")).read_bytes()),
        "steps": "each once" if steps == list(range(1, LAST + 1)) else str(steps),
        "metrics": json.dumps(record["metrics"]),
    }


def same_end(home: Path, whole: dict[str, str]) -> bool:
    """Go on by itself if need be; whether it ends like the undisturbed run."""
    if end_of(home) is None:
        run(home)
    return end_of(home) == whole


def newest(home: Path) -> Path:
    """The newest checkpoint of the only run."""
    return max(home.glob("runs/run/checkpoints/step-*"))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def told(home: Path) -> str:
    """The run's own log."""
    return "".join(path.read_text(encoding="utf-8") for path in home.glob("runs/*/train.log"))


# ---------------------------------------------------------------- kills and signals


def signalled(
    home: Path, rng: random.Random, whole: dict[str, str], which: signal.Signals, length: float, begun: bool
) -> Facts:
    """One run that gets a signal at a random time, with `begun` once its folder is there, and goes on."""
    while True:
        pid, delay = start(home), rng.uniform(0, length)
        ended = begun and not await_folder(home, pid)
        time.sleep(0 if ended else delay)
        if not ended and os.waitpid(pid, os.WNOHANG) == (0, 0):
            break
        length = min(length, delay)  # it had ended already: that's no test
        shutil.rmtree(home)
    os.kill(pid, which)
    code = wait(pid)
    facts: Facts = {f"hit {phase(home)}": "yes"}
    if which == signal.SIGTERM and code == 128 + which:
        record = json.loads((home / "runs/run/run.json").read_text(encoding="utf-8"))
        facts["stopped at a step boundary, its state saved"] = "yes"
        facts["status is interrupted"] = record["status"] == "interrupted"
    return facts | {"same end": same_end(home, whole)}


def await_folder(home: Path, pid: int) -> bool:
    """Wait until a run has its folder; whether it still runs then."""
    while not (home / "runs/run/run.json").is_file():
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return False
        time.sleep(0.001)
    return True


def phase(home: Path) -> str:
    """Where a run was when it died."""
    folder = home / "runs/run"
    if not (folder / "run.json").is_file():
        return "while loading"
    if list(folder.glob("checkpoints/.step-*")):
        return "inside a save"
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if record["status"] == "finished":
        return "after the end"
    return "while concluding" if record.get("steps") else "between saves"


def at_boundaries(stop: Callable[[str], object]) -> None:
    """Call `stop` around every file operation of the save numbered `SAVE`, removal of old ones included."""
    from whet.engine import image
    from whet.engine.saving import Save

    saves, active = 0, 0
    inner, sync, write = Save._written, os.fsync, image._write

    def written(self: Save, *arguments: Any) -> str | None:
        nonlocal saves, active
        saves += 1
        active = threading.get_ident() if saves == SAVE else 0
        problem = inner(self, *arguments)
        if active:
            stop("end")
        active = 0
        return problem

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() != active:
            return
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        if flags & (os.O_WRONLY | os.O_RDWR) or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            stop(event)

    def bordered(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            inside = threading.get_ident() == active
            if inside:
                stop(name)
            result = function(*arguments, **named)
            if inside:
                stop(f"after {name}")
            return result

        return call

    Save._written = written  # type: ignore[method-assign]
    os.fsync, image._write = bordered(sync, "fsync"), bordered(write, "write")
    sys.addaudithook(audit)


def count_boundaries(home: Path) -> int:
    """File boundaries inside one save."""
    found = home.with_suffix(".boundaries")

    def arm() -> None:
        handle = os.open(found, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        at_boundaries(lambda name: os.write(handle, b"."))

    if run(home, arm) != 0:
        raise SystemExit(f"chaos: a run failed: {home.with_suffix('.log').read_text(encoding='utf-8')}")
    return found.stat().st_size


def at_boundary(home: Path, rng: random.Random, whole: dict[str, str], number: int) -> Facts:
    """One run that is killed at one file boundary, and goes on."""

    def arm() -> None:
        left = iter(range(number, -1, -1))
        at_boundaries(lambda name: None if next(left) else os.kill(os.getpid(), signal.SIGKILL))

    code = run(home, arm)
    return {"killed there": code == -signal.SIGKILL, "same end": same_end(home, whole)}


# ---------------------------------------------------------------- damage


def leave_killed(home: Path) -> None:
    """A run that was killed three updates before its end."""
    from whet.engine.step import Stepper

    def arm() -> None:
        inner = Stepper.update

        def dying(self: Stepper, plan: Any) -> Any:
            if plan.step == LAST - 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(self, plan)

        Stepper.update = dying  # type: ignore[method-assign]

    if run(home, arm) != -signal.SIGKILL:
        raise SystemExit(f"chaos: a run failed: {home.with_suffix('.log').read_text(encoding='utf-8')}")


def damaged(
    home: Path, rng: random.Random, whole: dict[str, str], source: Path, how: str, name: str | None
) -> Facts:
    """A copy of a killed run with one file of its newest checkpoint wounded (a random one without `name`)."""
    shutil.copytree(source, home)
    place = newest(home)
    previous = sorted(place.parent.glob("step-*"))[-2]
    path = place / (name or rng.choice(sorted(file.name for file in place.iterdir())))
    wound(path, how, rng)
    same = same_end(home, whole)
    log = told(home)
    return {
        "named": f"{place.name} is not used: {path.name} is" in log,
        "previous good one used": f"resuming after step {step_of(previous)} of" in log,
        "same end": same,
    }


def wound(path: Path, how: str, rng: random.Random) -> None:
    """Flip a random bit of a file, cut it at a random place, or delete it."""
    data = bytearray(path.read_bytes())
    if how == "flip":
        bit = rng.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    else:
        path.unlink()


# ---------------------------------------------------------------- full disks and NaN


def full_disk(home: Path, rng: random.Random, whole: dict[str, str], limit: int, then: str) -> Facts:
    """From the third save on no file may be larger than `limit` bytes; later there's room again."""
    from whet.engine.checkpoint import damage

    def arm() -> None:
        from whet.engine.saving import Save

        inner, saves = Save._written, iter(range(1, 1000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        def limited(self: Save, *arguments: Any) -> str | None:
            if next(saves) == SAVE:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            return inner(self, *arguments)

        Save._written = limited  # type: ignore[method-assign]

    code, stderr = heard(home, arm, f"engine.on_save_error={then}")
    kept = sorted(home.glob("runs/run/checkpoints/step-*"))
    facts: Facts = {
        "says so": "can't be written" in stderr,
        "no traceback, exit code 1 or a good end": code in (0, 1) and "Traceback" not in stderr,
        "last good one kept": bool(kept) and damage(kept[-1]) is None,
    }
    if then == "go_on":
        facts["goes on to the last step"] = f"early stop at step {LAST}" in stderr
        if code == 0:  # there was room for the model; the best of the evaluations that were saved
            return facts | {"the model could be exported": "yes"}
    return facts | {"same end once there's room": same_end(home, whole)}


def heard(home: Path, arm: Arm, *more: str) -> tuple[int, str]:
    """Exit code and stderr of a run, through a pipe: it knows no limit."""
    read, write = os.pipe()
    pid = start(home, arm, *more, log=write)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as stream:
        text = stream.read()
    home.with_suffix(".log").write_text(text, encoding="utf-8")
    return wait(pid), text


def not_a_number(home: Path, rng: random.Random, whole: dict[str, str]) -> Facts:
    """The loss of one step becomes NaN; the next time it doesn't."""
    step = rng.randrange(1, LAST + 1)

    def arm() -> None:
        from whet.engine.step import Stepper

        inner, update, now = Stepper._backward, Stepper.update, [0]

        def counted(self: Stepper, plan: Any) -> Any:
            now[0] = plan.step + 1
            return update(self, plan)

        Stepper.update = counted  # type: ignore[method-assign]
        Stepper._backward = lambda s, *a: inner(s, *a) * (math.nan if now[0] == step else 1)  # type: ignore

    code = run(home, arm)
    path = home / "runs/run/nonfinite.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    facts = {
        "caught at its step, with the rows": code == 1 and found.get("step") == step and bool(found["ids"]),
        "no checkpoint of it": all(step_of(path) < step for path in home.glob("runs/run/checkpoints/s*")),
    }
    return facts | {"same end without it": same_end(home, whole)}


# ---------------------------------------------------------------- the experiment


@dataclass
class Trial:
    """One disturbed run: an experiment's name and `work(home, rng, whole)`."""

    group: str
    number: int
    work: Callable[[Path, random.Random, dict[str, str]], Facts]


def trials(scale: float, boundaries: int, length: float, source: Path) -> list[Trial]:
    """All disturbed runs of the experiment, in order; at a smaller scale a few of each kind."""

    def many(count: int) -> range:
        return range(max(1, round(count * scale)))

    files = sorted(file.name for file in newest(source).iterdir())
    sizes = sorted(file.stat().st_size for file in newest(source).iterdir())
    flip, cut, delete = (functools.partial(damaged, source=source, how=h) for h in ("flip", "cut", "delete"))
    limits = [round(sizes[-1] ** (place / 30)) - 1 for place in range(1, 31)]  # up to all but a byte
    kill = functools.partial(signalled, which=signal.SIGKILL, length=length)
    term = functools.partial(signalled, which=signal.SIGTERM, length=length)
    at: list[dict[str, Any]] = [
        {"begun": False},
        {"begun": True, "length": length / 2},
    ]  # by turns: half the time a run but loads
    plan: list[tuple[str, list[Callable[..., Facts]]]] = [
        ("kill -9 at a random time", [functools.partial(kill, **at[n % 2]) for n in many(50)]),
        ("kill -9 at a file boundary of a save",
         [functools.partial(at_boundary, number=n) for n in thin(range(boundaries), scale)]),
        ("SIGTERM at a random time", [functools.partial(term, **at[(n + 1) % 2]) for n in many(20)]),
        ("bit flipped", [functools.partial(flip, name=None) for _ in many(200)]),
        ("file truncated", [functools.partial(cut, name=None) for _ in many(50)]),
        ("file deleted", [functools.partial(delete, name=name) for name in thin(files, scale)]),
        ("RLIMIT_FSIZE",
         [functools.partial(full_disk, limit=limit, then=then)
          for limit, then in zip(thin(limits, scale), itertools.cycle(["stop", "go_on"]), strict=False)]),
        ("NaN at a random step", [not_a_number for _ in many(10)]),
    ]  # fmt: skip
    return [Trial(group, number, work) for group, works in plan for number, work in enumerate(works)]


def thin(items: Any, share: float) -> list[Any]:
    """An even choice of a share of the items, at least one, the last included."""
    count = max(1, round(len(items) * min(share, 1.0)))
    return [items[(place + 1) * len(items) // count - 1] for place in range(count)]


def prepare(folder: Path) -> dict[str, str]:
    """Run once in this process, so that children inherit what is loaded; how it ends."""
    import torch
    import tqdm

    torch.set_num_interop_threads(1)
    tqdm.tqdm.monitor_interval = 0
    log = folder / "warm.log"
    with log.open("w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        code = train(folder / "warm")
    whole = end_of(folder / "warm")
    if code != 0 or whole is None:
        raise SystemExit(f"chaos: the undisturbed run failed: {log.read_text(encoding='utf-8')}")
    status = Path("/proc/self/status")
    threads = status.read_text().partition("Threads:")[2].split()[0] if status.is_file() else "1"
    if threads != "1":
        raise SystemExit(f"chaos: {threads} threads run in the process to fork from; a child could hang")
    return whole


def length_of(folder: Path, whole: dict[str, str], jobs: int) -> float:
    """Seconds of an undisturbed run while as many others run; all must end the same."""
    seconds, running = [], {}
    for number in range(max(2, jobs)):
        running[start(folder / f"whole-{number}")] = time.perf_counter()
    while running:
        pid, status = os.wait()
        seconds.append(time.perf_counter() - running.pop(pid))
        if status != 0:
            raise SystemExit("chaos: an undisturbed run failed")
    for number in range(max(2, jobs)):
        if end_of(folder / f"whole-{number}") != whole:
            raise SystemExit("chaos: the same run twice ends differently")
    return statistics.median(seconds)


def perform(trial: Trial, folder: Path, seed: int, whole: dict[str, str]) -> int:
    """In a child: do one trial, write down what it found, clean up if all is well."""
    home = folder / f"{trial.group.replace(' ', '-')}-{trial.number}"
    rng = random.Random(f"{seed} {trial.group} {trial.number}")
    facts = trial.work(home, rng, whole)
    (folder / f"{home.name}.json").write_text(json.dumps(facts), encoding="utf-8")
    if all(value for value in facts.values()):
        shutil.rmtree(home)
    return 0


def conduct(planned: list[Trial], folder: Path, seed: int, whole: dict[str, str], jobs: int) -> list[Facts]:
    """Do all trials, so many at a time; what each found, `{"trial ended": False}` for one that broke."""
    waiting, running = list(enumerate(planned)), dict[int, int]()
    facts: list[Facts] = [{"trial ended": False} for _ in planned]
    show = Progress(len(planned))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                place, trial = waiting.pop(0)
                work = functools.partial(perform, trial, folder, seed, whole)
                running[forked(work, folder / "trials.log")] = place
            pid, _ = os.wait()
            place = running.pop(pid)
            trial = planned[place]
            path = folder / f"{trial.group.replace(' ', '-')}-{trial.number}.json"
            if path.is_file():
                facts[place] = json.loads(path.read_text(encoding="utf-8"))
            show(trial, all(facts[place].values()))
    finally:
        for pid in running:
            os.kill(pid, signal.SIGTERM)
    return facts


class Progress:
    """A line on stderr every few seconds: how many, what, how long still."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.missed = total, 0, 0
        self.started = self.shown = time.perf_counter()

    def __call__(self, trial: Trial, good: bool) -> None:
        self.done, self.missed = self.done + 1, self.missed + (not good)
        now = time.perf_counter()
        if good and self.done < self.total and now - self.shown < 5:
            return
        self.shown, spent = now, now - self.started
        left = spent / self.done * (self.total - self.done)
        state = f"{self.missed} missed" if self.missed else "all as it must be"
        what = trial.group if good else f"{trial.group}, number {trial.number}: MISSED"
        line = f"{self.done:>4}/{self.total}  {spent:4.0f} s, {left:4.0f} s to go  {state}  ({what})"
        print(line, file=sys.stderr, flush=True)


def counts(planned: list[Trial], facts: list[Facts]) -> tuple[dict[str, str], dict[str, int]]:
    """`group: check` → `good/all`, and how often each remark was made."""
    good: Counter[str] = Counter()
    every: Counter[str] = Counter()
    remarks: Counter[str] = Counter()
    for trial, found in zip(planned, facts, strict=True):
        for name, value in found.items():
            key = f"{trial.group}: {name}"
            if isinstance(value, str):
                remarks[key] += 1
            else:
                good[key] += value
                every[key] += 1
    return {key: f"{good[key]}/{every[key]}" for key in every}, dict(remarks)


def experiment(folder: Path, scale: float, seed: int, jobs: int) -> tuple[dict[str, Any], bool]:
    """Everything; the results by name, and whether all is as it must be."""
    started = time.perf_counter()
    whole = prepare(folder)
    length = length_of(folder, whole, jobs)
    boundaries = count_boundaries(folder / "boundaries")
    leave_killed(folder / "source")
    planned = trials(scale, boundaries, length, folder / "source")
    facts = conduct(planned, folder, seed, whole, jobs)
    checked, remarks = counts(planned, facts)
    fine = all(all(found.values()) for found in facts)
    results: dict[str, Any] = {**checked, **remarks}
    results |= {f"undisturbed run: {name}": value for name, value in whole.items()}
    results |= {
        "file boundaries inside a save": boundaries,
        "seconds of an undisturbed run": round(length, 2),
        "seconds in all": round(time.perf_counter() - started),
    }
    return results, fine


def show_problems(folder: Path) -> None:
    """What broken trials said, shortened."""
    for path in [folder / "trials.log", *sorted(folder.glob("*-*.json"))]:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if path.suffix == ".log" and text:
            print(text[-4000:], file=sys.stderr)
        elif "false" in text:
            log = path.with_suffix(".log")
            print(f"{path.stem}: {text}", file=sys.stderr)
            print(log.read_text(encoding="utf-8")[-6000:] if log.is_file() else "", file=sys.stderr)


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full counts")
    parser.add_argument("--jobs", type=int, default=cores, help="runs at a time (default: one a core)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/chaos.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = options(arguments)
    output = given.output.absolute()
    memory = Path("/dev/shm")  # a killed process needs no disk to lose what it hasn't written
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name).resolve()
        make_workplace(folder)
        results, fine = experiment(folder, given.scale, given.seed, max(1, given.jobs))
        if not fine:
            show_problems(folder)
        os.chdir(output.anchor)
    for key, value in results.items():
        print(f"{key:<76} {value}")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"written to {output}; {'all as it must be' if fine else 'FAILED'}")
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
