"""Where things are read and written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from whet.config import Component


@dataclass(kw_only=True)
class Paths(Component):
    """Folders of this machine."""

    output: str = "outputs"
    """Run folders are created below it; relative to the current directory."""
    cache: str = "~/.cache/whet"
    """Downloaded weights and data, token caches; shared by all runs."""

    def outputs(self) -> Path:
        return Path(self.output).expanduser().absolute()

    def cached(self, room: str) -> Path:
        """A room of the cache (created on first use): `wheels`, `weights`, `tokens`, …"""
        folder = Path(self.cache).expanduser().absolute() / room
        folder.mkdir(parents=True, exist_ok=True)
        return folder
