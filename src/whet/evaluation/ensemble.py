"""One prediction of several models: the mean of their probabilities or of their logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from whet.errors import RunError
from whet.evaluation.predictions import Predictions
from whet.task.metrics import Kind

Mean = Literal["probability", "logit"]
Array = NDArray[Any]


def combine(members: Sequence[Predictions], names: Sequence[str], kind: Kind, average: Mean) -> Predictions:
    """The ensemble's predictions, as logits whose probabilities are the mean ones.

    Args:
        members: of the same rows.
        names: of the members, for errors.
        kind: of the task. A regression's values are averaged either way.
        average: `probability`: the mean of p_i (Lakshminarayanan et al., 2017, section 2.4); `logit`: the
            mean of the logits, whose probabilities are the normalised geometric mean of p_i.

    Raises:
        RunError: a member has other rows, labels or label names than the first.
    """
    first = members[0]
    for name, other in zip(names[1:], members[1:], strict=True):
        _same(first, other, names[0], name)
    each = np.stack([member.logits for member in members]).astype(np.float64)
    if average == "logit" or kind == "regression":
        mean = each.mean(0)
    elif kind == "single_label":
        mean = _log_mean(each - np.logaddexp.reduce(each, axis=-1, keepdims=True))
    else:
        mean = _log_mean(-np.logaddexp(0, -each)) - _log_mean(-np.logaddexp(0, each))
    return replace(first, logits=np.asarray(mean, dtype=np.float32))


def _log_mean(logs: Array) -> Array:
    """[n, outputs] log of the mean over the first axis of what `logs` [members, n, outputs] are logs of."""
    return np.asarray(np.logaddexp.reduce(logs, axis=0) - np.log(len(logs)))


def _same(one: Predictions, other: Predictions, name: str, other_name: str) -> None:
    if one.label_names != other.label_names:
        told = f"labels {list(other.label_names)}, the first has {list(one.label_names)}"
    elif not np.array_equal(one.ids, other.ids):
        told = f"{len(other):,} rows that aren't the {len(one):,} of the first (their ids or order differ)"
    elif not np.array_equal(one.labels, other.labels, equal_nan=one.labels.dtype.kind == "f"):
        told = "other labels for the same rows"
    elif one.logits.shape != other.logits.shape:
        told = f"{other.logits.shape[1]} outputs, the first has {one.logits.shape[1]}"
    else:
        return
    raise RunError(f"run={other_name}: can't be averaged with {name}: it has {told}")
