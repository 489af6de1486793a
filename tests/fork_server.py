"""The server of `tests.forked`: it imports what whet needs, computes nothing, and forks for whoever asks.

A fork's `sys.executable` is the deputy: a small program that asks for a fork in its turn, lends it all its open
files, hands signals on to it and ends as it ends. Only the standard library is loaded here: a deputy starts at once.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import importlib
import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import threading
import warnings
from typing import NoReturn

IMPORTS = (
    "cloudpickle", "datasets", "datasets.io.generator", "hydra.experimental", "hydra.main",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher", "hydra_plugins.hydra_submitit_launcher.submitit_launcher",
    "hydra_plugins.whet_plugin.optuna_sweeper", "joblib.externals.loky", "matplotlib.backends.backend_agg",
    "matplotlib.figure", "optuna.samplers", "optuna.storages", "pandas", "peft", "psycopg", "pydantic.type_adapter",
    "rich.live", "scipy.io", "scipy.stats", "sklearn.metrics", "sqlalchemy", "submitit",
    "tensorboard.summary.writer.record_writer", "torch._dynamo", "torch._inductor.config", "torch.distributed.fsdp",
    "torch.distributed.run", "torch.profiler", "torch.utils.tensorboard.summary",
    "transformers.models.bert.modeling_bert", "wandb", "whet.cli.sweeping", "whet.cli.train", "whet.engine.load",
    "whet.engine.train", "whet.evaluation.plots", "whet.model.narrow", "whet.model.tiny", "whet.optimizer.adamw",
    "whet.peft.lora", "whet.scheduler.linear", "whet.sweep.peer", "whet.sweep.process", "whet.task.single_label",
    "whet.tracking.tensorboard",
)  # fmt: skip
"""Those that aren't installed are left out."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
NUMBER = struct.Struct("i")
UNHURRIED = "submitit.local._local"
"""It opens files in a folder that who starts it makes only afterwards: a fork would be too quick."""


# ---------------------------------------------------------------- the client's side


class Fork:
    """A process that was asked for: its id, and its exit code once it has ended."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.returncode: int | None = None
        self.pid = self._number()

    def _number(self) -> int:
        told = self.connection.recv(NUMBER.size, socket.MSG_WAITALL)
        if len(told) < NUMBER.size:
            raise ConnectionError("the server of forks has ended")
        return NUMBER.unpack(told)[0]

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it runs."""
        return self.wait(0) if self._is_told(0) else self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The same when it has ended. Raises TimeoutError."""
        if self.returncode is None:
            if not self._is_told(timeout):
                raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
            self.returncode = self._number()
            self.connection.close()
        return self.returncode

    def _is_told(self, timeout: float | None) -> bool:
        return self.returncode is None and bool(select.select([self.connection], [], [], timeout)[0])

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def connected(
    path: str, arguments: list[str], folder: str, environment: dict[str, str], files: dict[int, int]
) -> socket.socket:
    """Ask the server at `path` for a fork that does what `python ARGUMENTS` does.

    Args:
        path: the server's socket.
        arguments: `-m MODULE …` or `FILE …`.
        folder: the fork's current directory.
        environment: all of the fork's variables.
        files: its open files by their numbers there; the values are the numbers here.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    content = json.dumps([arguments, folder, environment, list(files)]).encode()
    socket.send_fds(connection, [NUMBER.pack(len(content))], list(files.values()))
    connection.sendall(content)
    return connection


def deputy(path: str, arguments: list[str]) -> int:
    """What is called as `python ARGUMENTS`: stand for a fork until it ends, then end in the same way."""
    if "-c" in arguments[:1] or UNHURRIED in arguments:
        os.execv(sys.executable, [sys.executable, *arguments])
    numbers = [number for number in map(int, os.listdir("/proc/self/fd")) if is_open(number)]
    fork = Fork(connected(path, arguments, os.getcwd(), dict(os.environ), {n: n for n in numbers}))
    for number in FORWARDED:
        signal.signal(number, lambda number, _: os.kill(fork.pid, number))
    code = fork.wait()
    if code < 0:
        if -code in FORWARDED:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


