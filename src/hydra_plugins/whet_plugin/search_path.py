"""Where whet's configs are found, and how they are read. Other Hydra apps are left untouched."""

from __future__ import annotations

from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin


class SignatureConfigSource(FileConfigSource):
    """Reads YAML like Hydra's `file://` and completes `_target_` nodes from the signatures they name."""

    @staticmethod
    def scheme() -> str:
        return "whet"

    def load_config(self, config_path: str) -> ConfigResult:
        from omegaconf import OmegaConf

        from whet.config import complete

        result = super().load_config(config_path)
        if self._stands_alone(config_path, result):
            plain = OmegaConf.to_container(result.config, resolve=False)
            result.config = OmegaConf.create(complete(plain))
        return result

    def _stands_alone(self, config_path: str, result: ConfigResult) -> bool:
        """A file that builds on a sibling in its defaults list must not overwrite the sibling's values."""
        is_group_file = "/" in config_path and not config_path.startswith("hydra/")
        return is_group_file and "_target_" in result.config and "defaults" not in result.config

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        names = super().list(config_path, results_filter)
        return [name for name in names if not name.startswith((".", "__"))]


class WhetSearchPath(SearchPathPlugin):
    """Puts a `conf/` of the current directory in front of the packaged one."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from whet.config import conf_dir

        packaged = conf_dir().resolve()
        for entry in search_path.get_path():  # type: ignore[attr-defined]
            if entry.provider == "main" and Path(entry.path.removeprefix("file://")).resolve() == packaged:
                entry.path = f"whet://{packaged}"
                own = (Path.cwd() / "conf").resolve()
                if own.is_dir() and own != packaged:
                    search_path.prepend("user", f"whet://{own}", anchor="main")
                return
