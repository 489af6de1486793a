"""The sum of several processes' gradients, once an update, in buckets.

A table that knows which of its rows a batch touched (`whet.model.kernels.RowEmbedding`) sends those alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import distributed as dist

BUCKET = 25 * 2**20
"""Gradients are summed in pieces of about so many bytes."""
_ANYWHERE = 2**40
"""Said of a gradient that may be anywhere in its parameter; of touched rows: one more than their number."""


def sum_gradients(parameters: Sequence[torch.Tensor], ready: bool, control: dist.ProcessGroup) -> bool:
    """Sum each parameter's gradients over all processes, in place.

    A parameter without a gradient here counts as zeros; without one anywhere it stays without.

    Args:
        parameters: the same ones, in the same order, everywhere.
        ready: whether this process has made its part.
        control: the processes, agreeing through CPU tensors; the sums go through the default group.

    Returns:
        Whether all were ready; where one wasn't, nothing is summed.
    """
    import torch
    import torch.distributed as dist

    facts = torch.tensor([0 if ready else 1, *(_extent(parameter) for parameter in parameters)])
    dist.all_reduce(facts, dist.ReduceOp.MAX, group=control)
    failed, *extents = facts.tolist()
    if failed:
        return False
    whole, tables = [], []
    for parameter, extent in zip(parameters, extents, strict=True):
        if extent == _ANYWHERE:
            whole.append(_gradient(parameter, touched=None))
        elif extent:
            rows = union(_rows(parameter), extent - 1, control)
            tables.append((_gradient(parameter, touched=[rows]), rows))
    parts = [gradient[rows] for gradient, rows in tables]
    sum_tensors([*whole, *parts])
    for (gradient, rows), part in zip(tables, parts, strict=True):
        gradient.index_copy_(0, rows, part)
    return True


def union(rows: torch.Tensor, most: int, control: dist.ProcessGroup) -> torch.Tensor:
    """Rows that any process names, ascending.

    Args:
        rows: those of this process.
        most: the largest number of rows of any process.
    """
    import torch
    import torch.distributed as dist

    mine = torch.full((most,), -1, dtype=torch.int64)
    mine[: len(rows)] = rows
    theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size(control))]
    dist.all_gather(theirs, mine, group=control)
    everyone = torch.cat(theirs)
    found: torch.Tensor = torch.unique(everyone[everyone >= 0])
    return found


def buckets(sizes: Sequence[int], limit: int = BUCKET) -> list[range]:
    """Neighbouring places whose sizes make up to `limit` together; a larger one stands alone."""
    found, start, total = [], 0, 0
    for place, size in enumerate(sizes):
        if place > start and total + size > limit:
            found.append(range(start, place))
            start, total = place, 0
        total += size
    return [*found, range(start, len(sizes))] if len(sizes) > start else found


def sum_tensors(tensors: Sequence[torch.Tensor]) -> None:
    """All-reduce in place, all buckets on their way before the first is waited for."""
    import torch
    import torch.distributed as dist

    under_way = []
    ordered = sorted(tensors, key=lambda tensor: str(tensor.dtype))
    for places in buckets([tensor.numel() * tensor.element_size() for tensor in ordered]):
        some = [ordered[place] for place in places]
        alone = len(some) == 1 and some[0].is_contiguous()
        flat = some[0] if alone else torch.cat([tensor.reshape(-1) for tensor in some])
        under_way.append((dist.all_reduce(flat, async_op=True), flat, [] if alone else some))
    for handle, flat, some in under_way:
        handle.wait()
        sums = torch.split(flat, [tensor.numel() for tensor in some]) if some else ()
        for tensor, total in zip(some, sums, strict=True):
            tensor.copy_(total.view_as(tensor))


def _rows(parameter: torch.Tensor) -> torch.Tensor:
    """Rows that this process's gradient has reached."""
    import torch

    from whet.model.kernels import touched_rows

    rows = touched_rows(parameter)  # type: ignore[arg-type]
    return torch.empty(0, dtype=torch.int64) if rows is None else rows


def _extent(parameter: torch.Tensor) -> int:
    from whet.model.kernels import touched_rows

    if parameter.grad is None:
        return 0
    rows = touched_rows(parameter)  # type: ignore[arg-type]
    return _ANYWHERE if rows is None else 1 + len(rows)


def _gradient(parameter: Any, touched: list[torch.Tensor] | None) -> torch.Tensor:
    """The gradient, zeros where there is none, with the rows that it reaches once it is a sum."""
    import torch

    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    if touched is not None or hasattr(parameter, "touched"):
        parameter.touched = touched
    gradient: torch.Tensor = parameter.grad
    return gradient
