"""The sweeper's node of the config, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from whet.errors import ConfigError, nearest, one_line
from whet.sweep.search import AUTO, Settings
from whet.types import NonNegativeInt, PositiveFloat, PositiveInt

KEY = "hydra.sweeper"
_KINDS: dict[str, Any] = {
    "params": dict[str, Any] | None,
    "search_space": dict[str, Any] | None,
    "storage": str | None,
    "study_name": str | None,
    "n_trials": PositiveInt,
    "n_jobs": PositiveInt,
    "max_failure_rate": float | None,
    "custom_search_space": str | None,
    "repeats": PositiveInt,
    "seed_key": str,
    "enqueue": list[dict[str, Any]],
    "start": bool,
    "more": NonNegativeInt,
    "conditional": list[str],
    "same_failures": PositiveInt,
    "isolate": bool,
    "heartbeat": PositiveFloat,
    "grace": PositiveFloat,
}


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Check what the config says.

    Raises:
        ConfigError: a value of another kind.
    """
    found = {name: _checked(name, value) for name, value in given.items() if name in _KINDS}
    if found.pop("search_space", None):
        problem = "this older form of params isn't read any more: write params: {x: interval(0, 1)}"
        raise ConfigError(f"{KEY}.search_space", problem)
    found["params"] = found.get("params") or {}
    sampler, pruner = (_node(given, name) for name in ("sampler", "pruner"))
    return Settings(sampler=sampler, pruner=pruner, direction=directions(given.get("direction")), **found)


def _node(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    node = given.get(name)
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{KEY}.{name}", f"choose one by hydra/sweeper/{name}=…", node)
    return node


def _checked(name: str, value: Any) -> Any:
    try:
        return TypeAdapter(_KINDS[name]).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{KEY}.{name}", one_line(error.errors()[0]["msg"]), value) from None


def directions(given: Any) -> list[str]:
    """`maximize`, `minimize` (an enum's name or text), or a list of them."""
    found = [getattr(item, "name", str(item)) for item in (given if isinstance(given, list) else [given])]
    known = ("maximize", "minimize", AUTO)
    for item in found:
        if item not in known:
            raise ConfigError(f"{KEY}.direction", f"not a choice; {nearest(item, known)}", item)
    return found
