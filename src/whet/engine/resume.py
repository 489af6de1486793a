"""Everything that training needs to go on exactly where it stopped, as files of a checkpoint."""

from __future__ import annotations

import contextlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.engine.callbacks import Callback, State
from whet.engine.checkpoint import Checkpoints, damage, load_tensors, tensors_of
from whet.engine.distributed import ALONE, World, full, laid_out
from whet.engine.image import Image
from whet.errors import RunError
from whet.evaluation.predictions import Predictions
from whet.objective.base import Objective

if TYPE_CHECKING:
    import torch

    from whet.engine.step import Stepper

log = logging.getLogger("whet.engine")
WEIGHTS = "model.safetensors"
TRAINING = "training.safetensors"
FURTHER = "training-{}.safetensors"
ALL_TRAINING = "training*.safetensors"
PART = 32 * 2**20
"""Bytes of tensors from which on they go to several files, so that several threads can hash them."""
STATE = "state.json"
BEST = "validation.npz"


class Images:
    """The large files of a checkpoint in memory, which those of the next one overwrite."""

    def __init__(self) -> None:
        self._held: dict[str, Image] = {}

    def fill(self, name: str, tensors: Mapping[str, torch.Tensor]) -> Image:
        """The file `name` with these tensors, valid until the next one of this name."""
        held = self._held.get(name)
        if held is None or not held.fits(tensors):
            held = self._held[name] = Image(tensors)
        held.fill(tensors)
        return held


@dataclass
class Contents:
    """What a checkpoint holds, taken from every process of the job."""

    images: dict[str, Image]
    """Weights as they are judged; state of the optimizer and of the random generators."""
    facts: dict[str, Any]
    best: Predictions | None
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the images, where they are known."""

    def hash(self, threads: int) -> None:
        """Find the images' SHA-256, on several threads that end at about the same time."""
        largest_first = sorted(self.images, key=lambda name: -self.images[name].size)
        with ThreadPoolExecutor(threads) as pool:
            found = pool.map(lambda name: self.images[name].sha256(), largest_first)
            self.hashes = dict(zip(largest_first, found, strict=True))

    def write(self, folder: Path) -> dict[str, str]:
        """Put everything into `folder`; returns the SHA-256 of the images."""
        if not self.hashes:
            self.hash(1)
        for name, image in self.images.items():
            image.write(folder / name)
        if self.best is not None:
            self.best.save(folder / BEST)
        (folder / STATE).write_text(json.dumps(self.facts, indent=1), encoding="utf-8")
        return self.hashes


def take(
    stepper: Stepper,
    state: State,
    callbacks: Sequence[Callback],
    world: World = ALONE,
    images: Images | None = None,
) -> Contents:
    """Copies of weights, optimizer, method, scaler, every process's random generators, counters, callbacks.

    Where the CPU trains, hashing is done here: behind the training's back it would take longer, since a step
    whose threads don't all get a core waits for the last of them.

    Args:
        stepper: model, optimizer and scaler.
        state: the counters.
        callbacks: in the order of the run.
        world: the processes; only the first one's contents are filled.
        images: where the copies lie; the next call with the same overwrites them.
    """
    import torch

    stepper.settle()
    tensors, groups = _optimizer_state(stepper.optimizer)
    for number, companion in enumerate(stepper.companions):
        tensors |= {f"peft.{number}.{name}": value for name, value in companion.state().items()}
    generators = world.gather(_generators(stepper.amp.device))
    for rank, (states, _) in enumerate(generators):
        tensors |= {f"random.{rank}.{name}": value for name, value in states.items()}
    tensors |= _held(stepper, callbacks)
    facts = {
        "state": counters(state),
        "optimizer": groups,
        "scaler": stepper.scaler.state_dict(),
        "stepper": {"pieces": stepper.pieces, "skipped": stepper.skipped},
        "random": [seeds for _, seeds in generators],
        "callbacks": {type(item).__name__: item.state_dict() for item in callbacks},
    }
    with stepper.judged():
        files = {WEIGHTS: tensors_of(stepper.model), **parted(tensors)}
    images = images or Images()
    filled = {name: images.fill(name, held) for name, held in files.items()} if world.first else {}
    contents = Contents(filled, facts, state.best)
    if stepper.amp.device.type == "cpu":
        contents.hash(min(torch.get_num_threads(), len(files)))
    return contents


