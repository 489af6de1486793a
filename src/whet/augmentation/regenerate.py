"""Rewriting with a language model that is told the label (after Kumar et al., 2020).

"Data Augmentation using Pre-trained Transformer Models", section 3: there the model is trained to continue a
label; here one that follows instructions is asked, in words. A finished run may check that a copy still says
what its label says, as Anaby-Tavor et al. (2020), "Do Not Have Enough Data?", filter theirs.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.augmentation.base import Change, Copying, Item, Surroundings, Texts
from whet.augmentation.generation import Writer, load
from whet.augmentation.store import Part, Store, stored
from whet.errors import ConfigError, DataError
from whet.model.weights import Weights
from whet.types import NonNegativeFloat, PositiveFraction, PositiveInt

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROMPT = (
    "Rewrite the text in other words, on one line. It is labelled {label} and must stay so.\n"
    "Text: {text}\nRewritten:"
)
_FIELDS = {"text", "label"}


@dataclass(kw_only=True)
class Regenerate(Copying):
    """Asks a causal language model for each text in other words; its first line is the copy."""

    weights: Weights
    """Of a causal language model; one that follows instructions writes what is of use."""
    prompt: str = PROMPT
    """What it is asked, with `{text}` and `{label}`; put into the model's chat template if it has one."""
    temperature: NonNegativeFloat = 0.8
    """Of the words drawn; 0 takes the likeliest: all copies and editions of a text are then alike."""
    top_p: PositiveFraction = 0.95
    """Only the likeliest tokens that together have this probability are drawn."""
    batch: PositiveInt = 8
    """Texts that the model reads at a time."""
    filter_run: str | None = None
    """A finished run of the same task; a copy to which it doesn't give the row's label stays the original."""

    def __post_init__(self) -> None:
        try:
            named = {name for _, name, _, _ in string.Formatter().parse(self.prompt) if name is not None}
        except ValueError as error:
            raise ConfigError(
                "prompt", f"braces that don't match ({error}); double those meant as text", self.prompt
            ) from None
        if "text" not in named or named - _FIELDS:
            raise ConfigError("prompt", "must have {text}, may have {label}, and no other field", self.prompt)

    def open(self, around: Surroundings) -> Change:
        writer = load(self.weights, "CausalLM", around, "weights", left=True)
        agrees = None if self.filter_run is None else judge(self.filter_run, around)

        def ask(part: Part) -> str:
            if part.label is None:
                raise ConfigError(around.key, "regenerate writes texts for labels, and these have none")
            return asked(self.prompt, part.text, label_text(part.label, around.label_names), writer)

        def make(parts: Sequence[Part]) -> list[str]:
            rngs = [part.rng() for part in parts]
            written = writer.write([ask(part) for part in parts], rngs, self.temperature, self.top_p)
            return [text.strip().partition("\n")[0].strip() for text in written]

        settings = {
            "method": "regenerate", "weights": writer.sha256, "temperature": self.temperature,
            "top_p": self.top_p,
        }  # fmt: skip
        store = Store(around.paths.cached("augmentation") / "texts.sqlite")

        def key(part: Part) -> Any:
            return [ask(part), part.key if self.temperature else None]

        change = stored(store, settings, key, make, self.batch)
        return change if agrees is None else filtered(change, agrees)


def asked(prompt: str, text: str, label: str, writer: Writer) -> str:
    """The whole of what the model reads."""
    request = prompt.format(text=text, label=label)
    if not getattr(writer.tokenizer, "chat_template", None):
        return request
    told = [{"role": "user", "content": request}]
    return str(writer.tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True))


def label_text(label: Any, names: Sequence[str]) -> str:
    """An encoded label in words: a class, the classes of a multi-label row, or a number."""
    import numpy as np

    if np.ndim(label):
        return ", ".join(name for name, there in zip(names, label, strict=True) if there > 0) or "none"
    if np.issubdtype(np.asarray(label).dtype, np.integer) and names:
        return names[int(label)] if label >= 0 else "unknown"
    return f"{float(label):g}"


def filtered(change: Change, agrees: Callable[[list[Texts]], NDArray[Any]]) -> Change:
    """The same change; where the judge gives a copy another label than the row has, the texts stay."""
    import numpy as np

    def careful(items: Sequence[Item]) -> list[Texts]:
        made = change(items)
        told = list(agrees(made)) if made else []
        same = [np.array_equal(item.label, label) for item, label in zip(items, told, strict=True)]
        return [new if keep else item.texts for item, new, keep in zip(items, made, same, strict=True)]

    return careful


def judge(folder: str, around: Surroundings) -> Callable[[list[Texts]], NDArray[Any]]:
    """The decisions of a finished run's model on texts.

    Raises:
        RunError: not a finished run.
        DataError: a run of other labels.
    """
    from whet.engine.load import open_run
    from whet.engine.run import find_run

    run = open_run(find_run(folder), around.paths)
    task, names = run.trained.task, run.trained.label_names
    if not names or tuple(names) != tuple(around.label_names):
        problem = f"its labels {list(names)} aren't the task's {list(around.label_names)}"
        raise DataError(f"{around.key}.filter_run", problem, folder)

    def decisions(texts: list[Texts]) -> NDArray[Any]:
        return task.decide(task.probabilities(run.logits(texts)))

    return decisions
