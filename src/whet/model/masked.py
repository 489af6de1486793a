"""Masked language models: loading one on given weights, hiding tokens, saving the trunk for later tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from whet.errors import ModelError, one_line
from whet.model.encoder import Encoder, Loaded, align, dropout_keys, is_head_dropout, load_tokenizer, quiet

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from whet.model.weights import Located
    from whet.paths import Paths

REPLACED, RANDOM = 0.8, 0.1
"""Of the hidden tokens: shares that become the mask token and a random one; the rest stays (BERT, 3.1)."""


def load_masked(encoder: Encoder, paths: Paths) -> Loaded:
    """The weights with a head that guesses tokens; a fresh one where they bring none.

    Raises:
        ModelError: nothing there, no such head in transformers, or a tokenizer without a mask token.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForMaskedLM

    quiet()
    located = encoder.locate(paths)
    tokenizer = load_tokenizer(located.folder, encoder.trust_remote_code)
    if tokenizer.mask_token_id is None:
        problem = "its tokenizer has no mask token: it wasn't made for masked language modelling"
        raise ModelError("model.weights", problem, located.id)
    try:
        model, report = AutoModelForMaskedLM.from_pretrained(
            located.folder, config=_config(encoder, located), dtype=torch.float32,
            use_safetensors=True, output_loading_info=True,
            trust_remote_code=encoder.trust_remote_code, **encoder.implementation(),
        )  # fmt: skip
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError("model.weights", one_line(error), located.id) from None
    if model.get_output_embeddings() is None:
        raise ModelError(
            "model.weights", "transformers knows no output layer of this architecture", located.id
        )
    align(model)
    missing = set(report["missing_keys"])
    return Loaded(
        model, tokenizer, frozenset(n for n, _ in model.named_parameters() if n in missing), located
    )


def _config(encoder: Encoder, located: Located) -> Any:
    """That of the weights, with the encoder's dropout."""
    from transformers import AutoConfig

    if encoder.head_dropout is not None:
        problem = "there is no dropout above the trunk where tokens are guessed; leave it null"
        raise ModelError("model.head_dropout", problem, encoder.head_dropout)
    config = AutoConfig.from_pretrained(located.folder, trust_remote_code=encoder.trust_remote_code)
    if encoder.dropout is None:
        return config
    keys = [key for key in dropout_keys(config) if not is_head_dropout(key)]
    if not keys:
        problem = f"{config.model_type} has no dropout; leave it null"
        raise ModelError("model.dropout", problem, encoder.dropout)
    for key in keys:
        setattr(config, key, encoder.dropout)
    return config


def hide(
    ids: torch.Tensor,
    counts: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose tokens to guess, special ones never (Devlin et al., 2019, section 3.1).

    Args:
        ids: [batch, length] token ids.
        counts: [batch] how many of each text to choose.
        tokenizer: names special tokens, the mask and the vocabulary.
        generator: decides.

    Returns:
        [batch, length] ids of which the chosen are hidden (80 % by the mask, 10 % by a random token), and
        [batch, length] where they are.
    """
    import torch

    special = torch.tensor(tokenizer.all_special_ids, device=ids.device)
    lots = torch.rand(ids.shape, generator=generator, device=ids.device)
    lots = lots.masked_fill(torch.isin(ids, special), 2.0)
    chosen = lots.argsort(1).argsort(1) < counts[:, None]
    how = torch.rand(ids.shape, generator=generator, device=ids.device)
    other = torch.randint(len(tokenizer), ids.shape, generator=generator, device=ids.device)
    hidden = torch.where(chosen & (how < REPLACED), int(tokenizer.mask_token_id), ids)
    return torch.where(chosen & (how >= REPLACED) & (how < REPLACED + RANDOM), other, hidden), chosen


@contextlib.contextmanager
def only_at(model: PreTrainedModel, chosen: torch.Tensor) -> Iterator[None]:
    """While it lasts the output layer computes logits of the chosen tokens alone: [chosen, vocabulary].

    Args:
        model: with an output layer over [batch, length, hidden].
        chosen: [batch, length].
    """

    def pick(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (arguments[0][chosen], *arguments[1:])

    layer: Any = model.get_output_embeddings()
    handle = layer.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def save_masked(model: PreTrainedModel, loaded: Loaded, folder: Path) -> None:
    """A transformers model directory; what else the weights held (a pooler) is taken along."""
    from transformers import AutoModel

    prefix = f"{model.base_model_prefix}."
    trunk: Any = AutoModel.from_pretrained(loaded.located.folder, use_safetensors=True)
    own = dict(model.state_dict())
    further = {
        prefix + name: tensor for name, tensor in trunk.state_dict().items() if prefix + name not in own
    }
    model.save_pretrained(folder, state_dict={**own, **further})
    loaded.tokenizer.save_pretrained(folder)
