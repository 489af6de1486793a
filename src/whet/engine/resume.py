"""Everything that training needs to go on exactly where it stopped, as files of a checkpoint."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.engine.callbacks import Callback, State
from whet.engine.checkpoint import Checkpoints, damage, load_tensors, save_tensors
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


def write(folder: Path, stepper: Stepper, state: State, callbacks: Sequence[Callback]) -> None:
    """Put weights, optimizer, scaler, random generators, counters and callbacks into `folder`."""
    from safetensors.torch import save_file

    stepper.settle()
    tensors, groups = _optimizer_state(stepper.optimizer)
    generators, seeds = _generators()
    save_tensors(stepper.model, folder / WEIGHTS)
    save_file({**tensors, **generators}, folder / TRAINING)
    if state.best is not None:
        state.best.save(folder / BEST)
    facts = {
        "state": counters(state),
        "optimizer": groups,
        "scaler": stepper.scaler.state_dict(),
        "stepper": {"pieces": stepper.pieces, "skipped": stepper.skipped},
        "random": seeds,
        "callbacks": {type(item).__name__: item.state_dict() for item in callbacks},
    }
    (folder / STATE).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def read(folder: Path, stepper: Stepper, callbacks: Sequence[Callback]) -> State:
    """Put everything back that `write` took; returns the counters.

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
    _restore_generators(tensors, facts["random"])
    return State(**{**facts["state"], "best": best})


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
                tensors[f"optimizer.{number}.{name}"] = value.detach().cpu().contiguous().clone()
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
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            number, _, name = rest.partition(".")
            state.setdefault(int(number), {})[name] = tensor
    try:
        optimizer.load_state_dict({"state": state, "param_groups": saved["groups"]})
    except (ValueError, KeyError) as error:
        raise RunError(f"{folder}: its optimizer isn't this run's ({error})") from None


# ---------------------------------------------------------------- random numbers


def _generators() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """States of torch's generators as tensors; of Python's and NumPy's as JSON."""
    import torch

    tensors = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"random.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, numbers, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    numpy_state = [str(name), [int(key) for key in keys], int(place), int(has_gauss), float(cached)]
    return tensors, {"python": [version, list(numbers), gauss], "numpy": numpy_state}


def _restore_generators(tensors: Mapping[str, torch.Tensor], saved: Mapping[str, Any]) -> None:
    import torch

    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            state = tensors.get(f"random.cuda.{number}")
            if state is not None:
                torch.cuda.set_rng_state(state, number)
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


# ---------------------------------------------------------------- finding


def restore_newest(checkpoints: Checkpoints, stepper: Stepper, callbacks: Sequence[Callback]) -> State | None:
    """Go back to the newest checkpoint that is whole; None where there is none.

    The best checkpoint must be whole too: it is what the run will export.
    """
    for step in checkpoints.good():
        folder = checkpoints.at(step)
        facts = json.loads((folder / STATE).read_text(encoding="utf-8"))["state"]
        best = int(facts["best_step"])
        if facts["evaluated"] >= 0 and best != step and (problem := damage(checkpoints.at(best))):
            log.warning("checkpoint %s is not used: its best, step %d: %s", folder, best, problem)
            continue
        return read(folder, stepper, callbacks)
    return None
