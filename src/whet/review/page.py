"""A page of another program in a process of its own: `python -m whet.review.page`.

What it is to show comes by stdin, not as an argument, since a storage's URL may hold a password. The process
answers with one line, its address or why there is none, and ends when stdin does: whatever becomes of the one
who started it, it doesn't stay.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whet.errors import one_line
from whet.secrets import mask_text


def optuna_page(*, host: str, port: int, storage: str, study: str | None) -> str:
    """Serve Optuna's dashboard of a storage; returns the address of the study, or of the list of all.

    Reading takes no lock that trials would wait for: SQLite is opened as Optuna does it by itself, not as
    peers do, which begin with the write lock.
    """
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    import optuna
    from optuna_dashboard import wsgi  # type: ignore[import-untyped]

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = _family(host)

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Requests aren't told."""

    opened = reading(storage)
    server = make_server(host, port, wsgi(opened), server_class=Server, handler_class=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = address(host, server.server_port)
    if study is None:
        return place
    found = optuna.load_study(study_name=study, storage=opened)
    return f"{place}dashboard/studies/{found._study_id}"


def reading(url: str) -> Any:
    """A storage that is only read (what a visitor changes on the page is written)."""
    from optuna.storages import RDBStorage

    from whet.sweep.storage import WAIT, open_storage

    if url.startswith(("journal:", "grpc:")):
        return open_storage(url, Path())
    patience = {"connect_args": {"timeout": WAIT}} if url.startswith("sqlite:") else {"pool_pre_ping": True}
    # of another version: the page says so itself, and offers to migrate
    return RDBStorage(url, engine_kwargs=patience, skip_table_creation=True, skip_compatibility_check=True)


def tensorboard_page(*, host: str, port: int, folder: str) -> str:
    """Serve TensorBoard of a folder; returns its address."""
    from tensorboard import program  # type: ignore[import-untyped]

    board = program.TensorBoard()
    board.configure(logdir=folder, host=host, port=port, reload_interval=10)
    return str(board.launch())


def address(host: str, port: int) -> str:
    """Of a page."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


PAGES: dict[str, Callable[..., str]] = {"optuna": optuna_page, "tensorboard": tensorboard_page}


def main() -> int:
    """Serve what stdin's first line says until stdin ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever else is printed is no answer
    told = json.loads(sys.stdin.readline())
    try:
        answer = {"url": PAGES[told.pop("page")](**told)}
    except (Exception, SystemExit) as error:  # noqa: BLE001  it goes to the process that asked
        answer = {"error": mask_text(one_line(error)) or type(error).__name__}
    with os.fdopen(answers, "w") as out:
        out.write(json.dumps(answer) + "\n")
    if "url" in answer:
        sys.stdin.read()
    return 0 if "url" in answer else 1


if __name__ == "__main__":
    raise SystemExit(main())
