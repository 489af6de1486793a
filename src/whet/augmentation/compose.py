"""Several methods, one after the other or one of them, each with a probability."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal

from whet.augmentation.base import Change, Copying, Item, Surroundings, Texts
from whet.errors import ConfigError, nearest
from whet.types import Fraction

if TYPE_CHECKING:
    import numpy as np


@dataclass(kw_only=True)
class Compose(Copying):
    """Sends every copy through methods drawn for it."""

    methods: dict[str, Copying]
    """By a name of your choice, in the order in which they are applied."""
    probabilities: dict[str, Fraction] = field(default_factory=dict)
    """Of each method, by its name; 1 for one that isn't named."""
    pick: Literal["each", "one"] = "each"
    """each: every method with its probability, in order; one: exactly one, drawn by their proportions."""

    def __post_init__(self) -> None:
        for name, probability in self.probabilities.items():
            if name not in self.methods:
                raise ConfigError(
                    f"probabilities.{name}", f"no such method; {nearest(name, self.methods)}", probability
                )
        if not any(self.chances()):
            raise ConfigError(
                "methods", "none of them ever takes part; give one a probability above 0", list(self.methods)
            )
        for name, method in self.methods.items():
            for setting in fields(Copying):
                if (value := getattr(method, setting.name)) != setting.default:
                    problem = f"set it for all methods together: augmentation.{setting.name}"
                    raise ConfigError(f"methods.{name}.{setting.name}", problem, value)

    def chances(self) -> list[float]:
        """Probability of each method, in order."""
        return [float(self.probabilities.get(name, 1.0)) for name in self.methods]

    def open(self, around: Surroundings) -> Change:
        opened = [
            method.open(replace(around, key=f"{around.key}.methods.{name}"))
            for name, method in self.methods.items()
        ]
        chances = self.chances()

        def change(items: Sequence[Item]) -> list[Texts]:
            parts = [taking_part(chances, self.pick, item.rng(0)) for item in items]
            texts = [item.texts for item in items]
            for number, method in enumerate(opened):
                chosen = [place for place, part in enumerate(parts) if number in part]
                given = [_stage(items[place], texts[place], number) for place in chosen]
                for place, new in zip(chosen, method(given), strict=True):
                    texts[place] = new
            return texts

        return change


def taking_part(
    chances: Sequence[float], pick: Literal["each", "one"], rng: np.random.Generator
) -> Iterable[int]:
    """Numbers of the methods that a copy goes through."""
    if pick == "each":
        return [
            number
            for number, (draw, p) in enumerate(zip(rng.random(len(chances)), chances, strict=True))
            if draw < p
        ]
    total = sum(chances)
    return [int(rng.choice(len(chances), p=[p / total for p in chances]))]


def _stage(item: Item, texts: Texts, number: int) -> Item:
    """What method `number` gets: the texts so far, and random numbers of its own."""
    return replace(item, texts=texts, key=(*item.key, number + 1))
