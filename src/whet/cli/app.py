"""Hydra around a command: the same override grammar, flags and errors for all of them."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from whet.config import conf_dir
from whet.pending import forget

if TYPE_CHECKING:
    from omegaconf import DictConfig

TRACE = {"debug=trace", "debug.trace=true"}
"""Arguments of any command that let an error show its whole traceback."""
OPTIONAL_PLUS = re.compile(r"^\+(debug|experiment)=")


def launch(command: str, function: Callable[[DictConfig], Any], arguments: list[str]) -> list[Any]:
    """Compose `conf/<command>.yaml` with `arguments` and call `function` with the config.

    Hydra's own flags (`--cfg job`, `-m`, `--info`, `--hydra-help`, …) work as in any Hydra app; `--help` is
    whet's. Groups that a command always has may be given with or without `+`.

    Returns:
        What `function` returned, one item for each call in this process.
    """
    if "--help" in arguments or "-h" in arguments:
        from whet.cli.help import command_help

        print(command_help(command, arguments))
        return []
    forget()
    kept = _Kept(function)
    told = [normal(item) for item in arguments]
    if not has_debug(command):  # there it only asks for tracebacks, which whet.cli.main has seen
        told = [item for item in told if item not in TRACE]
    _run(command, function if _is_multirun(arguments) else kept, told)
    if kept.error is not None:
        raise kept.error
    return kept.returned


def has_debug(command: str) -> bool:
    """Whether a command's config has the `debug` group."""
    return "- debug: " in (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")


class _Kept:
    """Keeps what a single job returned or raised, so that Hydra doesn't print the error in its own way."""

    def __init__(self, function: Callable[[DictConfig], Any]) -> None:
        self.function = function
        self.returned: list[Any] = []
        self.error: Exception | None = None

    def __call__(self, config: DictConfig) -> None:
        try:
            self.returned.append(self.function(config))
        except Exception as error:  # noqa: BLE001 (raised again by launch)
            self.error = error


def normal(argument: str) -> str:
    """`+debug=fast` and `debug=fast` mean the same."""
    return OPTIONAL_PLUS.sub(r"\1=", argument)


def _is_multirun(arguments: list[str]) -> bool:
    return not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(arguments)


def _run(command: str, function: Callable[[DictConfig], Any], arguments: list[str]) -> None:
    """Hand over to Hydra with its errors raised, not printed: `whet.cli.translate` tells them."""
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"
    kept = sys.argv
    sys.argv = [f"whet {command}", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(function)()
    finally:
        sys.argv = kept


def overrides() -> list[str]:
    """Task overrides of the current Hydra job."""
    from hydra.core.hydra_config import HydraConfig

    return [str(item) for item in HydraConfig.get().overrides.task]


def listen() -> None:
    """Show whet's messages on stderr (once per process)."""
    root = logging.getLogger("whet")
    root.setLevel(logging.DEBUG)
    root.propagate = False
    from whet.tracking.progress import be_quiet

    be_quiet(False)
    there = [handler for handler in root.handlers if isinstance(handler, Messages)]
    for handler in there:
        handler.setLevel(logging.INFO)
    if not there:
        root.addHandler(Messages())


def hush() -> None:
    """Show only warnings of what follows: a sweep has lines of its own; the run's log keeps everything."""
    from whet.tracking.progress import be_quiet

    for handler in logging.getLogger("whet").handlers:
        if isinstance(handler, Messages):
            handler.setLevel(logging.WARNING)
    be_quiet(True)


class Messages(logging.Handler):
    """Plain messages on stderr, above a live display; warnings say so; secrets are masked."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        from whet.secrets import mask_text

        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        print(mask_text(f"{level}{record.getMessage()}"), file=sys.stderr, flush=True)
