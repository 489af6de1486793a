"""Others' errors, told in whet's way: key, value, nearest valid choice, one line."""

from __future__ import annotations

import errno
import re
from typing import Any

from whet.errors import ConfigError, WhetError, nearest, one_line

_EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""A disk that is full, a quota or a limit that is reached, a disk that can't be written."""


def is_expected(error: BaseException) -> bool:
    """Whether a user can have caused `error`."""
    return isinstance(error, _expected()) or _lacks_room(error)


def _lacks_room(error: BaseException) -> bool:
    """Whether a disk is full, as Python says it or a library in Rust (safetensors, tokenizers)."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    return str(error).endswith(tuple(f"(os error {number})" for number in _NO_ROOM))


def _expected() -> tuple[type[Exception], ...]:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return WhetError, HydraException, OmegaConfBaseException


def explain(error: BaseException, arguments: list[str], command: str) -> WhetError:
    """The one-line form of an expected error."""
    if isinstance(error, WhetError):
        return error
    if _lacks_room(error):
        return WhetError(f"{one_line(error)}; make room, then go on with resume=auto")
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, OverrideParseException):
        return ConfigError(str(error.override), f"not an override; write key=value ({one_line(error)})")
    return _composition(error, arguments, command)


def _missing_choice(error: Any) -> WhetError:
    missing = str(error.missing_cfg_file or "")
    group, _, name = missing.rpartition("/")
    if name in _EXTRAS:
        return ConfigError(group, f"not installed; pip install 'whet[{_EXTRAS[name]}]'", name)
    if not group:
        return ConfigError("config", one_line(error))
    return ConfigError(group, f"no such choice; {nearest(name, error.options or [])}", name)


def _composition(error: BaseException, arguments: list[str], command: str) -> WhetError:
    text = one_line(error)
    override = re.match(r"Could not override '([^']+)'", text)
    if override:
        return _unknown_key(override[1], arguments, command)
    in_use = re.match(r"Could not append to config\. An item is already at '([^']+)'", text)
    if in_use:
        return ConfigError(in_use[1], "is there already: leave out the +")
    return ConfigError(_key_of(error), one_line(_cause(error)))


def _cause(error: BaseException) -> str:
    cause = error.__cause__
    return str(cause if cause is not None and str(cause) else error).split("\n")[0]


def _key_of(error: BaseException) -> str:
    for item in (error, error.__cause__):
        key = getattr(item, "full_key", None)
        if key:
            return str(key)
    found = re.search(r"['\"]([\w./@]+)['\"]", str(error))
    return found[1] if found else "config"


def _unknown_key(key: str, arguments: list[str], command: str) -> ConfigError:
    """The nearest key beside the unknown one, from the config composed without it."""
    from whet.config import compose

    value = next(
        (item.partition("=")[2] for item in arguments if item.lstrip("+~").startswith(f"{key}=")), ""
    )
    others = [
        item
        for item in arguments
        if "=" in item and not item.startswith("-") and not item.lstrip("+~").startswith(f"{key}=")
    ]
    try:
        node: Any = compose(command, others)
    except _expected() as error:  # another override is wrong too: tell that one
        return ConfigError(key, f"unknown key ({one_line(_cause(error))})", value)
    return ConfigError(key, f"unknown key; {_near(node, key)}", value)


def _near(node: Any, key: str) -> str:
    parts = key.split(".")
    for part in parts[:-1]:
        if not isinstance(node, dict) or part not in node:
            return nearest(part, node if isinstance(node, dict) else [])
        node = node[part]
    names = [name for name in node if name != "_target_"] if isinstance(node, dict) else []
    return nearest(parts[-1], names)
