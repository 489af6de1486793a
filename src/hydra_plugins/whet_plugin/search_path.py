"""Where whet's configs are found, and how they are read. Other Hydra apps are left untouched."""

from __future__ import annotations

import contextlib
import copy
import os
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin

GROUP = "sweep"
"""Config group of a `sweeps/` folder."""


_read: dict[tuple[str, str], tuple[list[tuple[str, int, int]], ConfigResult]] = {}
"""What was read of which file, and the state of its group's files then: a sweep composes a config a trial."""


def stamps(group: str, folders: list[Path]) -> list[tuple[str, int, int]]:
    """Name, time and size of every file that a config of `group` may take something from."""
    found = []
    for folder in dict.fromkeys(folders):
        with contextlib.suppress(OSError), os.scandir(folder / group) as files:
            found += [(each.path, each.stat().st_mtime_ns, each.stat().st_size) for each in files]
    return sorted(found)


class SignatureConfigSource(FileConfigSource):
    """Reads YAML like Hydra's `file://` and completes `_target_` nodes from the signatures they name."""

    @staticmethod
    def scheme() -> str:
        return "whet"

    def load_config(self, config_path: str) -> ConfigResult:
        group = config_path.rpartition("/")[0]
        folders = [Path(self.path), packaged()]
        place, state = (str(self.path), config_path), stamps(group, folders)
        if place not in _read or _read[place][0] != state:
            result = super().load_config(config_path)
            if group and not group.startswith("hydra"):
                result.config = completed(group, result.config, folders)
            _read[place] = state, result
        return copy.deepcopy(_read[place][1])

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        names = super().list(config_path, results_filter)
        return [name for name in names if not name.startswith((".", "__"))]


class SweepSource(SignatureConfigSource):
    """The files of a `sweeps/` folder as the config group `sweep`."""

    @staticmethod
    def scheme() -> str:
        return "whet-sweeps"

    def load_config(self, config_path: str) -> ConfigResult:
        from omegaconf import OmegaConf

        from whet.config import complete

        result = FileConfigSource.load_config(self, _inside(config_path))
        config: Any = result.config
        if (own := config.get(GROUP)) is not None:
            config[GROUP] = OmegaConf.create(complete(OmegaConf.to_container(own, resolve=False)))
        return result

    def is_group(self, config_path: str) -> bool:
        return config_path == GROUP

    def is_config(self, config_path: str) -> bool:
        return config_path.startswith(f"{GROUP}/") and super().is_config(_inside(config_path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == GROUP and results_filter is not ObjectType.GROUP:
            return sorted(path.stem for path in Path(self.path).glob("*.yaml") if path.stem[0] not in "._")
        return [GROUP] if config_path == "" and results_filter is not ObjectType.CONFIG else []


def _inside(config_path: str) -> str:
    """`sweep/lr_warmup` is the folder's `lr_warmup`."""
    return config_path.removeprefix(f"{GROUP}/")


def completed(group: str, config: Any, folders: list[Path]) -> Any:
    """A group's config with its signatures' defaults.

    What it inherits from siblings of its group (`defaults: [sibling, _self_]`) is merged first, so that a
    default never overwrites a value that a sibling states, nor outlives a change of `_target_`.
    """
    from omegaconf import OmegaConf

    from whet.config import complete

    merged = inherited(group, config, folders)
    if "_target_" not in merged:
        return merged
    return OmegaConf.create(complete(OmegaConf.to_container(merged, resolve=False)))


def inherited(group: str, config: Any, folders: list[Path]) -> Any:
    """`config` on top of (or, before `_self_`, below) the siblings its defaults list names."""
    from omegaconf import OmegaConf

    own = OmegaConf.create({key: config._get_node(key) for key in config if key != "defaults"})
    parts, others = [], []
    for item in config.get("defaults", []):
        sibling = _sibling(group, item, folders)
        if item == "_self_":
            parts.append(own)
        elif sibling is not None:
            parts.append(inherited(group, OmegaConf.load(sibling), folders))
        else:
            others.append(item)
    merged = OmegaConf.merge(*(parts if any(part is own for part in parts) else [*parts, own]))
    return OmegaConf.merge({"defaults": [*others, "_self_"]}, merged) if others else merged


def _sibling(group: str, item: Any, folders: list[Path]) -> Path | None:
    if not isinstance(item, str) or item == "_self_" or not item.replace("-", "_").isidentifier():
        return None
    found = (folder / group / f"{item}.yaml" for folder in folders)
    return next((path for path in found if path.is_file()), None)


def packaged() -> Path:
    """whet's own `conf/`."""
    from whet.config import conf_dir

    return conf_dir().resolve()


class WhetSearchPath(SearchPathPlugin):
    """Puts `conf/` and `sweeps/` of the current directory in front of the packaged ones."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        shipped = packaged()
        for entry in search_path.get_path():
            if entry.provider == "main" and Path(entry.path.removeprefix("file://")).resolve() == shipped:
                entry.path = f"whet://{shipped}"
                own = (Path.cwd() / "conf").resolve()
                if own.is_dir() and own != shipped:
                    search_path.prepend("user", f"whet://{own}", anchor="main")
                _add_sweeps(search_path)
                return


def _add_sweeps(search_path: ConfigSearchPath) -> None:
    from whet.config import sweeps_dir

    own, shipped = (Path.cwd() / "sweeps").resolve(), sweeps_dir().resolve()
    for folder in dict.fromkeys((own, shipped)):
        if folder.is_dir():
            search_path.append("sweeps", f"whet-sweeps://{folder}")
