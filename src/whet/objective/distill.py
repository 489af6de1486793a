"""Distillation: learn what a trained model says of the texts (Hinton et al., 2015)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.errors import ConfigError
from whet.objective.base import Objective, need_kind
from whet.objective.divergence import KINDS, divergence
from whet.storage import aside, file_sha256
from whet.types import Fraction, NonNegativeFloat, PositiveFloat

if TYPE_CHECKING:
    import torch
    from torch import nn

    from whet.data.batch import Batch
    from whet.engine.artifact import Trained
    from whet.objective.base import Forward, Setting
    from whet.task.base import Task

log = logging.getLogger("whet.objective")


@dataclass(kw_only=True)
class Distill(Objective):
    """Knowledge distillation: (1 - alpha) L + alpha T² KL(teacher / T || student / T) + hidden * H.

    What the teacher says of the training texts is computed once, with its own tokenizer, and cached. H, the
    mean squared distance of hidden states, needs the teacher in every pass and a tokenizer in common. Of a
    regression the second term is half the squared distance of the values, whatever T. One pass of the
    student; train/loss is the sum that stands above.
    Hinton et al., 2015, Distilling the Knowledge in a Neural Network; hidden states as in Jiao et al., 2020,
    TinyBERT, equation 8.
    """

    teacher: str
    """A finished run's folder, or a model directory (`outputs/runs/RUN/model`), of the same labels."""
    alpha: Fraction = 0.5
    """Share of the teacher's word beside the labels'."""
    temperature: PositiveFloat = 2.0
    """T: divides both models' logits."""
    hidden: NonNegativeFloat = 0.0
    """Weight of the hidden states."""
    layers: list[int] | None = None
    """The teacher's block (from 1) that each block of the student follows; null: evenly spread."""

    _kind: str = field(init=False, repr=False, default="")
    _sha256: str = field(init=False, repr=False, default="")
    _said: torch.Tensor | None = field(init=False, repr=False, compare=False, default=None)
    _model: nn.Module | None = field(init=False, repr=False, compare=False, default=None)
    _map: nn.Parameter | None = field(init=False, repr=False, compare=False, default=None)

    @property
    def reads_states(self) -> bool:
        return self.hidden > 0

    @property
    def reads_labels(self) -> bool:
        return True

    def check(self, task: Task) -> None:
        from whet.config import part
        from whet.engine.artifact import read_card
        from whet.task.base import Task

        need_kind(task, KINDS, "distillation compares outputs of whole texts")
        own: Task = part(read_card(folder_of(self.teacher))["task"], Task, "task")
        if own.kind != task.kind:
            problem = f"it was trained for a task of kind {own.kind}, this one is {task.kind}"
            raise ConfigError("teacher", problem, self.teacher)
        if self.layers is not None and not self.hidden:
            raise ConfigError("layers", "means nothing while objective.hidden is 0", self.layers)
        self._kind = task.kind

    def prepare(self, setting: Setting) -> None:
        """Load the teacher and hear what it says of the training texts."""
        from whet.engine import artifact

        folder = folder_of(self.teacher)
        trained = artifact.load(folder, setting.paths)
        if tuple(setting.label_names) != trained.label_names:
            problem = f"its labels are {list(trained.label_names)}, the task's {list(setting.label_names)}"
            raise ConfigError("teacher", problem, self.teacher)
        self._sha256 = identity(folder, trained)
        trained.model.to(setting.amp.device)
        if self.hidden:
            self._follow(trained, setting)
        else:
            self._said = said(trained, setting, self._sha256)

    def __call__(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """The losses, and what the teacher's word and states add."""
        found = forward.outputs(batch) if self.hidden else None
        logits = forward(batch) if found is None else found.logits
        given, states = self._ask(batch)
        t = self.temperature
        apart = self.alpha * t**2 * divergence(self._kind)(given.float() / t, logits.float() / t)
        if found is not None:
            apart = apart + self.hidden * self._distance(found.hidden_states, states, batch)
        losses = (1 - self.alpha) * forward.losses(logits, batch)
        return (losses + apart * forward.weights(batch)).sum()

    def parameters(self) -> dict[str, nn.Parameter]:
        """[student's width, teacher's width] map between states of unequal width."""
        return {} if self._map is None else {"map": self._map}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters().items()}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(tensors[name])

    def facts(self) -> dict[str, Any]:
        """Which teacher it was."""
        return {"teacher": self._sha256}

    def _ask(self, batch: Batch) -> tuple[torch.Tensor, Any]:
        """The teacher's logits [batch, outputs]; its hidden states where they count."""
        import torch

        if self._said is not None:
            return self._said[torch.from_numpy(batch.rows)].to(batch.labels.device), None
        if self._model is None:
            raise RuntimeError("distillation wasn't prepared")
        with torch.no_grad():
            found: Any = self._model(**batch.inputs, output_hidden_states=True)
        return found.logits, found.hidden_states

    def _follow(self, trained: Trained, setting: Setting) -> None:
        """Keep the teacher, and make the map to its states if one is needed."""
        import torch

        if trained.tokenizer.get_vocab() != setting.tokenizer.get_vocab():
            problem = "hidden states need the teacher's tokenizer, the student's is another: set it to 0"
            raise ConfigError("hidden", problem, self.hidden)
        if any(hasattr(p, "full_tensor") for p in setting.model.parameters()):
            problem = "states of a model in parts aren't compared: set it to 0, or engine.parallel=ddp"
            raise ConfigError("hidden", problem, self.hidden)
        self._model = trained.model.eval().requires_grad_(False)
        own, theirs = (shape_of(model) for model in (setting.model, trained.model))
        if self.layers is None:
            self.layers = spread(own[0], theirs[0])
        elif len(self.layers) != own[0] or not all(1 <= layer <= theirs[0] for layer in self.layers):
            problem = f"must name a block from 1 to {theirs[0]} for each of the student's {own[0]}"
            raise ConfigError("layers", problem, self.layers)
        if own[1] != theirs[1]:
            numbers = torch.randn(own[1], theirs[1], generator=torch.Generator().manual_seed(setting.seed))
            self._map = torch.nn.Parameter((numbers / own[1] ** 0.5).to(setting.amp.device))

    def _distance(self, own: Any, theirs: Any, batch: Batch) -> torch.Tensor:
        """[batch] mean over blocks, tokens and dimensions."""
        import torch

        real = batch.inputs["attention_mask"].unsqueeze(-1).float()
        parts = []
        for state, layer in zip(own[1:], self.layers or [], strict=True):
            mapped = state.float() if self._map is None else state.float() @ self._map
            errors = (mapped - theirs[layer].float()).square().mean(-1, keepdim=True) * real
            parts.append(errors.sum((1, 2)) / real.sum((1, 2)))
        return torch.stack(parts).mean(0)


