"""A pretrained transformer with the head that a task needs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from whet.config import Component
from whet.errors import ModelError, one_line
from whet.model.heads import PROMPT, HeadKind, blank, loader
from whet.model.weights import Located, Weights
from whet.types import Probability

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from whet.data.prompt import Prompt
    from whet.paths import Paths
    from whet.task.base import Head

log = logging.getLogger("whet.model")
ALIGNMENT = 64
"""Bytes; an address that torch gives a tensor is a multiple of it."""


@dataclass
class Loaded:
    """A model in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    new: frozenset[str]
    """Parameters the weights didn't hold: they start at random, so every method trains and saves them."""
    located: Located
    prompt: Prompt | None = None
    """The pattern that each text is put into."""


@dataclass(kw_only=True)
class Encoder(Component):
    """Any architecture for which transformers has a sequence classification."""

    name: str
    """Used in run names."""
    weights: Weights
    """Where the weights come from."""
    dropout: Probability | None = None
    """Every dropout inside the trunk, not that of the head; null keeps the model's own."""
    head_dropout: Probability | None = None
    """Every dropout of the head; null keeps the model's own."""
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """Attention implementation of transformers; auto takes its choice."""
    kernels: Literal["auto", "torch"] = "auto"
    """auto: quicker dropout, norms, attention and embedding gradients on CPUs; torch: its own throughout."""
    head: HeadKind = "own"
    """own: transformers' classification head; mean: one layer on the mean of the states, which sentence
    embeddings are; prompt: a masked language model's words in the gap of task.prompt."""
    replace_head: bool = False
    """Start a new head where the weights bring one of another size."""
    trust_remote_code: bool = False
    """Run code that comes with the weights. Only for weights whose every file you have read."""

    def load(self, head: Head, paths: Paths) -> Loaded:
        """Weights with a head; random numbers of a new head come from torch's global generator.

        Raises:
            ModelError: nothing there, unreadable, or a head that doesn't fit the task.
        """
        quiet()
        located = self.locate(paths)
        config = self._config(located.folder, head)
        tokenizer = self._tokenizer(located)
        prompt = self._prompt(config, tokenizer, head)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
        rates = self._head_rates(config)
        self._set_dropout(config)
        model, new = self._weights(located, config, head)
        for module, rate in zip(head_dropouts(model), rates, strict=False):
            module.p = rate
        return Loaded(model, tokenizer, new, located, prompt)

    def _prompt(self, config: Any, tokenizer: PreTrainedTokenizerBase, head: Head) -> Prompt | None:
        """The task's pattern, if this head reads one; what the model must know of it goes into its config."""
        if self.head != "own" and self.trust_remote_code:
            raise ModelError("model.head", "not with code that comes with the weights: take own", self.head)
        if self.head != "prompt":
            return None
        if head.prompt is None or head.outputs != len(head.names):
            problem = "needs task.prompt, a pattern and each label's words, of a task of one class of several"
            raise ModelError("model.head", problem, self.head)
        if tokenizer.mask_token_id is None:
            problem = "its tokenizer has no mask token, which model.head=prompt asks for"
            raise ModelError("model.weights", problem, self.name)
        words = head.prompt.ids(tokenizer, head.names)
        setattr(config, PROMPT, {"mask": int(tokenizer.mask_token_id), "words": words})
        return head.prompt

    def locate(self, paths: Paths) -> Located:
        """The local directory of the weights, downloaded if need be."""
        try:
            return self.weights.locate(paths)
        except ModelError as error:
            raise error.under("model.weights") from None

    def tokenizer(self, paths: Paths) -> tuple[PreTrainedTokenizerBase, Located]:
        """The tokenizer alone."""
        located = self.locate(paths)
        return self._tokenizer(located), located

    def implementation(self) -> dict[str, str]:
        """What transformers must be told of `attention`."""
        return {} if self.attention == "auto" else {"attn_implementation": self.attention}

    def tuned(self, model: nn.Module) -> nn.Module:
        """`model`, PEFT included, with the kernels chosen."""
        if self.kernels == "auto":
            from whet.model.kernels import quicken

            quicken(model, attention=self.attention == "auto")
        return model

    def _tokenizer(self, located: Located) -> PreTrainedTokenizerBase:
        return load_tokenizer(located.folder, self.trust_remote_code)

    def _config(self, folder: Path, head: Head) -> Any:
        from transformers import AutoConfig

        names = head.names if head.outputs == len(head.names) else ()
        settings: dict[str, Any] = {"num_labels": head.outputs, "problem_type": head.problem}
        if names:
            settings |= {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=self.trust_remote_code, **settings)
        except (OSError, ValueError) as error:
            raise ModelError(
                "model.weights", f"transformers can't read its config: {one_line(error)}", folder
            ) from None
        return config

    def _set_dropout(self, config: Any) -> None:
        keys = dropout_keys(config)
        if self.dropout is not None and all(is_head_dropout(key) for key in keys):
            raise ModelError(
                "model.dropout", f"{config.model_type} has no dropout; leave it null", self.dropout
            )
        for key in keys:
            value = self.head_dropout if is_head_dropout(key) else self.dropout
            if value is not None:
                setattr(config, key, value)

    def _head_rates(self, config: Any) -> list[float]:
        """Rates of the head's dropouts, where a setting would change them or, wrongly, carry them along.

        Many heads take the trunk's rate where the config gives them none of their own, or read a setting
        that no config lists: so look at the head that transformers makes.
        """
        import torch

        if self.dropout is None and self.head_dropout is None:
            return []
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            found = head_dropouts(blank(config, self.head, trust_remote_code=self.trust_remote_code))
        if self.head_dropout is None:
            return [module.p for module in found]
        if not found:
            problem = f"the head of {config.model_type} has no dropout; leave it null"
            raise ModelError("model.head_dropout", problem, self.head_dropout)
        return [self.head_dropout for _ in found]

    def _weights(self, located: Located, config: Any, head: Head) -> tuple[PreTrainedModel, frozenset[str]]:
        import torch
        from safetensors import SafetensorError

        kind = loader(config, self.head)
        try:
            model, report = kind.from_pretrained(
                located.folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **({"trust_remote_code": self.trust_remote_code} if self.head == "own" else {}),
                **self.implementation(),
            )
        except (OSError, ValueError, SafetensorError) as error:
            if "attention implementation" in str(error):
                problem = f"{config.model_type} hasn't got it in transformers; take auto or eager"
                raise ModelError("model.attention", problem, self.attention) from None
            raise ModelError("model.weights", one_line(error), located.id) from None
        mismatched = {str(item[0]) for item in report["mismatched_keys"]}
        new = _own_names(model, {*report["missing_keys"], *mismatched})
        _check_trunk(model, new, mismatched, located)
        self._check_head(mismatched, head, located)
        if self.head == "prompt" and new:
            names = ", ".join(sorted(new)[:3])
            problem = f"they bring no head that guesses words ({names}); whet pretrain makes one"
            raise ModelError("model.weights", problem, located.id)
        align(model)
        return model, new

    def _check_head(self, mismatched: set[str], head: Head, located: Located) -> None:
        if mismatched and not self.replace_head:
            names = ", ".join(sorted(mismatched))
            problem = (
                f"these weights bring a head of another size ({names}); the task needs "
                f"{head.outputs} outputs: set model.replace_head=true to start a new one"
            )
            raise ModelError("model.weights", problem, located.id)


