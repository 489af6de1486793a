"""Heads that transformers doesn't make: one on the mean of the states, and a masked language model's words.

Each is a class of the architecture's own family, so names of parameters, `base_model` and everything that
looks at a model find what they find in transformers' classes.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Literal

from whet.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

HeadKind = Literal["own", "mean", "prompt"]
PROMPT = "whet_prompt"
"""Entry of a model's config: id of the mask token, and ids of each label's words."""


def blank(config: Any, kind: HeadKind, **settings: Any) -> PreTrainedModel:
    """A model of random weights; `settings` are those of transformers' `from_config`.

    Raises:
        ModelError: the architecture can't have such a head.
    """
    import torch
    from transformers import AutoModelForSequenceClassification as Auto

    if kind == "own":
        own: PreTrainedModel = Auto.from_config(config, **settings)
        return own
    settings.pop("trust_remote_code", None)
    settings.setdefault("dtype", torch.float32)
    made: PreTrainedModel = class_of(config, kind)._from_config(config, **settings)
    return made


def loader(config: Any, kind: HeadKind) -> Any:
    """What has `from_pretrained` for such a head. Raises ModelError where the architecture can't have it."""
    from transformers import AutoModelForSequenceClassification as Auto

    return Auto if kind == "own" else class_of(config, kind)


def class_of(config: Any, kind: HeadKind) -> type[PreTrainedModel]:
    """The class of models of this architecture with a head of our own.

    Raises:
        ModelError: the architecture can't have it.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING

    known = MODEL_MAPPING if kind == "mean" else MODEL_FOR_MASKED_LM_MAPPING
    missing = "no such trunk" if kind == "mean" else "no masked language model"
    if type(config) not in known:
        raise ModelError("model.head", f"transformers has {missing} for {config.model_type}", kind)
    if getattr(config, "is_encoder_decoder", False):
        problem = (
            f"{config.model_type} is an encoder-decoder, and reads its answer from the decoder: take own"
        )
        raise ModelError("model.head", problem, kind)
    found = known[type(config)]
    found = found[0] if isinstance(found, tuple) else found
    return _mean_class(found) if kind == "mean" else _prompt_class(found)


@functools.cache
def _mean_class(trunk: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """One linear map on the mean of the last hidden states, as sentence embeddings are made of them.

    Reimers & Gurevych, 2019 (Sentence-BERT, section 3).
    """
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    family: Any = next(base for base in trunk.__mro__[1:] if issubclass(base, PreTrainedModel))
    pooler = (
        {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(trunk).parameters else {}
    )

    def init(self: Any, config: Any) -> None:
        family.__init__(self, config)
        setattr(self, family.base_model_prefix, trunk(config, **pooler))
        self.dropout = nn.Dropout(_rate(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self: Any, attention_mask: torch.Tensor | None = None, **inputs: Any) -> Any:
        found = getattr(self, family.base_model_prefix)(attention_mask=attention_mask, **inputs)
        vectors = mean(found.last_hidden_state, attention_mask)
        logits = self.classifier(self.dropout(vectors))
        return SequenceClassifierOutput(logits=logits, hidden_states=found.hidden_states)

    name = f"{trunk.__name__.removesuffix('Model')}ForMeanPooling"
    return type(name, (family,), {"__init__": init, "forward": forward, "__module__": __name__})


@functools.cache
def _prompt_class(guesser: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A masked language model whose logits are those of each label's words at the mask token.

    Schick & Schütze, 2021 (Exploiting Cloze Questions, section 3.1): the score of a label is the logit of its
    word in the gap; of several words here the mean. Only the state at the mask goes through the head.
    """
    import torch
    from transformers.modeling_outputs import SequenceClassifierOutput

    def forward(self: Any, input_ids: torch.Tensor, **inputs: Any) -> Any:
        told = getattr(self.config, PROMPT)
        places = (input_ids == told["mask"]).int().argmax(1)

        def pick(_: Any, __: Any, output: Any) -> Any:
            states = output.last_hidden_state
            rows = torch.arange(len(states), device=states.device)
            output.last_hidden_state = states[rows, places][:, None]
            return output

        handle = getattr(self, self.base_model_prefix).register_forward_hook(pick)
        try:
            found = guesser.forward(self, input_ids=input_ids, **inputs)
        finally:
            handle.remove()
        words = found.logits[:, 0]
        logits = torch.stack([words[:, ids].mean(1) for ids in told["words"]], 1)
        return SequenceClassifierOutput(logits=logits, hidden_states=found.hidden_states)

    name = f"{guesser.__name__.removesuffix('ForMaskedLM')}ForPrompt"
    return type(name, (guesser,), {"forward": forward, "__module__": __name__})


def mean(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """[batch, hidden]: the mean of states [batch, length, hidden] where mask [batch, length] is 1."""
    if mask is None:
        return states.mean(1)
    real = mask.unsqueeze(-1).to(states.dtype)
    return (states * real).sum(1) / real.sum(1).clamp(min=1)


def _rate(config: Any) -> float:
    """Dropout of the head: the config's for classifiers, else that of the hidden states."""
    for key in ("classifier_dropout", "hidden_dropout_prob", "dropout", "resid_pdrop"):
        if isinstance(value := getattr(config, key, None), float):
            return value
    return 0.0
