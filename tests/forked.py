"""Python processes that start at once: forks of a server that has imported what whet needs and computed nothing.

`start` and `run` are to tests what `subprocess.Popen` and `subprocess.run` are with `sys.executable`: a process of
its own, with its own folder, environment, signals and exit code; what is saved is the seconds of importing torch.
What such a process starts by its `sys.executable` (peers, launchers, torchrun's workers) are forks as well.
Tests of how whet starts take the real interpreter.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from filelock import FileLock
from tests.fork_server import Fork, connected

PLACE = "WHET_TEST_FORKS"
"""Environment variable: the folder of this pytest run's server, and the process that owns it."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # a process that forks has one thread
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # and hasn't begun to use a GPU
}


def offer() -> None:
    """Make a place for the server that all workers of this pytest run share; it starts when it is needed."""
    os.environ[PLACE] = f"{tempfile.mkdtemp(prefix='whet-')}:{os.getpid()}"


def withdraw() -> None:
    """Remove it; the server ends with this process."""
    shutil.rmtree(os.environ.pop(PLACE).rpartition(":")[0])


@functools.cache
def server() -> str:
    """The server's socket."""
    folder, _, owner = os.environ[PLACE].rpartition(":")
    path = Path(folder) / "socket"
    with FileLock(f"{folder}/lock"):
        if not path.exists():
            _start_server(path, owner)
    return str(path)


def _start_server(path: Path, owner: str) -> None:
    program = Path(__file__).with_name("fork_server.py")
    python, log = path.with_name("python"), path.with_name("log")
    command = shlex.join([sys.executable, "-IS", str(program), "deputy", str(path)])
    python.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    python.chmod(0o700)
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(program), "server", str(path), owner, str(python)],
            env={**os.environ, **ENVIRONMENT}, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    while not path.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the server of forks didn't start: {log.read_text()}")
        time.sleep(0.05)


class Process(Fork):
    """A fork whose output goes to files."""

    def __init__(self, connection: socket.socket, out: IO[bytes], err: IO[bytes]) -> None:
        super().__init__(connection)
        self._files = out, err

    @property
    def out(self) -> str:
        """What it has written to stdout so far."""
        return _content(self._files[0])

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return _content(self._files[1])


def _content(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


def start(
    *arguments: str, input: str = "", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Process:
    """A process that does what `python ARGUMENTS` does: `-m MODULE …` or `FILE …`."""
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (the process keeps them)
    with tempfile.TemporaryFile() as given:
        given.write(input.encode())
        given.seek(0)
        files = {0: given.fileno(), 1: out.fileno(), 2: err.fileno()}
        environment = dict(os.environ if env is None else env)
        connection = connected(server(), list(arguments), str(cwd or Path.cwd()), environment, files)
    return Process(connection, out, err)


def run(
    *arguments: str, input: str = "", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The same, run to its end: exit code and output."""
    process = start(*arguments, input=input, env=env, cwd=cwd)
    code = process.wait(300)
    return subprocess.CompletedProcess(arguments, code, process.out, process.err)