# ---------------------------------------------------------------- the server's side


class Job:
    """What a fork is to do."""

    def __init__(self, connection: socket.socket) -> None:
        head, self.files, *_ = socket.recv_fds(connection, NUMBER.size, 200)
        content = connection.recv(NUMBER.unpack(head)[0], socket.MSG_WAITALL)
        self.arguments, self.folder, self.environment, self.numbers = json.loads(content)

    def close(self) -> None:
        for number in self.files:
            os.close(number)


def serve(path: str, owner: int) -> Job | None:
    """Fork for whoever connects, as long as the process `owner` lives; in a fork: its job."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    waiting: dict[socket.socket, int] = {}
    while alive(owner):
        for ready in select.select([listener, woken, *waiting], [], [], 1.0)[0]:
            if ready is listener:
                client = listener.accept()[0]
                job = Job(client)
                pid = os.fork()
                if pid == 0:
                    for end in (listener, woken, wake, client, *waiting):
                        end.close()
                    return job
                job.close()
                waiting[client] = pid
                client.sendall(NUMBER.pack(pid))
            elif ready is woken:
                woken.recv(4096)
                reap(waiting)
            elif ready in waiting:  # nobody waits for it any more
                os.kill(waiting.pop(ready), signal.SIGKILL)
                ready.close()
    for pid in waiting.values():
        os.kill(pid, signal.SIGKILL)
    return None


def reap(waiting: dict[socket.socket, int]) -> None:
    """Tell of all forks that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for client in [client for client, number in waiting.items() if number == pid]:
            del waiting[client]
            client.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))
            client.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ended(job: Job, python: str) -> NoReturn:
    """Do the job and end as Python does, but for taking to pieces what was imported."""
    code, interrupted = 0, False
    try:
        become(job, python)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001 (a fork must never get back into the server)
        sys.excepthook(type(error), error, error.__traceback__)
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def become(job: Job, python: str) -> None:
    """In a fork: be a Python that was started with these arguments, then do what they say."""
    import numpy

    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, *FORWARDED):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job.folder)
    os.environ.clear()
    os.environ.update(job.environment)
    take_files(job)
    faulthandler.enable(2)
    numpy.random.seed()
    sys.executable = python
    arguments = [item for item in job.arguments if item != "-u"]
    more = [way for way in os.environ.get("PYTHONPATH", "").split(os.pathsep) if way not in ("", *sys.path)]
    if arguments[0] == "-m":
        sys.argv, sys.path[:0] = arguments[1:], [os.getcwd(), *more]
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)  # imported already
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        file = os.path.abspath(arguments[0])
        sys.argv, sys.path[:0] = arguments, [os.path.dirname(file), *more]
        run_file(file)


def run_file(file: str) -> None:
    """Execute a program as the main module."""
    spec = importlib.util.spec_from_file_location("__main__", file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{file}: no Python program")
    sys.modules["__main__"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def take_files(job: Job) -> None:
    """Give the files the numbers that they have at the client's."""
    import fcntl

    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 1000) for number in job.files]
    job.close()
    for number, wanted in zip(high, job.numbers, strict=True):
        os.dup2(number, wanted)
        os.close(number)


def load() -> None:
    """Import everything; no thread may run afterwards."""
    for name in IMPORTS:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
    gc.freeze()  # a fork doesn't look through all of it again
    with open("/proc/self/status") as file:
        threads = file.read().partition("Threads:")[2].split()[0]
    if threads != "1":
        raise SystemExit(f"{threads} threads run in the process to fork from: a fork could hang")


def main() -> None:
    """`server SOCKET OWNER PYTHON`, or `deputy SOCKET ARGUMENTS`."""
    if sys.argv[1] == "deputy":
        raise SystemExit(deputy(sys.argv[2], sys.argv[3:]))
    _, _, path, owner, python = sys.argv
    load()
    sys.path.pop(0)
    job = serve(path, int(owner))
    if job is not None:
        ended(job, python)


if __name__ == "__main__":
    main()
