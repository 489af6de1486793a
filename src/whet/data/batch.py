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

        lengths = self.tokens.lengths[rows]
        width = self.batching.padded(int(lengths.max()))
        slots = np.arange(width)[None, :]
        mask = slots >= width - lengths[:, None] if self.left else slots < lengths[:, None]
        arrays = {"input_ids": self._fill(rows, mask, self.tokens.ids, self.pad_id), "attention_mask": mask}
        if self.wants_types:
            arrays["token_type_ids"] = self._fill(rows, mask, self.tokens.types, self.pad_type)
        inputs = {name: torch.from_numpy(array.astype(np.int64)).to(device) for name, array in arrays.items()}
        inputs["attention_mask"].text_lengths = lengths.tolist()  # type: ignore[attr-defined]  # for packing
        labels = torch.from_numpy(np.ascontiguousarray(self.labels[rows])).to(device)
        return Batch(inputs, labels, rows, int(lengths.sum()))

    def _fill(
        self, rows: NDArray[np.int64], mask: NDArray[np.bool_], flat: NDArray[Any], pad: int
    ) -> NDArray[Any]:
        filled = np.full(mask.shape, pad, dtype=np.int64)
        starts = self.tokens.offsets
        filled[mask] = np.concatenate([flat[starts[r] : starts[r + 1]] for r in rows])
        return filled
