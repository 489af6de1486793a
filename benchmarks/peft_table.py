"""Write docs/peft.md: every method on every architecture, tried on tiny models.

    python -m benchmarks.peft_table

A method counts as working where a training step through it gives finite gradients; the tests say more.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config import Method, build, compose, conf_dir
from whet.errors import WhetError
from whet.model.encoder import Encoder
from whet.model.tiny import TinyWeights
from whet.paths import Paths
from whet.peft.base import apply
from whet.peft.fold import fold
from whet.task.base import Head

if TYPE_CHECKING:
    from whet.model.encoder import Loaded

FILE = Path(__file__).parents[1] / "docs" / "peft.md"
ARCHITECTURES = (
    "bert", "distilbert", "roberta", "xlm-roberta", "camembert", "electra", "albert", "deberta-v2", "mpnet",
    "modernbert", "gpt2", "bart", "funnel", "xlnet",
)  # fmt: skip
HEAD = Head(3, "single_label_classification", ("bad", "fair", "good"))
OPENING = """# PEFT methods and architectures

Made by `python -m benchmarks.peft_table`; a test sees to it that it is up to date. `whet train peft=METHOD
--help` tells a method's settings. `whet merge` folds a method into the weights where the last column says so.
"""


def holder(*, peft: Method) -> None:
    """What a method's node is checked against."""


def methods() -> dict[str, Method]:
    """Every choice of peft=… with its defaults."""
    names = sorted(path.stem for path in (conf_dir() / "peft").glob("*.yaml"))
    nodes = {name: compose("train", [f"peft={name}"])["peft"] for name in names}
    return {name: build({"peft": node}, holder).keywords["peft"] for name, node in nodes.items()}


def attempt(method: Method, loaded: Loaded, trained: bool) -> tuple[str, Any]:
    """Why it is refused, or empty, and the model with it; with `trained`, after the gradient of a step."""
    own = copy.copy(loaded)
    own.model = copy.deepcopy(loaded.model)
    try:
        model = apply(method, own)
    except WhetError as error:
        return str(error), None
    if trained:
        step(model, own.tokenizer)
    return "", model


def folds(model: Any) -> bool:
    """Whether the method in `model` can be folded into its weights."""
    try:
        fold(model, "")
    except WhetError:
        return False
    return True


def step(model: Any, tokenizer: Any) -> None:
    """One training step's gradient. Raises ArithmeticError if it isn't finite."""
    import torch

    inputs = tokenizer(["a text", "another, longer one"], padding=True, return_tensors="pt")
    logits = model.train()(**inputs).logits
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not gradients or not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise ArithmeticError(f"gradients of {type(model).__name__} aren't finite")


def table(paths: Paths, trained: bool = True) -> str:
    """The file's text; without `trained` no step is made, which says the same if all is well."""
    import torch

    torch.manual_seed(0)
    bases = {
        name: Encoder(name=name, weights=TinyWeights(architecture=name)).load(HEAD, paths)
        for name in ARCHITECTURES
    }
    notes: dict[str, int] = {}
    lines = [f"| method | {' | '.join(ARCHITECTURES)} | folds |", "|---|" + "---|" * (len(ARCHITECTURES) + 1)]
    for name, method in methods().items():
        found = [attempt(method, bases[architecture], trained) for architecture in ARCHITECTURES]
        cells = [f"no [{notes.setdefault(why, len(notes) + 1)}]" if why else "yes" for why, _ in found]
        first = next(model for why, model in found if not why)
        lines.append(f"| `{name}` | {' | '.join(cells)} | {'yes' if folds(first) else 'no'} |")
    told = [f"{number}. {why}" for why, number in notes.items()]
    return "\n".join([OPENING, *lines, "", *told, ""])


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(table(Paths()), encoding="utf-8")
    print(FILE)
