"""One exception family. Every message names the config key, the value and the nearest valid choice.

`WhetError` and what derives from it is what a user can cause: the command line prints it as one line and
leaves with `exit_code`. Anything else that escapes is a defect of whet and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WhetError(Exception):
    """Something the user can put right; the message says how."""

    exit_code = 1


class ConfigError(WhetError):
    """A config value that can't be used. Raised before weights or data are touched where possible.

    Args:
        key: dotted config key, for example `optimizer.lr`.
        problem: what is wrong with it, and what would be right.
        value: the value given; left out of the message when not passed.
    """

    exit_code = 2
    _UNSET = object()

    def __init__(self, key: str, problem: str, value: object = _UNSET) -> None:
        self.key, self.problem, self.value = key, problem, value
        shown = "" if value is self._UNSET else f"={_short(value)}"
        super().__init__(f"{key}{shown}: {problem}")

    def under(self, prefix: str) -> ConfigError:
        """The same error with its key placed below `prefix` (a component knows only its own fields)."""
        key = f"{prefix}.{self.key}" if prefix and self.key else (prefix or self.key)
        return type(self)(key, self.problem, self.value)


class DataError(ConfigError):
    """Data that isn't there, can't be read, or doesn't hold what the task's config says."""


class ModelError(ConfigError):
    """Weights that aren't there, can't be read, or don't fit the task."""


class RunError(WhetError):
    """A run folder that isn't one, or that can't serve what is asked of it."""

    exit_code = 2


class Interrupted(WhetError):
    """A signal asked the run to stop; it stopped between two updates, its state saved."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class PrunedError(WhetError):
    """A sweep doesn't expect anything of this run any more; it ends after an evaluation."""

    exit_code = 0

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class NonFiniteError(WhetError):
    """Loss or gradients became NaN or infinite. The message names step, value and the batch's ids."""


def nearest(name: object, choices: Iterable[str]) -> str:
    """`did you mean X? (choices: …)` for a name that isn't among `choices`."""
    known = sorted({str(choice) for choice in choices})
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    listed = f"choices: {', '.join(known) or 'none'}"
    return f"did you mean {close[0]}? ({listed})" if close else listed


def one_line(text: object) -> str:
    """Fold any message into one line."""
    return " ".join(str(text).split())


def _short(value: object, limit: int = 80) -> str:
    text = one_line(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
