"""Everything that training needs to go on exactly where it stopped, as files of a checkpoint."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.engine.callbacks import Callback, State
from whet.engine.checkpoint import Buffers, Checkpoints, damage, load_tensors, save_tensors, tensors_of
from whet.engine.distributed import ALONE, World, full, laid_out
from whet.errors import RunError
from whet.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import torch

    from whet.engine.step import Stepper

log = logging.getLogger("whet.engine")
WEIGHTS = "model.safetensors"
TRAINING = "training.safetensors"
STATE = "state.json"
BEST = "validation.npz"


@dataclass
class Contents:
    """What a checkpoint holds, taken from every process of the job."""

    weights: dict[str, torch.Tensor]
    training: dict[str, torch.Tensor]
    """Of the optimizer and of the random generators."""
    facts: dict[str, Any]
    best: Predictions | None

    def write(self, folder: Path) -> None:
        """Put everything into `folder`."""
        from safetensors.torch import save_file

        save_tensors(self.weights, folder / WEIGHTS)
        save_file(self.training, folder / TRAINING)
        if self.best is not None:
            self.best.save(folder / BEST)
        (folder / STATE).write_text(json.dumps(self.facts, indent=1), encoding="utf-8")


def take(
    stepper: Stepper,
    state: State,
    callbacks: Sequence[Callback],
    world: World = ALONE,
    buffers: Buffers | None = None,
) -> Contents:
    """Copies of weights, optimizer, scaler, every process's random generators, counters and callbacks.

    Args:
        stepper: model, optimizer and scaler.
        state: the counters.
        callbacks: in the order of the run.
        world: the processes.
        buffers: where the copies lie; the next call with the same overwrites them.
    """
    stepper.settle()
    buffers = buffers or Buffers()
    tensors, groups = _optimizer_state(stepper.optimizer, buffers)
    generators = world.gather(_generators(stepper.amp.device))
    for rank, (states, _) in enumerate(generators):
        tensors |= {f"random.{rank}.{name}": value for name, value in states.items()}
    facts = {
        "state": counters(state),
        "optimizer": groups,
        "scaler": stepper.scaler.state_dict(),
        "stepper": {"pieces": stepper.pieces, "skipped": stepper.skipped},
        "random": [seeds for _, seeds in generators],
        "callbacks": {type(item).__name__: item.state_dict() for item in callbacks},
    }
    return Contents(tensors_of(stepper.model, buffers.copy), tensors, facts, state.best)


def read(folder: Path, stepper: Stepper, callbacks: Sequence[Callback], world: World = ALONE) -> State:
    """Put everything back that `take` took; returns the counters.

    Raises:
        RunError: the checkpoint is of another model or optimizer.
    """
    from safetensors.torch import load_file

    facts = json.loads((folder / STATE).read_text(encoding="utf-8"))
    load_tensors(stepper.model, folder / WEIGHTS)
    tensors = load_file(folder / TRAINING)
    _restore_optimizer(stepper.optimizer, tensors, facts["optimizer"], folder)
    stepper.scaler.load_state_dict(facts["scaler"])
    stepper.pieces, stepper.skipped = facts["stepper"]["pieces"], facts["stepper"]["skipped"]
    for item in callbacks:
        item.load_state_dict(facts["callbacks"].get(type(item).__name__, {}))
    best = Predictions.load(folder / BEST) if (folder / BEST).is_file() else None
    rank = world.ranks.rank
    own = {name.removeprefix(f"random.{rank}."): value for name, value in tensors.items()}
    _restore_generators(own, facts["random"][rank], stepper.amp.device)
    return State(**{**facts["state"], "best": best})


def counters(state: State) -> dict[str, Any]:
    """The counters alone."""
    return {name: getattr(state, name) for name in state.__dataclass_fields__ if name != "best"}


# ---------------------------------------------------------------- optimizer


def _optimizer_state(
    optimizer: torch.optim.Optimizer, buffers: Buffers
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors by `optimizer.<parameter>.<name>`, and all else as JSON."""
    import torch

    whole = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for number, values in whole["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                key = f"optimizer.{number}.{name}"
                tensors[key] = buffers.copy(key, full(value))
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


def _newest(checkpoints: Checkpoints) -> int | None:
    for step in checkpoints.good():
        folder = checkpoints.at(step)
        facts = json.loads((folder / STATE).read_text(encoding="utf-8"))["state"]
        best = int(facts["best_step"])
        if facts["evaluated"] >= 0 and best != step and (problem := damage(checkpoints.at(best))):
            log.warning("checkpoint %s is not used: its best, step %d: %s", folder, best, problem)
            continue
        return step
    return None
