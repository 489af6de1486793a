"""Forks are to tests what processes of the real interpreter are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from tests import forked

TELL = """
import json, os, signal, sys
import torch  # noqa: F401
told = {
    "arguments": sys.argv, "folder": os.getcwd(), "environment": sorted(os.environ), "name": __name__, "file": __file__,
    "path": sys.path[0], "handlers": [str(signal.getsignal(n)) for n in (10, 12, 15, 17, 18)],
    "input": sys.stdin.read(), "open": sorted(n for n in map(int, os.listdir("/proc/self/fd")) if n < 3),
    "main": sys.modules["__main__"].__file__, "threads": torch.get_num_threads(),
}
print(json.dumps(told))
print("heard", file=sys.stderr)
sys.exit(7)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Writes a program into the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        (tmp_path / "program.py").write_text(text, encoding="utf-8")
        return "program.py"

    return write


def real(*arguments: str, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **settings
    )


@pytest.mark.parametrize("form", [["program.py"], ["-m", "program"]])
def test_a_fork_is_like_a_process_of_the_interpreter(program, form):
    program(TELL)
    environment = {**os.environ, "SPECIAL": "1", "OMP_NUM_THREADS": "1"}
    fork = forked.run(*form, "a", "b=c", input="words", env=environment)
    process = real(*form, "a", "b=c", input="words", env=environment)
    assert fork.stdout == process.stdout
    assert (fork.returncode, fork.stderr) == (process.returncode, process.stderr) == (7, "heard\n")


def test_a_crash_says_where(program):
    found = forked.run(program("import os\nos.abort()"))
    assert found.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in found.stderr and 'program.py", line 2' in found.stderr


@pytest.mark.parametrize("text", ["raise ValueError('no')", "raise KeyboardInterrupt", ""])
def test_ends(program, text):
    found, expected = forked.run(program(text)), real(program(text))
    assert found.returncode == expected.returncode
    assert found.stderr.splitlines()[-1:] == expected.stderr.splitlines()[-1:]


SLEEP = """
import atexit, signal, sys, time
atexit.register(print, "left")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "code", "out"), [(signal.SIGTERM, 3, "ready\nleft\n"), (signal.SIGKILL, -9, "ready\n")]
)
def test_signals(program, number, code, out):
    process = forked.start(program(SLEEP))
    while not process.out.endswith("\n"):  # a line may come in two pieces
        assert process.poll() is None
    os.kill(process.pid, number)
    assert process.wait(60) == process.poll() == code
    assert process.out == out
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


PARENT = """
import os, signal, subprocess, sys
here, there = os.pipe()
code = "import os, sys; os.write(int(sys.argv[1]), str(os.getpid()).encode()); os.kill(os.getpid(), 15)"
open("child.py", "w").write(code)
child = subprocess.Popen([sys.executable, "-u", "child.py", str(there)], pass_fds=[there])
number = int(os.read(here, 20))
print(child.wait(), number != child.pid, "torch" in sys.modules)
print(subprocess.run([sys.executable, "-c", "import sys; print('torch' in sys.modules)"]).returncode)
"""


def test_what_a_fork_starts_is_a_fork_with_its_files(program):
    assert forked.run(program(PARENT)).stdout.split() == ["-15", "True", "True", "False", "0"]


WAITING = """
import os, signal, subprocess, sys, time
open("child.py", "w").write("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
child = subprocess.Popen([sys.executable, "child.py"], stdout=subprocess.PIPE)
number = int(child.stdout.readline())
os.kill(child.pid, int(sys.argv[1]))
child.wait()
while os.path.exists(f"/proc/{number}"):
    time.sleep(0.01)
print(child.returncode)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_who_stands_for_a_fork_is_not_outlived(program, number):
    assert forked.run(program(WAITING), str(int(number))).stdout.split() == [str(-number)]
