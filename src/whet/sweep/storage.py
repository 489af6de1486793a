"""Where studies are kept, and the one lock that peers share."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from whet.errors import ConfigError, one_line
from whet.secrets import mask_text

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy.engine import Engine

T = TypeVar("T")
KEY = "hydra.sweeper.storage"
WAIT = 120.0
"""Seconds that a peer waits for another one's transaction."""
TRIES = 8
"""Attempts to set up tables that another peer is setting up at the same time."""


def default_url(folder: Path) -> str:
    """A SQLite file in the sweep's folder."""
    return f"sqlite:///{folder.absolute() / 'study.db'}"


def absolute_url(url: str) -> str:
    """The same with paths that don't depend on the current directory."""
    for scheme in ("sqlite:///", "journal:///"):
        if url.startswith(scheme):
            path = url.removeprefix(scheme)
            return url if path in ("", ":memory:") else f"{scheme}{Path(path).expanduser().absolute()}"
    return url


def open_storage(url: str, folder: Path) -> BaseStorage:
    """A storage by URL: sqlite:///FILE, postgresql://…, mysql://…, journal:///FILE, grpc://HOST:PORT.

    Args:
        url: as Optuna has it; `journal` and `grpc` are Optuna's journal file and gRPC proxy.
        folder: of the sweep, for locks.

    Raises:
        ConfigError: it can't be opened; passwords are masked.
    """
    scheme = url.partition(":")[0].partition("+")[0]
    makers: dict[str, Callable[[str, Path], BaseStorage]] = {
        "sqlite": _sqlite, "postgresql": _server, "mysql": _server, "journal": _journal, "grpc": _grpc,
    }  # fmt: skip
    if scheme not in makers:
        known = ", ".join(f"{name}://" for name in makers)
        raise ConfigError(KEY, f"no storage of this kind; choices: {known}", mask_text(url))
    try:
        return makers[scheme](url, folder)
    except ImportError as error:
        problem = f"its driver isn't installed ({one_line(error)}); pip install it"
        raise ConfigError(KEY, problem, mask_text(url)) from None


def _sqlite(url: str, folder: Path) -> BaseStorage:
    """SQLite with transactions that take the write lock at once.

    Optuna reads, then writes: two that read at the same time can't both go on, and SQLite fails one of them
    at once ("database is locked"), however long it was told to wait. Those that lock first do wait.
    """
    from filelock import FileLock
    from optuna.storages import RDBStorage

    path = Path(url.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": WAIT}})
        lock_first(storage.engine)
    return storage


def lock_first(engine: Engine) -> None:
    """Let every transaction of a SQLite engine begin with its write lock."""
    from sqlalchemy import event

    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction by itself

    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
    engine.dispose()


def _server(url: str, folder: Path) -> BaseStorage:
    from optuna.storages import RDBStorage

    return patiently(lambda: RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "pool_size": 2}), url)


def patiently(make: Callable[[], T], url: str) -> T:
    """Call `make` again where another peer sets up the same tables.

    Raises:
        ConfigError: it fails each time.
    """
    from sqlalchemy.exc import SQLAlchemyError

    for attempt in range(TRIES):
        try:
            return make()
        except SQLAlchemyError as error:
            failed = error
            time.sleep(0.1 * 2**attempt if attempt < TRIES - 1 else 0)
    problem = f"it can't be opened: {one_line(mask_text(str(failed)))}"
    raise ConfigError(KEY, problem, mask_text(url)) from failed


def _journal(url: str, folder: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = Path(url.removeprefix("journal:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _grpc(url: str, folder: Path) -> BaseStorage:
    from optuna.storages import GrpcStorageProxy

    place = urlsplit(url)
    return GrpcStorageProxy(host=place.hostname or "localhost", port=place.port or 13000)


# ---------------------------------------------------------------- the lock


@contextlib.contextmanager
def locked(storage: BaseStorage, study: str, folder: Path) -> Iterator[None]:
    """Alone among all peers of a study; a peer that is killed lets go.

    PostgreSQL and MySQL lend the lock to a connection, wherever the peer is. Else it is a file in the sweep's
    folder.
    """
    engine: Engine | None = getattr(storage, "engine", None)
    kind = "" if engine is None else engine.dialect.name
    if engine is not None and kind in _ASK:
        with engine.connect() as connection:
            connection.exec_driver_sql(_ASK[kind].format(key=_key(study)))
            try:
                yield
            finally:
                connection.exec_driver_sql(_GIVE[kind].format(key=_key(study)))
        return
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


_ASK = {"postgresql": "SELECT pg_advisory_lock({key})", "mysql": "SELECT GET_LOCK('whet-{key}', 600)"}
_GIVE = {"postgresql": "SELECT pg_advisory_unlock({key})", "mysql": "SELECT RELEASE_LOCK('whet-{key}')"}


def _key(study: str) -> int:
    """63 bits of a study's name."""
    return int.from_bytes(hashlib.sha256(study.encode()).digest()[:8]) >> 1
