"""A trained model as a directory: weights, tokenizer, label names and the card that says how to load it.

With all parameters trained the directory is also an ordinary transformers model directory. With a
parameter-efficient method it holds only what trained, and names its base with the hash of its weights.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whet.config import Method, Node, part
from whet.engine.checkpoint import is_complete, load_tensors
from whet.errors import ModelError, RunError, one_line
from whet.model.encoder import Encoder, load_tokenizer
from whet.peft.base import apply
from whet.storage import aside
from whet.task.base import Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from whet.data.prompt import Prompt
    from whet.model.encoder import Loaded
    from whet.model.weights import Located
    from whet.paths import Paths

FORMAT = 1
CARD = "whet.json"
WHOLE = "model.safetensors"
PART = "trained.safetensors"
_KEYS = ("format", "whole", "label_names", "base", "task", "model", "peft")


@dataclass
class Trained:
    """A trained model in memory."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    task: Task
    label_names: tuple[str, ...]
    card: Node

    @property
    def prompt(self) -> Prompt | None:
        """The pattern that each text is put into."""
        return self.task.prompt if self.card["model"].get("head") == "prompt" else None


def export(
    folder: Path, weights: Path, model: nn.Module, loaded: Loaded, config: Node, label_names: tuple[str, ...]
) -> None:
    """Write the directory aside and rename it.

    Args:
        folder: the directory to make.
        weights: checkpoint file to put in.
        model: the model that the checkpoint belongs to.
        loaded: tokenizer and origin.
        config: the run's resolved config.
        label_names: in logit order.
    """
    whole = is_complete(model)
    settings = copy.deepcopy(loaded.model.config)
    settings.architectures = [type(loaded.model).__name__]
    card = {
        "format": FORMAT,
        "whole": whole,
        "label_names": list(label_names),
        "base": {"id": loaded.located.id, "sha256": loaded.located.sha256},
        **{name: config[name] for name in ("task", "model", "peft")},
    }
    with aside(folder) as beside:
        beside.mkdir()
        _link(weights, beside / (WHOLE if whole else PART))
        settings.save_pretrained(beside)
        loaded.tokenizer.save_pretrained(beside)
        (beside / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False), encoding="utf-8")


def load(folder: Path, paths: Paths) -> Trained:
    """Read what `export` wrote, ready to predict; torch's random numbers are left where they were.

    Raises:
        RunError: not such a directory, or damaged.
        ModelError: the base isn't to be had, or is another one.
    """
    import torch

    card = read_card(folder)
    task: Task = part(card["task"], Task, "task")
    encoder: Encoder = part(card["model"], Encoder, "model")
    method: Method = part(card["peft"], Method, "peft")
    names = tuple(card["label_names"])
    with torch.random.fork_rng(devices=[]):
        if card["whole"]:
            model = _whole(folder, encoder)
        else:
            _same_base(encoder.locate(paths), card["base"])
            model = apply(method, encoder.load(task.head(names), paths))
            load_tensors(model, folder / PART)
    tokenizer = load_tokenizer(folder, encoder.trust_remote_code)
    return Trained(encoder.tuned(model).eval(), tokenizer, task, names, card)


def read_card(folder: Path) -> Node:
    """The card of a model directory. Raises RunError if it has none, or not one that this version reads."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{folder}: not a trained model (no {CARD}); did its run finish?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{folder / CARD}: damaged ({error})") from None
    missing = [key for key in _KEYS if key not in card] if isinstance(card, dict) else list(_KEYS)
    if missing:
        raise RunError(f"{folder / CARD}: damaged (it lacks {', '.join(missing)})")
    if card["format"] != FORMAT:
        raise RunError(
            f"{folder / CARD}: format {card['format']}; this version of whet reads format {FORMAT}"
        )
    return dict(card)


def _whole(folder: Path, encoder: Encoder) -> nn.Module:
    import torch
    from transformers import AutoConfig

    from whet.model.heads import blank

    trust = encoder.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}/config.json: missing or damaged ({one_line(error)[:200]})") from None
    made: nn.Module = blank(
        config, encoder.head, dtype=torch.float32, trust_remote_code=trust, **encoder.implementation()
    )
    load_tensors(made, folder / WHOLE)
    return made


def _same_base(base: Located, wanted: Node) -> None:
    if base.sha256 != wanted["sha256"]:
        problem = f"not the base of the training ({wanted['id']}, sha256 {wanted['sha256'][:12]}…)"
        raise ModelError("model.weights", problem, base.id)


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
