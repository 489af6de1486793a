"""What a run keeps of its weights: the tensors that training can have changed, as safetensors."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whet.engine.distributed import full, laid_out
from whet.errors import RunError, one_line
from whet.peft.base import trained_names
from whet.storage import aside, file_sha256

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("whet.engine")
Fill = Callable[[Path], Mapping[str, str] | None]
"""Writes files into a folder; returns the SHA-256 of those whose it knows."""


def is_complete(model: nn.Module) -> bool:
    """Whether every parameter trains, so that the saved tensors are the whole model."""
    return all(parameter.requires_grad for parameter in model.parameters())


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors to save: all of them, or those that train; a tied tensor once. They are the model's own."""
    state = model.state_dict()
    wanted = list(state) if is_complete(model) else trained_names(model)
    again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        name for name, _ in model.named_parameters()
    }
    seen: set[int] = set()
    found = {}
    for name in (name for name in wanted if name not in again):
        tensor = full(state[name])
        pointer = tensor.data_ptr()
        if pointer not in seen or pointer == 0:
            found[name] = tensor.detach()
        seen.add(pointer)
    return found


def load_tensors(model: nn.Module, path: Path) -> None:
    """Put saved tensors back.

    Raises:
        RunError: the file is missing or damaged, or holds other tensors than this model trains.
    """
    saved, expected = _read(path), tensors_of(model)
    odd = sorted(set(saved) ^ set(expected))
    odd = odd or sorted(name for name in saved if saved[name].shape != expected[name].shape)
    if odd:
        raise RunError(f"{path}: its tensors aren't this model's ({len(odd)} differ: {', '.join(odd[:4])})")
    state = model.state_dict()
    model.load_state_dict({name: laid_out(saved[name], state[name]) for name in saved}, strict=False)


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise RunError(f"{path}: the weights are missing")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise RunError(f"{path}: damaged ({one_line(error)})") from None


MANIFEST = "manifest.json"


@dataclass
class Checkpoints:
    """`checkpoints/step-0000123/`, each whole or not there: files, then a manifest with their SHA-256."""

    folder: Path

    def at(self, step: int) -> Path:
        """Folder of one step."""
        return self.folder / f"step-{step:07d}"

    def save(self, step: int, write: Fill) -> Path:
        """Let `write` fill a folder aside, sync it to disk, then rename it once.

        Args:
            step: finished updates.
            write: may return the SHA-256 of files that it knows already; the others are read.

        Raises:
            OSError: it can't be written; nothing is left of it, and older checkpoints are untouched.
        """
        target = self.at(step)
        with aside(target) as beside:
            beside.mkdir()
            _seal(beside, write(beside) or {})
        _sync(self.folder)
        return target

    def keep(self, steps: set[int]) -> None:
        """Remove all others, and what a killed process left half-written."""
        wanted = {self.at(step).name for step in steps}
        for path in [*self.folder.glob("step-*"), *self.folder.glob(".step-*")]:
            if path.name not in wanted:
                shutil.rmtree(path)

    def finish(self, best: int, without: str) -> None:
        """A finished run keeps its best weights; what only a resume needs (a pattern) is removed."""
        self.keep({best})
        for path in self.at(best).glob(without):
            path.unlink()
        _seal(self.at(best), {})

    def hashes(self, step: int) -> dict[str, str] | None:
        """SHA-256 of the files of one checkpoint; None where it couldn't be written."""
        path = self.at(step) / MANIFEST
        return dict(json.loads(path.read_text(encoding="utf-8"))["sha256"]) if path.is_file() else None

    def steps(self) -> list[int]:
        """Steps that have a folder, oldest first."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def good(self) -> Iterator[int]:
        """Steps whose files are what their manifest says, newest first; damaged ones are named in the log."""
        for step in reversed(self.steps()):
            problem = damage(self.at(step))
            if problem is None:
                yield step
            else:
                log.warning("checkpoint %s is not used: %s", self.at(step), problem)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, None if every file is what the manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = dict(manifest["sha256"])
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    if manifest.get("self") != _digest_of(expected):
        return f"{MANIFEST} is damaged"
    for name, sha256 in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_sha256(folder / name) != sha256:
            return f"{name} is damaged (its SHA-256 differs)"
    return None


def _digest_of(hashes: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _seal(folder: Path, known: Mapping[str, str]) -> None:
    """Write the manifest, with hashes that are known or read, and bring every file to the disk."""
    files = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    hashes = {path.name: known.get(path.name) or file_sha256(path) for path in files}
    manifest = {"sha256": hashes, "self": _digest_of(hashes)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*folder.iterdir(), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
