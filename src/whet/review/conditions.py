"""What `where` asks of a run: `optimizer.lr>1e-4`, `status=finished`, `name~=lora.*`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from whet.errors import ConfigError
from whet.review.facts import Facts, check_keys, number

GRAMMAR = """\
where=[condition, …]: all must hold. A condition is KEY SIGN VALUE (quote it all for the shell):
  =  !=          equal, or not; null is a missing value; of a list one item is enough
  <  <=  >  >=   numbers by size, texts by letters; a missing value never holds; age<2d (s, min, h, d, w)
  ~=  !~         a regular expression is found in the text, or isn't
  KEY            any key of the config (optimizer.lr), a group for its choice (peft=lora), any figure of
                 run.json (memory.peak_mb), any metric (test/accuracy), or one of these:"""
_FORM = re.compile(r"\s*([^\s=!<>~]+)\s*(>=|<=|!=|~=|!~|==|=|>|<)\s*(.*?)\s*", re.DOTALL)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
SPANS = ("age", "time")
"""Keys whose values are seconds."""


@dataclass(frozen=True)
class Condition:
    """One comparison."""

    text: str
    """As it was written."""
    key: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises ConfigError where it isn't a condition."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ConfigError("where", "not a condition: write KEY=VALUE, KEY>VALUE, KEY!=VALUE, …", text)
        key, sign, value = found.groups()
        if sign in ("~=", "!~"):
            _pattern(text, value)
        return cls(text, key, "=" if sign == "==" else sign, value)

    def holds(self, facts: Facts) -> bool:
        """Whether it is true of a run.

        Raises:
            ConfigError: a number is compared with something else by size.
        """
        fact = facts.get(self.key)
        if self.sign in ("=", "!="):
            return _equal(fact, self.value) == (self.sign == "=")
        if self.sign in ("~=", "!~"):
            seen = fact is not None and _pattern(self.text, self.value).search(str(fact)) is not None
            return seen == (self.sign == "~=")
        return fact is not None and self._ordered(fact)

    def _ordered(self, fact: Any) -> bool:
        size, asked = number(fact), self._number()
        if isinstance(fact, float) and size is None:
            return False
        if (size is None) != (asked is None) and not isinstance(fact, str):
            raise ConfigError("where", f"{self.key} is {fact!r} in a run: not to be compared so", self.text)
        if size is not None and asked is not None:
            return _compare(size, self.sign, asked)
        return _compare(str(fact), self.sign, self.value)

    def _number(self) -> float | None:
        span = _SPAN.fullmatch(self.value)
        if span is not None and self.key in SPANS:
            return float(span[1]) * _SECONDS[span[2]]
        return _as_number(self.value)


def select(rows: Sequence[Facts], where: Iterable[str]) -> list[Facts]:
    """Rows for which all conditions hold.

    Raises:
        ConfigError: not a condition, or a key that no row has.
    """
    asked = [Condition.parse(text) for text in where]
    check_keys("where", [one.key for one in asked], rows)
    return [row for row in rows if all(one.holds(row) for one in asked)]


def _pattern(text: str, value: str) -> re.Pattern[str]:
    try:
        return re.compile(value)
    except re.error as error:
        raise ConfigError("where", f"not a regular expression ({error})", text) from None


def _as_number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _equal(fact: Any, value: str) -> bool:
    if fact is None:
        return value in ("null", "")
    if isinstance(fact, list):
        return any(_equal(item, value) for item in fact)
    if isinstance(fact, bool):
        return str(fact).lower() == value.lower()
    if isinstance(fact, (int, float)):
        return fact == _as_number(value)
    return str(fact) == value


def _compare(one: Any, sign: str, other: Any) -> bool:
    if sign in ("<", "<="):
        return bool(one < other or (sign == "<=" and one == other))
    return bool(one > other or (sign == ">=" and one == other))
