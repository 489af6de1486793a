"""Value types that config signatures use; each carries its own validation."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]

_FORM = re.compile(r"(\d+(?:\.\d+)?)(ep|st)")
_HELP = "write steps as 500st, epochs as 3ep (0.5ep works), or a share of the whole run between 0 and 1"


def _up(share: float, of: int) -> int:
    """`share * of` rounded up, in the decimals as written: 0.07 of 100 is 7."""
    return math.ceil(Decimal(str(share)) * of)


@dataclass(frozen=True)
class Duration:
    """A length of training that carries its unit: `"3ep"` (epochs), `"500st"` (updates), `0.06` (share).

    Args:
        value: how many.
        unit: `ep` epochs, `st` optimizer updates, `share` of the whole run.
    """

    value: float
    unit: Literal["ep", "st", "share"]

    @classmethod
    def parse(cls, given: object) -> Duration:
        """Read `"3ep"`, `"500st"`, `"0.06"`, `0.06`. Raises ValueError that says what to write."""
        if isinstance(given, cls):
            return given
        if isinstance(given, str) and (match := _FORM.fullmatch(given.strip())):
            return cls._whole(float(match[1]), match[2])
        if isinstance(given, bool) or not isinstance(given, (int, float, str)):
            raise ValueError(_HELP)  # noqa: TRY004 (pydantic turns ValueError into its report)
        try:
            share = float(given)
        except ValueError:
            raise ValueError(_HELP) from None
        if not 0 <= share <= 1:
            raise ValueError(_HELP)
        return cls(share, "share")

    @classmethod
    def _whole(cls, value: float, unit: str) -> Duration:
        if unit == "st" and value != int(value):
            raise ValueError("steps are whole numbers")
        return cls(value, "ep" if unit == "ep" else "st")

    def steps(self, per_epoch: int, total: int | None = None) -> int:
        """How many updates this is.

        Args:
            per_epoch: updates in one epoch.
            total: updates in the whole run, needed for a share.
        """
        if self.unit == "st":
            return int(self.value)
        if self.unit == "ep":
            return _up(self.value, per_epoch)
        if total is None:
            raise ValueError("a share of the run means nothing here: write it in st or ep")
        return _up(self.value, total)

    def __str__(self) -> str:
        return f"{self.value:g}" if self.unit == "share" else f"{self.value:g}{self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema()
        )