def folder_of(teacher: str) -> Path:
    """The model directory of a run, or the directory itself.

    Raises:
        ConfigError: it is neither.
    """
    from whet.engine.artifact import CARD

    folder = Path(teacher).expanduser()
    for place in (folder, folder / "model"):
        if (place / CARD).is_file():
            return place
    raise ConfigError("teacher", f"neither a finished run nor a model directory (no {CARD} there)", teacher)


def identity(folder: Path, trained: Trained) -> str:
    """SHA-256 of all of a trained model's weights: its own and, where it has one, its base's."""
    from whet.engine.artifact import PART, WHOLE

    whole = bool(trained.card["whole"])
    own = file_sha256(folder / (WHOLE if whole else PART))
    return own if whole else hashlib.sha256(f"{own} {trained.card['base']['sha256']}".encode()).hexdigest()


def said(trained: Trained, setting: Setting, sha256: str) -> torch.Tensor:
    """[n, outputs] logits of the training texts, from the cache where this teacher has been asked before."""
    import numpy as np
    import torch

    from whet.data.tokens import texts_hash

    texts, amp = setting.train.texts, setting.amp
    told = [sha256, texts_hash(texts), trained.task.max_length, amp.name, amp.device.type]
    key = hashlib.sha256(repr(told).encode()).hexdigest()[:32]
    path = setting.paths.cached("teachers") / f"{key}.npy"
    if not path.is_file():
        logits = _asked(trained, setting)
        with aside(path) as beside, beside.open("wb") as file:
            np.save(file, logits, allow_pickle=False)
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _asked(trained: Trained, setting: Setting) -> Any:
    """[n, outputs] logits, computed."""
    import numpy as np

    from whet.data.batch import Collator
    from whet.data.tokens import encode
    from whet.engine.evaluate import logits_of

    texts = setting.train.texts
    limit = min(trained.task.max_length, int(trained.tokenizer.model_max_length))
    tokens = encode(texts, trained.tokenizer, limit, prompt=trained.prompt)
    collator = Collator.of(tokens, np.zeros(len(texts)), trained.tokenizer, setting.batching)
    log.info("distillation: the teacher reads %d training texts", len(texts))
    return logits_of(trained.model, collator, setting.amp, "asking the teacher")


def shape_of(model: nn.Module) -> tuple[int, int]:
    """(blocks, width) of a model, by its config."""
    config: Any = model.config
    return int(config.num_hidden_layers), int(config.hidden_size)


def spread(student: int, teacher: int) -> list[int]:
    """The teacher's block for each of the student's: the last for the last, the others evenly below."""
    return [max(1, round(number * teacher / student)) for number in range(1, student + 1)]
