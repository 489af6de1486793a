"""What was asked of a run: overrides, the command to repeat it, differences from the defaults."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from whet.config import GROUPS, TARGET, Node, compose, conf_dir, flatten
from whet.errors import ConfigError, WhetError, one_line
from whet.review.records import RunRecord
from whet.secrets import mask

LEFT_OUT = ("name", "resume", "tags")
"""Keys that say nothing of what was computed."""
EXPERIMENT = "experiment"


def overrides(record: RunRecord) -> list[str]:
    """As they were given; none where the run's folder doesn't tell."""
    path = record.folder / "overrides.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in lines if line]


def command(record: RunRecord) -> str:
    """A line for a shell that runs it again, in a folder of its own."""
    told = [item for item in overrides(record) if item.partition("=")[0] not in ("name", "resume")]
    start = ["whet", "train"]
    if (processes := int(record.record.get("processes") or 1)) > 1:
        start = ["torchrun", f"--nproc-per-node={processes}", "-m", "whet", "train"]
    return shlex.join([*start, *told])


def choices(record: RunRecord) -> dict[str, str]:
    """What was chosen of config groups, by group, where it was asked for."""
    pairs = [item.lstrip("+").partition("=") for item in overrides(record)]
    return {key: value for key, _, value in pairs if key in (*GROUPS, EXPERIMENT)}


def differences(record: RunRecord) -> list[tuple[str, Any, Any]]:
    """(key, value, default) of all that differs: groups first, then what differs from the chosen groups' own.

    The defaults are those of this installation and of `conf/` in the current directory.

    Raises:
        WhetError: a choice of the run isn't there (any more).
    """
    chosen = choices(record)
    usual = _usual()
    groups = [
        (group, value, usual.get(group)) for group, value in chosen.items() if value != usual.get(group)
    ]
    own = dict(flatten(record.config))
    base = dict(flatten(mask(_composed([f"{group}={value}" for group, value in chosen.items()]))))
    kept = [key for key in own if key.partition(".")[0] not in LEFT_OUT and not key.startswith("sweep.")]
    return groups + [(key, own[key], base.get(key)) for key in kept if own[key] != base.get(key)]


def _composed(told: Sequence[str]) -> Node:
    from hydra.errors import HydraException

    try:
        return compose("train", list(told))
    except HydraException as error:
        raise WhetError(f"the defaults can't be composed here: {one_line(error)}") from None


def _usual() -> dict[str, str]:
    """The default choice of each group."""
    from omegaconf import OmegaConf

    listed: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "train.yaml"), resolve=False)
    pairs = [item for each in listed["defaults"] if isinstance(each, dict) for item in each.items()]
    return {str(group): str(choice) for group, choice in pairs if "/" not in group}


def name_of_part(config: Node, group: str) -> str:
    """What stands in for a config group: its `name`, or that of the code that it builds.

    Raises:
        ConfigError: the config has no such group.
    """
    node = config.get(group)
    if not isinstance(node, dict) or TARGET not in node:
        raise ConfigError(group, "is no part of this run's config")
    return str(node.get("name") or str(node[TARGET]).rpartition(".")[2])
