"""A trained model as a directory: weights, tokenizer, label names and the card that says how to load it.

With all parameters trained the directory is also an ordinary transformers model directory. With a
parameter-efficient method it holds only what trained, and names its base with the hash of its weights.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config import Method, Node, build
from whet.engine.checkpoint import is_complete, load_tensors
from whet.errors import ModelError, RunError
from whet.model.encoder import Encoder
from whet.peft.base import apply
from whet.task.base import Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from whet.model.encoder import Loaded
    from whet.paths import Paths

CARD = "whet.json"
WHOLE = "model.safetensors"
PART = "trained.safetensors"


@dataclass
class Trained:
    """A trained model in memory."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    task: Task
    label_names: tuple[str, ...]
    card: Node


def export(folder: Path, weights: Path, model: nn.Module, loaded: Loaded, config: Node, label_names: tuple[str, ...]) -> None:
    """Write the directory aside and rename it.

    Args:
        folder: the directory to make.
        weights: checkpoint file to put in.
        model: the model that the checkpoint belongs to.
        loaded: tokenizer and origin.
        config: the run's resolved config.
        label_names: in logit order.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    aside.mkdir(parents=True)
    whole = is_complete(model)
    _link(weights, aside / (WHOLE if whole else PART))
    loaded.model.config.save_pretrained(aside)
    loaded.tokenizer.save_pretrained(aside)
    card = {
        "format": 1,
        "whole": whole,
        "label_names": list(label_names),
        "base": {"id": loaded.located.id, "sha256": loaded.located.sha256},
        **{name: config[name] for name in ("task", "model", "peft")},
    }
    (aside / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)


def load(folder: Path, paths: Paths) -> Trained:
    """Read what `export` wrote.

    Raises:
        RunError: not such a directory, or damaged.
        ModelError: the base isn't to be had, or is another one.
    """
    card = read_card(folder)
    settings = {"task": card["task"], "model": card["model"], "peft": card["peft"]}
    parts = build(settings, _settings).keywords  # type: ignore[attr-defined]
    names = tuple(card["label_names"])
    if card["whole"]:
        model, tokenizer = _whole(folder)
    else:
        model, tokenizer = _part(folder, parts, names, card, paths)
    return Trained(model, tokenizer, parts["task"], names, card)


def read_card(folder: Path) -> Node:
    """The card of a model directory. Raises RunError if it has none."""
    try:
        card: Node = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{folder}: not a trained model (no {CARD}); did its run finish?") from None
    except json.JSONDecodeError as error:
        raise RunError(f"{folder / CARD}: damaged ({error})") from None
    return card


def _settings(*, task: Task, model: Encoder, peft: Method) -> None:
    """The signature that a card's settings are checked against."""


def _whole(folder: Path) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from whet.model.encoder import load_tokenizer

    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_config(config)
    load_tensors(model, folder / WHOLE)
    return model, load_tokenizer(folder)


def _part(folder: Path, parts: Any, names: tuple[str, ...], card: Node, paths: Paths) -> tuple[nn.Module, Any]:
    loaded = parts["model"].load(parts["task"].head(names), paths)
    if loaded.located.sha256 != card["base"]["sha256"]:
        problem = f"the base weights aren't those of the training ({card['base']['id']}, sha256 {card['base']['sha256'][:12]}…)"
        raise ModelError("model.weights", problem, loaded.located.id)
    model = apply(parts["peft"], loaded)
    load_tensors(model, folder / PART)
    return model, loaded.tokenizer


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
