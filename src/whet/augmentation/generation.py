"""Models that write texts: loading them, and drawing tokens that depend on the text, not on its batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from whet.errors import ConfigError, ModelError, one_line

if TYPE_CHECKING:
    import numpy as np
    import torch

    from whet.augmentation.base import Surroundings
    from whet.model.weights import Weights

Kind = Literal["MaskedLM", "Seq2SeqLM", "CausalLM"]
MARGIN = 16
"""Tokens that a text may grow by, beside twice its length."""


@dataclass(frozen=True)
class Writer:
    """A model with its tokenizer, on the device where it is quickest."""

    model: Any
    tokenizer: Any
    sha256: str
    """Of its weights."""
    shown: str
    """Where they came from, for messages."""

    @property
    def device(self) -> torch.device:
        found: torch.device = self.model.device
        return found

    @property
    def room(self) -> int:
        """Most tokens that the model reads."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or 512
        return int(min(positions - 2, self.tokenizer.model_max_length))

    def encoded(self, texts: Sequence[str], most: int | None = None) -> dict[str, torch.Tensor]:
        """The model's inputs, cut to `most` tokens, or to its room."""
        made = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=most or self.room, return_tensors="pt"
        )
        return {name: tensor.to(self.device) for name, tensor in made.items() if name != "token_type_ids"}

    def write(
        self,
        texts: Sequence[str],
        rngs: Sequence[np.random.Generator],
        temperature: float,
        top_p: float,
    ) -> list[str]:
        """What the model writes after (or, of a translator, for) each text, special tokens left out.

        Nothing for a text of more than `most` tokens: it would have to be cut.

        Args:
            texts: what it reads.
            rngs: a generator for each of them.
            temperature: of the distribution that tokens are drawn from; 0 takes the likeliest.
            top_p: only the likeliest tokens that together have this probability are drawn.
        """
        import torch

        inputs = self.encoded(texts, self.most + 1)
        sizes = inputs["attention_mask"].sum(1).tolist()
        limits = [min(2 * size + MARGIN, self.room) for size in sizes]
        with torch.inference_mode():
            written = self.model.generate(
                **inputs,
                logits_processor=drawing(rngs, temperature, top_p) if temperature else [],
                do_sample=False,
                num_beams=1,
                max_new_tokens=max(limits),
                min_length=0,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        start = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        new = [row[start : start + limit] for row, limit in zip(written, limits, strict=True)]
        told = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        whole = [size <= self.most for size in sizes]
        return [text.strip() if fits else "" for text, fits in zip(told, whole, strict=True)]

    @property
    def most(self) -> int:
        """Most tokens of a text that is written anew: a decoder's positions hold what it writes, too."""
        return self.room if self.model.config.is_encoder_decoder else (self.room - MARGIN) // 3


def drawing(rngs: Sequence[np.random.Generator], temperature: float, top_p: float) -> Any:
    """Makes greedy search draw: every row's next token by one number of the row's own generator.

    The token is the one in whose part of the cumulative distribution the number falls, so a text's tokens
    depend on the texts beside it only by the rounding of the model's sums.
    """
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

    class Drawing(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            numbers = torch.tensor([rng.random() for rng in rngs], dtype=torch.float64, device=scores.device)
            edges = (scores.double() / temperature).softmax(-1).cumsum(-1)
            drawn = torch.searchsorted(edges, (numbers * edges[:, -1])[:, None], right=True)
            only = torch.full_like(scores, -torch.inf)
            return only.scatter(1, drawn.clamp(max=scores.shape[1] - 1), 0.0)

    narrowed = [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return LogitsProcessorList([*narrowed, Drawing()])


def load(weights: Weights, kind: Kind, around: Surroundings, name: str, left: bool = False) -> Writer:
    """The model of some weights.

    Args:
        weights: where they are.
        kind: what the model must be able to do.
        around: cache, and where the method stands in the config.
        name: of the setting that names the weights.
        left: pad on the left.

    Raises:
        ModelError: not to be had, or no such model.
    """
    from whet.model.encoder import load_tokenizer, quiet

    key = f"{around.key}.{name}"
    quiet()
    try:
        located = weights.locate(around.paths)
        tokenizer = load_tokenizer(located.folder)
    except ConfigError as error:
        raise ModelError(
            key if error.key == "model.weights" else f"{key}.{error.key}", error.problem, error.value
        ) from None
    model = _model(str(located.folder), kind, key, located.id)
    tokenizer.padding_side = "left" if left else "right"
    return Writer(model, tokenizer, located.sha256, located.id)


def _model(folder: str, kind: Kind, key: str, shown: str) -> Any:
    import torch
    import transformers
    from safetensors import SafetensorError

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = getattr(transformers, f"AutoModelFor{kind}")
    try:
        model, report = loader.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            key, f"is no {kind} that transformers reads: {one_line(error)[:200]}", shown
        ) from None
    if report["missing_keys"]:
        names = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError(key, f"these weights don't hold all of a {kind} ({names} …)", shown)
    return model.to(device).eval()
