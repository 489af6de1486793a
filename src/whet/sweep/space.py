"""Search spaces in Hydra's override grammar: what is searched, what is fixed, what only some choices have."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whet.config import SPACE
from whet.errors import ConfigError, nearest, one_line

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna.distributions import BaseDistribution

    Distributions = dict[str, BaseDistribution]

MOST = 100_000
"""Points of a grid at most."""


@dataclass(frozen=True)
class Space:
    """What a sweep searches."""

    searched: Distributions = field(default_factory=dict)
    """By override key, in the order given."""
    fixed: tuple[str, ...] = ()
    """Overrides that every trial has."""
    written: Mapping[str, str] = field(default_factory=dict)
    """The ranges as they were written, by key."""


def read_space(ranges: Mapping[str, Any], arguments: Sequence[str]) -> Space:
    """The space of a config's `params` and a command line, which has the last word on a key.

    Raises:
        ConfigError: not Hydra's grammar, or a range that can't be searched.
    """
    found: dict[str, Override] = {}
    for override in parse([f"{key}={_written(value)}" for key, value in ranges.items()]):
        found[override.get_key_element()] = override
    for override in parse(arguments):
        found[override.get_key_element()] = override
    searched = {key: distribution(item) for key, item in found.items() if item.is_sweep_override()}
    fixed = tuple(str(item.input_line) for key, item in found.items() if key not in searched)
    written = {key: str(found[key].input_line).partition("=")[2] for key in searched}
    return Space(searched, fixed, written)


def parse(lines: Iterable[str]) -> list[Override]:
    """Overrides from their text."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, found = OverridesParser.create(), []
    for line in lines:
        try:
            found.append(parser.parse_override(line))
        except HydraException as error:
            key, _, value = line.partition("=")
            raise ConfigError(key, f"not a range nor a value ({one_line(error)})", value) from None
    return found


def _written(value: Any) -> str:
    """A value of the config in the grammar of the command line."""
    if isinstance(value, (list, tuple)):
        return f"choice({','.join(as_text(item) for item in value)})"
    return as_text(value)


def as_text(value: Any) -> str:
    """A parameter's value as it stands in an override: `null`, `true`, `1e-05`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


# ---------------------------------------------------------------- distributions


def distribution(override: Override) -> BaseDistribution:
    """The Optuna distribution of `choice(…)`, `range(…)`, `interval(…)`, with `tag(log, …)` on a log scale.

    As in Hydra's own Optuna plugin whole numbers give whole numbers, and a range includes its end.

    Raises:
        ConfigError: empty, or tagged in a way that means nothing here.
    """
    key, line = override.get_key_element(), str(override.input_line).partition("=")[2]
    tags = set(getattr(override.value(), "tags", ()))
    if tags - {"log"}:
        problem = f"unknown tag {', '.join(sorted(tags - {'log'}))}; {nearest('', ['log'])}"
        raise ConfigError(key, problem, line)
    try:
        if override.is_choice_sweep() or (override.is_range_sweep() and _is_shuffled(override)):
            return _choices(override)
        if override.is_range_sweep():
            return _range(override, "log" in tags)
        if override.is_interval_sweep():
            return _interval(override, "log" in tags)
    except ValueError as error:
        raise ConfigError(key, one_line(error), line) from None
    raise ConfigError(
        key, "write choice(a,b), range(1,9), interval(0,1) or tag(log,interval(1e-5,1e-3))", line
    )


def _is_shuffled(override: Override) -> bool:
    return bool(getattr(override.value(), "shuffle", False))


def _choices(override: Override) -> BaseDistribution:
    from hydra.core.override_parser.types import Transformer
    from optuna.distributions import CategoricalDistribution

    choices: Any = override.sweep_iterator(transformer=Transformer.encode)
    return CategoricalDistribution(list(choices))


def _range(override: Override, log: bool) -> BaseDistribution:
    value: Any = override.value()
    if log and value.step != 1:
        raise ValueError("a range on a log scale has no step")
    step = None if log else value.step
    return _number(value.start, value.stop, step, log)


def _interval(override: Override, log: bool) -> BaseDistribution:
    value: Any = override.value()
    return _number(value.start, value.end, None, log)


def _number(low: float, high: float, step: float | None, log: bool) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    if all(isinstance(item, int) for item in (low, high, 1 if step is None else step)):
        return IntDistribution(int(low), int(high), log=log, step=1 if step is None else int(step))
    return FloatDistribution(float(low), float(high), log=log, step=None if step is None else float(step))


# ---------------------------------------------------------------- grid


def grid(searched: Distributions) -> list[dict[str, Any]]:
    """Every point of a space of choices and stepped ranges.

    Raises:
        ConfigError: a range without steps, or too many points.
    """
    axes = {key: axis(key, each) for key, each in searched.items()}
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST:
        raise ConfigError("hydra.sweeper.params", f"{count:,} points: a grid has at most {MOST:,}")
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def axis(key: str, each: BaseDistribution) -> list[Any]:
    """A distribution's values in order."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(each, CategoricalDistribution):
        return list(each.choices)
    if isinstance(each, IntDistribution) and not each.log:
        return list(range(each.low, each.high + 1, each.step))
    if isinstance(each, FloatDistribution) and each.step is not None:
        steps = round((each.high - each.low) / each.step)
        return [each.low + place * each.step for place in range(steps + 1)]
    raise ConfigError(key, "a grid needs choices or a range with a step", each)


# ---------------------------------------------------------------- ranges of a choice


def own_ranges(config: Any, groups: Sequence[str], choices: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Ranges that the chosen members of some groups bring (`_space_` in their YAML).

    A key is relative to its group; with `/` in front it is one of the whole config.

    Args:
        config: a composed config.
        groups: whose choices may bring ranges.
        choices: what was chosen of each group.

    Returns:
        Parameter name, `<choice>:<key>`, to its key and its range as written.

    Raises:
        ConfigError: no such group.
    """
    found: dict[str, tuple[str, str]] = {}
    for group in groups:
        if group not in choices:
            raise ConfigError("sweep.conditional", f"no such config group; {nearest(group, choices)}", group)
        node = config.get(group)
        for name, text in (node.get(SPACE) or {}).items() if node is not None else ():
            key = str(name).removeprefix("/") if str(name).startswith("/") else f"{group}.{name}"
            found[f"{choices[group]}:{key}"] = (key, str(text))
    return found


def overrides_of(params: Mapping[str, Any]) -> list[str]:
    """Parameters as overrides."""
    return [f"{key_of(name)}={as_text(value)}" for name, value in params.items()]


def key_of(name: str) -> str:
    """The override key of a parameter, without the choice that brought it."""
    return name.partition(":")[2] or name