def parted(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by the file that each goes to: about `PART` bytes a file, but not many files."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    limit = max(PART, sum(sizes.values()) // 8)
    files: list[dict[str, torch.Tensor]] = [{}]
    room = limit
    for name in sorted(tensors):  # an optimizer that was loaded may have another order
        if sizes[name] > room and files[-1]:
            files.append({})
            room = limit
        files[-1][name] = tensors[name]
        room -= sizes[name]
    return {FURTHER.format(n) if n > 1 else TRAINING: held for n, held in enumerate(files, 1)}


def read(folder: Path, stepper: Stepper, callbacks: Sequence[Callback], world: World = ALONE) -> State:
    """Put everything back that `take` took; returns the counters.

    Raises:
        RunError: the checkpoint is of another model or optimizer.
    """
    from safetensors.torch import load_file

    facts = json.loads((folder / STATE).read_text(encoding="utf-8"))
    load_tensors(stepper.model, folder / WEIGHTS)
    tensors = {k: t for path in sorted(folder.glob(ALL_TRAINING)) for k, t in load_file(path).items()}
    _restore_optimizer(stepper.optimizer, tensors, facts["optimizer"], folder)
    for number, companion in enumerate(stepper.companions):
        companion.load_state(_below(f"peft.{number}.", tensors))
    stepper.scaler.load_state_dict(facts["scaler"])
    stepper.pieces, stepper.skipped = facts["stepper"]["pieces"], facts["stepper"]["skipped"]
    for item in callbacks:
        item.load_state_dict(facts["callbacks"].get(type(item).__name__, {}))
    for name, holder in _holders(stepper, callbacks).items():
        holder.load_tensors(_below(f"{name}.", tensors))
    best = Predictions.load(folder / BEST) if (folder / BEST).is_file() else None
    rank = world.ranks.rank
    _restore_generators(_below(f"random.{rank}.", tensors), facts["random"][rank], stepper.amp.device)
    return State(**{**facts["state"], "best": best})


def _holders(stepper: Stepper, callbacks: Sequence[Callback]) -> dict[str, Callback | Objective]:
    """Whoever may have tensors of its own, by the start of their names."""
    held: dict[str, Callback | Objective] = {f"callback.{type(item).__name__}": item for item in callbacks}
    if isinstance(stepper.objective, Objective):
        held["objective"] = stepper.objective
    return held


def _held(stepper: Stepper, callbacks: Sequence[Callback]) -> dict[str, torch.Tensor]:
    """Their tensors."""
    return {
        f"{start}.{name}": tensor.detach()
        for start, holder in _holders(stepper, callbacks).items()
        for name, tensor in holder.tensors().items()
    }


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors whose names start so, without that start."""
    return {name.removeprefix(prefix): held for name, held in tensors.items() if name.startswith(prefix)}


def counters(state: State) -> dict[str, Any]:
    """The counters alone."""
    return {name: getattr(state, name) for name in state.__dataclass_fields__ if name != "best"}


# ---------------------------------------------------------------- optimizer


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors by `optimizer.<parameter>.<name>`, and all else as JSON."""
    import torch

    whole = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for number, values in whole["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{number}.{name}"] = full(value).detach()
            else:
                plain.setdefault(str(number), {})[name] = value
    return tensors, {"groups": whole["param_groups"], "plain": plain}


def _restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    saved: Mapping[str, Any],
    folder: Path,
) -> None:
    state: dict[int, dict[str, Any]] = {
        int(number): dict(values) for number, values in saved["plain"].items()
    }
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            number, _, name = rest.partition(".")
            state.setdefault(int(number), {})[name] = laid_out(tensor, parameters[int(number)])
    try:
        optimizer.load_state_dict({"state": state, "param_groups": saved["groups"]})
    except (ValueError, KeyError) as error:
        raise RunError(f"{folder}: its optimizer isn't this run's ({error})") from None


# ---------------------------------------------------------------- random numbers


def _generators(device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """States of torch's generators (CPU and `device`) as tensors; of Python's and NumPy's as JSON."""
    import torch

    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    version, numbers, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    numpy_state = [str(name), [int(key) for key in keys], int(place), int(has_gauss), float(cached)]
    return tensors, {"python": [version, list(numbers), gauss], "numpy": numpy_state}


def _restore_generators(
    tensors: Mapping[str, torch.Tensor], saved: Mapping[str, Any], device: torch.device
) -> None:
    import torch

    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


# ---------------------------------------------------------------- finding


def restore_newest(
    checkpoints: Checkpoints, stepper: Stepper, callbacks: Sequence[Callback], world: World = ALONE
) -> State | None:
    """Go back to the newest checkpoint that is whole; None where there is none.

    The best checkpoint must be whole too: it is what the run will export.
    """
    step = world.told(lambda: _newest(checkpoints))
    return None if step is None else read(checkpoints.at(step), stepper, callbacks, world)


def bests(checkpoints: Checkpoints) -> dict[int, int]:
    """Step of the best evaluation so far, for each checkpoint that says so; a damaged one may not."""
    found = {}
    for step in checkpoints.steps():
        with contextlib.suppress(OSError, ValueError, KeyError):
            state = _state_of(checkpoints.at(step))
            found[step] = int(state["best_step"]) if state["evaluated"] >= 0 else step
    return found


def _state_of(folder: Path) -> dict[str, Any]:
    """The counters in a checkpoint."""
    return dict(json.loads((folder / STATE).read_text(encoding="utf-8"))["state"])


def _newest(checkpoints: Checkpoints) -> int | None:
    for step in checkpoints.good():
        folder = checkpoints.at(step)
        facts = _state_of(folder)
        best = int(facts["best_step"])
        if facts["evaluated"] >= 0 and best != step and (problem := damage(checkpoints.at(best))):
            log.warning("checkpoint %s is not used: its best, step %d: %s", folder, best, problem)
            continue
        return step
    return None