def quiet() -> None:
    """Keep transformers' own progress bars and load reports out of the way: whet tells what is new."""
    from transformers.utils import logging as messages

    messages.disable_progress_bar()
    messages.set_verbosity_error()


def align(model: nn.Module) -> None:
    """Move tensors to where torch's own would begin.

    Those of a file lie in memory as they lie in it, and where a matrix begins decides on some processors how
    it is multiplied, to the last bit: a copy of the model would train differently.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model directory, with a padding token (the end of text where it has none)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(
            "model.weights", f"transformers can't read its tokenizer: {one_line(error)}", folder
        ) from None
    if not tokenizer.is_fast:
        raise ModelError("model.weights", "its tokenizer has no fast version (tokenizer.json)", folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def dropout_keys(config: Any) -> list[str]:
    """Names of the dropout probabilities in a transformers config."""
    found = []
    for key, value in config.to_dict().items():
        named = "dropout" in key or key.endswith("pdrop")
        if named and (value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))):
            found.append(key)
    return found


def is_head_dropout(key: str) -> bool:
    """Whether a dropout setting belongs to the head."""
    return any(part in key for part in ("classif", "summary", "pooler", "cls"))


def head_dropouts(model: nn.Module) -> list[nn.Dropout]:
    """Dropouts outside the trunk, in the model's order."""
    from torch import nn

    from whet.model.layers import trunk_prefix

    trunk = trunk_prefix(model)
    return [
        part
        for name, part in model.named_modules()
        if isinstance(part, nn.Dropout) and not name.startswith(trunk)
    ]


def _check_trunk(model: PreTrainedModel, new: frozenset[str], mismatched: set[str], located: Located) -> None:
    """Only what stands above the blocks may be new by right; a trunk of random numbers helps nobody."""
    from whet.model.layers import anatomy, trunk_prefix

    parts = anatomy(model)
    odd = sorted(name for name in mismatched if trunk_prefix(model) and name.startswith(trunk_prefix(model)))
    if odd:
        raise ModelError(
            "model.weights", f"their sizes aren't those of config.json ({', '.join(odd[:4])})", located.id
        )
    if all(name in new for name, depth in parts.depth.items() if 0 < depth <= parts.layers):
        problem = f"they hold no block of {type(model).__name__}: not its weights (the names differ)"
        raise ModelError("model.weights", problem, located.id)


def _own_names(model: PreTrainedModel, missing: set[str]) -> frozenset[str]:
    """Missing keys as parameter names (tied copies and buffers drop out)."""
    return frozenset(name for name, _ in model.named_parameters() if name in missing)
