"""`whet dashboard`: Optuna's page of the sweeps and TensorBoard of the runs, until Ctrl-C."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from whet.cli.words import respond
from whet.errors import ConfigError, RunError, nearest

if TYPE_CHECKING:
    from whet.review.records import SweepRecord

Port = Annotated[int, Field(ge=1, le=65535)]
USAGE = "usage: whet dashboard [PLACE] [key=value …]"
EXAMPLES = """
    whet dashboard                             sweeps and runs below outputs/
    whet dashboard outputs/sweeps/NAME         one sweep
    whet dashboard study=NAME port=8080        another sweep than the newest
    whet dashboard storage=postgresql://HOST/DB
    ssh -L 8080:localhost:8080 HOST whet dashboard port=8080    from another machine
"""
LOOPBACK = "127.0.0.1"


def main(arguments: list[str]) -> int:
    """Serve until Ctrl-C or SIGTERM; returns the exit code."""
    return respond(COMMAND, USAGE, EXAMPLES, arguments)


def dashboard(
    *,
    words: list[str],
    study: str | None = None,
    storage: str | None = None,
    host: str = LOOPBACK,
    port: Port | None = None,
    tensorboard_port: Port | None = None,
) -> None:
    """Open Optuna's dashboard of the sweeps and TensorBoard of the runs; Ctrl-C ends both (exit code 0).

    Args:
        study: the sweep that Optuna's page shows; null takes the newest.
        storage: Optuna storage by URL; null takes the sweep's own.
        host: address to listen on; any other than 127.0.0.1 lets others read, and change the studies.
        port: of Optuna's page; null takes a free one.
        tensorboard_port: of TensorBoard; null takes a free one.

    Raises:
        RunError: there is nothing to show.
        WhetError: a page can't start, or ended by itself; the other one is stopped.
    """
    from whet.review.pages import asked_to_stop, serving, wait

    place = _place(words)
    shown, others = chosen(place, study, storage)
    wanted = [] if shown is None else [_optuna(*shown, host, port)]
    if has_events(place):
        wanted.append(_tensorboard(place, host, tensorboard_port))
    if not wanted:
        raise RunError(f"{place}: neither a sweep nor TensorBoard's events: nothing to show")
    with asked_to_stop() as stop, serving(wanted) as pages:
        for page in pages:
            print(f"{page.name:<18}{page.url}")
        _explain(place, shown, others, host)
        wait(pages, stop)


COMMAND = dashboard
"""What the command's words and settings are checked against."""


def _place(words: Sequence[str]) -> Path:
    if len(words) > 1:
        raise ConfigError(words[1], "one place at a time; the folder above both shows them together")
    place = Path(words[0] if words else "outputs").expanduser()
    if not place.is_dir():
        raise RunError(f"{place}: no such folder")
    return place


def has_events(place: Path) -> bool:
    """Whether TensorBoard has something to show."""
    from whet.tracking.tensorboard import EVENTS

    return next(place.rglob(EVENTS), None) is not None


# ---------------------------------------------------------------- which study


def chosen(
    place: Path, study: str | None, storage: str | None
) -> tuple[tuple[str, str | None] | None, list[str]]:
    """Storage and study to show, and the names of the others; None where there is no sweep.

    Raises:
        ConfigError: there is no such study or storage.
    """
    from whet.review.records import find_sweeps
    from whet.sweep.storage import absolute_url

    if storage is not None:
        url = absolute_url(storage)
        if (path := _file(url)) is not None and not path.is_file():
            raise ConfigError("storage", "no such file", storage)
        return (url, study), []
    found = {sweep.name: sweep for sweep in sorted(find_sweeps([place]), key=_begun)}
    if study is not None and study not in found:
        raise ConfigError("study", f"no such sweep below {place}; {nearest(study, found)}", study)
    if not found:
        return None, []
    sweep = found[study or list(found)[-1]]
    return (_url(sweep), sweep.name), [name for name in found if name != sweep.name]


def _begun(sweep: SweepRecord) -> str:
    return str(sweep.facts.get("started"))


def _url(sweep: SweepRecord) -> str:
    """Of a sweep's storage; of one that was moved with its folder, where it lies now.

    Raises:
        ConfigError: it isn't there, or needs a password, which isn't on record.
    """
    from whet.secrets import MASK
    from whet.sweep.storage import default_url

    url = str(sweep.facts["storage"])
    if (path := _file(url)) is not None and not path.is_file():
        url = default_url(sweep.folder)
        if not Path(url.removeprefix("sqlite:///")).is_file():
            raise ConfigError("storage", f"{sweep.name}'s is gone: give storage=URL", path)
    if f":{MASK}@" in url:
        raise ConfigError("storage", f"{sweep.name} is at {url}, whose password isn't kept: give storage=URL")
    return url


def _file(url: str) -> Path | None:
    """Where a storage is a file."""
    scheme, _, path = url.partition(":///")
    return Path(path) if scheme in ("sqlite", "journal") else None


# ---------------------------------------------------------------- what the pages are told


def _optuna(url: str, study: str | None, host: str, port: int | None) -> dict[str, Any]:
    return {
        "name": "Optuna dashboard",
        "page": "optuna",
        "host": host,
        "port": port or 0,
        "storage": url,
        "study": study,
    }


def _tensorboard(place: Path, host: str, port: int | None) -> dict[str, Any]:
    folder = str(place.absolute())
    return {"name": "TensorBoard", "page": "tensorboard", "host": host, "port": port or 0, "folder": folder}


def _explain(place: Path, shown: tuple[str, str | None] | None, others: Sequence[str], host: str) -> None:
    if shown is None:
        print(f"no sweep below {place}")
    elif others:
        print(f"study {shown[1]}, the newest unless study= names one of: {', '.join(sorted(others))}")
    if host != LOOPBACK:
        print(f"listening on {host}: whoever reaches it can read all this, and change the studies")
    print("Ctrl-C ends this", flush=True)
