"""Keep secrets out of everything that is written: configs, logs, trackers."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_KEY = re.compile(
    r"(^|[_.-])(api_?key|token|secret|password|passwd|credentials?|private_?key)$", re.IGNORECASE
)
_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<user>[^/\s:@]*):(?P<password>[^/\s@]+)@", re.IGNORECASE
)
_NAMED = re.compile(
    r"(?P<key>[\w.-]*(?:api_?key|token|secret|password))(?P<eq>=|: )(?P<value>[^\s,;&]+)", re.IGNORECASE
)


@functools.lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Whether a config key or environment variable of this name holds a secret."""
    return bool(_KEY.search(key))


def mask_text(text: str) -> str:
    """`text` without URL passwords, `…token=value` pairs and values of secret environment variables."""
    for value in _secret_values():
        text = text.replace(value, MASK)
    text = _URL.sub(rf"\g<scheme>\g<user>:{MASK}@", text)
    return _NAMED.sub(rf"\g<key>\g<eq>{MASK}", text)


def mask(value: Any, key: str = "") -> Any:
    """A copy of `value` (any nesting of mappings and lists) with every secret masked."""
    if isinstance(value, Mapping):
        return {name: mask(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask(item, key) for item in value]
    if value is not None and key and is_secret(key):
        return MASK
    return mask_text(value) if isinstance(value, str) else value


def _secret_values() -> list[str]:
    found = {value for name, value in os.environ.items() if is_secret(name) and len(value) >= 8}
    return sorted(found, key=len, reverse=True)
