"""A model hub's cache on disk, and no hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest


def no_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """Nothing answers at the hub's address, and its cache is the empty folder `cache`, which is returned."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


def snapshot(cache: Path, repository: str, commit: str, files: dict[str, bytes]) -> None:
    """A repository (`models--owner--name`) as the hub's cache lays it out: blobs, a snapshot of links to them."""
    folder = cache / repository
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for name, data in files.items():
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (folder / "snapshots" / commit / name).symlink_to(blob)
