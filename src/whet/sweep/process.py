"""Peers and trials in processes of their own, whatever app they belong to.

What a process is to do goes to it as a file (cloudpickle, as submitit and joblib do it), so does what came
out. `python -m whet.sweep.process IN OUT` is its command; with `bound` after it, it doesn't outlive the one
that asked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.errors import Interrupted, WhetError, one_line
from whet.pending import remember
from whet.ranks import cores

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from whet.sweep.current import Current
    from whet.sweep.peer import Peer


@dataclass(frozen=True)
class Ended:
    """How a piece of work in another process came to its end."""

    kind: str
    """done, pruned, interrupted or failed."""
    value: Any = None
    told: str = ""
    exit_code: int = 0
    traceback: str = ""

    def result(self) -> Any:
        """What it returned.

        Raises:
            optuna.TrialPruned, Interrupted, WhetError: what it raised.
        """
        import optuna

        if self.kind == "done":
            return self.value
        if self.kind == "pruned":
            raise optuna.TrialPruned(self.told)
        if self.kind == "interrupted":
            raise Interrupted(self.exit_code - 128, self.told)
        raise WhetError(self.told)


@dataclass
class Child:
    """A process at work."""

    process: subprocess.Popen[bytes]
    out: Path

    def wait(self) -> Ended:
        """How it ended."""
        code = self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        if not self.out.is_file():
            return Ended("failed", told=f"its process ended {_how(code)}", exit_code=code)
        import cloudpickle

        found: Ended = cloudpickle.loads(self.out.read_bytes())
        return found


def _how(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    name = signal.Signals(-code).name
    return f"by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def start(
    work: Callable[[], Any], folder: Path, environment: dict[str, str] | None = None, bound: bool = False
) -> Child:
    """Call `work` in a new process.

    Args:
        work: any callable that cloudpickle takes.
        folder: for the two files.
        environment: on top of this process's.
        bound: it is killed when this process is gone, however that came; it reads nothing then.
    """
    import cloudpickle
    from hydra.core.singleton import Singleton

    handle, name = tempfile.mkstemp(dir=folder, suffix=".in")
    with os.fdopen(handle, "wb") as file:
        cloudpickle.dump((Singleton.get_state(), work), file)
    out = Path(name).with_suffix(".out")
    command = [sys.executable, "-m", "whet.sweep.process", name, str(out), *["bound"] * bound]
    stdin = subprocess.PIPE if bound else None
    return Child(subprocess.Popen(command, stdin=stdin, env={**os.environ, **(environment or {})}), out)


def main(arguments: Sequence[str]) -> int:
    """What such a process does; returns its exit code."""
    import cloudpickle
    from hydra.core.singleton import Singleton
    from hydra.core.utils import setup_globals

    source, out = map(Path, arguments[:2])
    if "bound" in arguments[2:]:
        threading.Thread(target=_end_with_the_other, daemon=True).start()
    setup_globals()
    state, work = cloudpickle.loads(source.read_bytes())
    source.unlink()
    Singleton.set_state(state)
    ended = ending(work)
    aside = out.with_suffix(".part")
    aside.write_bytes(cloudpickle.dumps(ended))
    aside.replace(out)
    return ended.exit_code


def _end_with_the_other() -> None:
    """Nothing is ever written into this pipe: reading ends when its other end is gone, and who held it."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def ending(work: Callable[[], Any]) -> Ended:
    """Call `work` and say how it ended."""
    import optuna

    try:
        return Ended("done", work())
    except optuna.TrialPruned as pruned:
        return Ended("pruned", told=one_line(pruned))
    except Interrupted as error:
        return Ended("interrupted", told=one_line(error), exit_code=error.exit_code)
    except KeyboardInterrupt:
        return Ended("interrupted", told="stopped at once", exit_code=130)
    except WhetError as error:
        return Ended("failed", told=one_line(error), exit_code=error.exit_code)
    except Exception as error:  # noqa: BLE001  it goes to the process that asked
        told = one_line(f"{type(error).__name__}: {error}")
        return Ended("failed", told=told, exit_code=1, traceback=traceback.format_exc())


# ---------------------------------------------------------------- peers


def run_peers(peers: Sequence[Peer], watch: Callable[[], None]) -> list[Ended]:
    """Let peers work, each in a process of its own, with its share of cores and GPUs.

    Args:
        peers: what each is to do.
        watch: called now and then meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix="whet-peers-") as name:
        places = [surroundings(number, len(peers)) for number in range(len(peers))]
        children = [start(peer.work, Path(name), place) for peer, place in zip(peers, places, strict=True)]
        with _passing_on(children):
            while any(child.process.poll() is None for child in children):
                watch()
            return [child.wait() for child in children]


def surroundings(number: int, peers: int) -> dict[str, str]:
    """Environment of one of several peers: its share of the threads, and one GPU where there are some."""
    found = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores() // peers))}
    if gpus := visible_gpus():
        found["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return found


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, or all GPUs by number."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    if not Path("/dev/nvidiactl").exists():
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextlib.contextmanager
def _passing_on(children: Sequence[Child]) -> Iterator[list[int]]:
    """Hand SIGTERM on to the children; a terminal sends Ctrl-C to all of them by itself.

    Gives the signals that have come; the work ends with what the children are at (whet.pending).
    """
    come: list[int] = []

    def hand_on(number: int, _: Any) -> None:
        come.append(number)
        remember(number)
        for child in children if number == signal.SIGTERM else ():
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield come
    finally:
        for number, action in before.items():
            signal.signal(number, action)


# ---------------------------------------------------------------- single trials


def call_apart(peer: Peer, config: DictConfig, found: Current) -> Any:
    """One run of a trial in a process of its own; what the app returns or raises."""
    from whet.sweep.apart import Errand

    trial, facts = found.trial, asdict_of(found)
    errand = Errand(peer, config, trial.number, facts)
    with tempfile.TemporaryDirectory(prefix="whet-trial-") as name:
        child = start(errand, Path(name), bound=True)  # a dead peer's trial is another peer's
        with _passing_on([child]) as signals:
            ended = child.wait()
    if signals and ended.exit_code < 0:  # it hadn't come so far that it could answer
        raise Interrupted(signals[0], "stopped before it began")
    if ended.kind == "done":
        found.facts.update(ended.value.facts)
        return ended.value.returned
    return ended.result()


def asdict_of(found: Current) -> dict[str, Any]:
    """What of the current trial goes to another process."""
    kept = ("study", "folder", "params", "repeat", "repeats", "seed", "prunable", "told", "facts")
    return {name: getattr(found, name) for name in kept}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
