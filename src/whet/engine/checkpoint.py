"""What a run keeps of its weights: the tensors that training can have changed, as safetensors."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.errors import RunError, one_line
from whet.peft.base import trained_names

if TYPE_CHECKING:
    import torch
    from torch import nn


def is_complete(model: nn.Module) -> bool:
    """Whether every parameter trains, so that the saved tensors are the whole model."""
    return all(parameter.requires_grad for parameter in model.parameters())


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors to save: all of them, or those that train; a tied tensor once."""
    state = model.state_dict()
    wanted = list(state) if is_complete(model) else trained_names(model)
    seen: set[int] = set()
    found = {}
    for name in wanted:
        pointer = state[name].data_ptr()
        if pointer not in seen or pointer == 0:
            found[name] = state[name].detach().cpu().contiguous()
        seen.add(pointer)
    return found


def save_tensors(model: nn.Module, path: Path) -> None:
    """Write `tensors_of(model)`, whole or not at all."""
    from safetensors.torch import save_file

    aside = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors_of(model), aside, metadata={"format": "pt"})
    aside.replace(path)


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
    model.load_state_dict(saved, strict=False)


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise RunError(f"{path}: the weights are missing")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise RunError(f"{path}: damaged ({one_line(error)})") from None


@dataclass
class Checkpoints:
    """`checkpoints/step-000123/`: weights and where they come from; the best and the last are kept."""

    folder: Path

    def at(self, step: int) -> Path:
        """Folder of one step."""
        return self.folder / f"step-{step:07d}"

    def save(self, model: nn.Module, step: int, facts: dict[str, Any]) -> Path:
        """Write aside, then rename."""
        target = self.at(step)
        if target.exists():
            return target
        aside = self.folder / f".{target.name}.{os.getpid()}"
        aside.mkdir(parents=True)
        save_tensors(model, aside / "model.safetensors")
        (aside / "state.json").write_text(json.dumps({"step": step, **facts}, indent=1), encoding="utf-8")
        aside.rename(target)
        return target

    def keep(self, steps: set[int]) -> None:
        """Remove all others."""
        wanted = {self.at(step).name for step in steps}
        for path in self.folder.glob("step-*"):
            if path.name not in wanted:
                shutil.rmtree(path)
