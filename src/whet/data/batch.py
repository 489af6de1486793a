"""Examples of one split, and batches of tensors made from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from whet.data.batching import Batching
    from whet.data.tokens import Tokens


@dataclass(frozen=True)
class Examples:
    """Encoded rows of one split."""

    split: str
    ids: NDArray[np.str_]
    """[n] row ids."""
    texts: list[tuple[str, ...]]
    labels: NDArray[Any]
    """[n] int64 | [n, outputs] float32 | [n] float32, as the task encodes them."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """The given rows."""
        return Examples(self.split, self.ids[rows], [self.texts[r] for r in rows], self.labels[rows])


@dataclass
class Batch:
    """What the model and the loss see of some rows."""

    inputs: dict[str, torch.Tensor]
    """Model arguments, each [batch, length]."""
    labels: torch.Tensor
    """[batch] or [batch, outputs]."""
    rows: NDArray[np.int64]
    """[batch] places in the split."""
    tokens: int
    """Real tokens, padding not counted."""


@dataclass(frozen=True)
class Collator:
    """Makes padded tensors of token rows, the way the tokenizer's model wants them."""

    tokens: Tokens
    labels: NDArray[Any]
    pad_id: int
    left: bool
    wants_types: bool
    pad_type: int
    batching: Batching

    @classmethod
    def of(
        cls, tokens: Tokens, labels: NDArray[Any], tokenizer: PreTrainedTokenizerBase, batching: Batching
    ) -> Collator:
        """A collator that pads on the tokenizer's side with its padding id."""
        return cls(
            tokens=tokens,
            labels=labels,
            pad_id=int(tokenizer.pad_token_id),
            left=tokenizer.padding_side == "left",
            wants_types="token_type_ids" in tokenizer.model_input_names,
            pad_type=int(getattr(tokenizer, "pad_token_type_id", 0)),
            batching=batching,
        )

    def __call__(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """The batch of `rows` on `device`."""
        import torch

        lengths = self.tokens.lengths_of(rows)
        mask = self.mask(rows)
        places = np.cumsum(mask, axis=1) + (self.tokens.offsets[rows, None] - 1)
        inputs = self.inputs(places, mask, device)
        inputs["attention_mask"].text_lengths = lengths.tolist()  # type: ignore[attr-defined]  # for packing
        labels = torch.from_numpy(np.ascontiguousarray(self.labels[rows])).to(device)
        return Batch(inputs, labels, rows, int(lengths.sum()))

    def mask(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[batch, length] where in the batch of `rows` texts lie."""
        lengths = self.tokens.lengths_of(rows)[:, None]
        width = self.batching.padded(int(lengths.max()))
        slots = np.arange(width)[None, :]
        return np.asarray(slots >= width - lengths if self.left else slots < lengths)

    def inputs(
        self, places: NDArray[np.int64], mask: NDArray[np.bool_], device: torch.device
    ) -> dict[str, torch.Tensor]:
        """The model's arguments.

        Args:
            places: [batch, length] of tokens among those of all texts; anything where there is padding.
            mask: [batch, length] where there is none.
            device: to put them on.
        """
        import torch

        ids = self._tokens(self.tokens.ids, places, mask, self.pad_id)
        found = {"input_ids": ids, "attention_mask": mask}
        if self.wants_types:
            found["token_type_ids"] = self._tokens(self.tokens.types, places, mask, self.pad_type)
        return {name: torch.from_numpy(array.astype(np.int64)).to(device) for name, array in found.items()}

    def _tokens(
        self, flat: NDArray[Any], places: NDArray[np.int64], mask: NDArray[np.bool_], pad: int
    ) -> NDArray[Any]:
        """[batch, length] what lies at `places`, and `pad` where the mask has no text."""
        return np.where(mask, flat.take(places, mode="clip"), pad)
