"""A PostgreSQL server of Debian's package for the length of a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

USER = "postgres"


def programs() -> Path | None:
    """Folder of initdb and pg_ctl, the newest version; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    other = shutil.which("initdb")
    return Path(other).parent if other else None


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A fresh server on loopback; yields the SQLAlchemy URL of an empty database."""
    place = programs()
    if place is None:
        raise RuntimeError("no PostgreSQL here")
    # root may not run it: the user that Debian's package has made does
    own = {"user": USER} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="whet-postgres-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        if own:
            shutil.chown(folder, USER)
        data = f"{folder}/data"

        def call(*command: str) -> None:
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, **own)

        call(str(place / "initdb"), "-D", data, "-U", "whet", "-A", "trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off -c max_connections=200"
        call(str(place / "pg_ctl"), "-D", data, "-o", options, "-w", "-l", f"{folder}/log", "start")
        try:
            call(str(place / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "whet", "sweeps")
            yield f"postgresql+psycopg://whet@127.0.0.1:{port}/sweeps"
        finally:
            call(str(place / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
