"""Weights that are moved for one gradient and come back to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Detour:
    """Moves parameters along their gradients and remembers where they were.

    Of a large table of embeddings only the rows that the gradient reached are touched.
    """

    def __init__(self) -> None:
        self._left: list[tuple[nn.Parameter, torch.Tensor | None, torch.Tensor]] = []

    def move(self, parameter: nn.Parameter, change: Change) -> None:
        """Add `change(weights, gradient)`, which must be zero where the gradient is."""
        import torch

        from whet.model.kernels import touched_rows

        if parameter.grad is None:
            return
        with torch.no_grad():
            rows = touched_rows(parameter)
            held = parameter.clone() if rows is None else parameter[rows]
            self._left.append((parameter, rows, held))
            moved = held + change(held, parameter.grad if rows is None else parameter.grad[rows])
            self._put(parameter, rows, moved)

    def back(self) -> None:
        """All parameters to where they were."""
        import torch

        with torch.no_grad():
            for parameter, rows, held in self._left:
                self._put(parameter, rows, held)
        self._left.clear()

    def _put(self, parameter: nn.Parameter, rows: torch.Tensor | None, values: torch.Tensor) -> None:
        if rows is None:
            parameter.copy_(values)
        else:
            parameter.index_copy_(0, rows, values)


def total_norm(parts: list[torch.Tensor]) -> torch.Tensor:
    """L2 norm over all tensors, of which each process may hold but a share."""
    from torch.nn.utils import get_total_norm

    norm = get_total_norm(parts)
    whole: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole
