"""The one protocol of objectives: what of a batch is minimised, in one pass through the model or in several.

`objective(forward, batch)` gives a sum of losses, never a mean: the engine divides by the weight of the whole
accumulation window. One that needs several passes is a generator that yields such sums; between two of them
the engine goes backward through the one just given, so a perturbation then holds its gradient, and no more
than one graph is in memory. What it can't do in a batch (SAM: a second gradient of the whole update, at other
weights; a teacher of its own) an `Objective` can.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.config import Component
from whet.errors import ConfigError, WhetError
from whet.peft.base import INSERTED

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from whet.augmentation.base import Augmentation
    from whet.data.batch import Batch, Examples
    from whet.data.batching import Batching
    from whet.data.prompt import Prompt
    from whet.engine.precision import Amp
    from whet.paths import Paths
    from whet.task.base import Criterion, Task

    Result = torch.Tensor | Iterator[torch.Tensor]
    Change = Callable[[torch.Tensor], torch.Tensor]


class UnreachedError(WhetError):
    """The embeddings were to be changed, and the forward pass didn't compute them."""


@dataclass
class Forward:
    """The model and the task's loss, as an objective sees them."""

    model: nn.Module
    criterion: Criterion
    step: int = 0
    """Finished updates."""
    total: int = 1
    """Updates of the run."""
    round: int = 0
    """Which gradient of this update is being made, from 0; more than one only for an `Objective`."""
    piece: int = 0
    """Which of this process's micro-batches of the update the batch is, from 0."""
    _ids: torch.Tensor | None = None
    """[batch, length] of the forward pass that goes on."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits [batch, outputs]."""
        self._ids = batch.inputs["input_ids"]
        logits: torch.Tensor = self.model(**batch.inputs).logits
        return logits

    def outputs(self, batch: Batch) -> Any:
        """All that transformers gives, `logits` and `hidden_states` (one [batch, length, hidden] a layer)."""
        self._ids = batch.inputs["input_ids"]
        return self.model(**batch.inputs, output_hidden_states=True)

    def losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[batch] weighted losses of the task."""
        return self.criterion.losses(logits, batch.labels)

    def weights(self, batch: Batch) -> torch.Tensor:
        """[batch] what each row adds to the divisor: what a further term of the loss is to be weighed by."""
        import torch

        found = self.criterion.weights(batch.labels.detach().cpu().numpy())
        return torch.from_numpy(found).to(batch.labels.device)

    @contextlib.contextmanager
    def embedding(self, change: Change) -> Iterator[None]:
        """In the one forward pass inside, word embeddings are `change` of what they would be.

        They are [batch, length, hidden]; where a decoder has the same table, only the encoder's are changed.

        Raises:
            UnreachedError: at the end, if no forward pass came by there.
        """
        met: list[bool] = []

        def hook(table: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            met.append(True)
            if len(met) > 1:
                return output
            inserted = getattr(table, INSERTED, None) or [(self._ids, None)]
            ids, soft = inserted[0][:2]
            turned = bool(given) and _is_turned(given[0], ids)
            words = output.transpose(0, 1) if turned else output
            words = change(words) if soft is None else _among(words, soft, change)
            return words.transpose(0, 1) if turned else words

        handles = [module.register_forward_hook(hook) for module in self._tables()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if not met:
            raise UnreachedError("the objective changes embeddings, and the model didn't compute them")

    def _tables(self) -> list[nn.Module]:
        """The modules that look words up: several where encoder and decoder share a table."""
        table = self.words
        modules = self.model.modules()
        return [m for m in modules if m is table or getattr(m, "weight", None) is table.weight]

    @property
    def words(self) -> Any:
        """The table of word embeddings, a module with `weight` [tokens, hidden]."""
        return self.model.get_input_embeddings()  # type: ignore[operator]


def _is_turned(ids: torch.Tensor, told: torch.Tensor | None) -> bool:
    """Whether a model looks words up as [length, batch] (XLNet); only a square's numbers are compared."""
    import torch

    if told is None or ids.shape != told.shape[::-1]:
        return False
    return ids.shape != told.shape or (torch.equal(ids, told.T) and not torch.equal(ids, told))


def _among(words: torch.Tensor, soft: torch.Tensor, change: Change) -> torch.Tensor:
    """Words with soft tokens among them, of which only the texts' own are changed."""
    own = ~soft
    text = words[own].view(len(words), -1, words.shape[-1])
    found = words.clone()
    found[own] = change(text).to(words.dtype).flatten(0, 1)
    return found


@dataclass(frozen=True)
class Setting:
    """What an `Objective` may know of its run before the first update."""

    task: Task
    label_names: tuple[str, ...]
    train: Examples
    left: list[tuple[str, ...]]
    """Texts of training rows that `task.shots` left out."""
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Tokens kept of a text."""
    batching: Batching
    model: nn.Module
    amp: Amp
    paths: Paths
    augmentation: Callable[..., Any] | Augmentation
    """Of the run."""
    seed: int
    total: int
    """Updates of the run."""
    prompt: Prompt | None = None
    """The pattern that each text is put into."""


@dataclass(frozen=True)
class Turn:
    """What an `Objective` may do when a gradient of an update is complete and another one is to follow."""

    parameters: Sequence[nn.Parameter]
    """Those that train; `.grad` is that of the whole update, on every process the same."""
    norm: Callable[[], torch.Tensor]
    """L2 norm of the gradient over all parameters, times the loss scale (fp16)."""
    update: Callable[[], None]
    """Clip the gradient and let the optimizer make a step with it; one that isn't finite is left out."""


class Objective(Component):
    """An objective with more to it than a function of one batch."""

    @property
    def rounds(self) -> int:
        """Gradients made of each update; the optimizer's step takes the last."""
        return 1

    @property
    def moves_words(self) -> bool:
        """Whether it changes word embeddings (`Forward.embedding`): no trunk cache, no compilation."""
        return False

    @property
    def reads_states(self) -> bool:
        """Whether it reads hidden states (`Forward.outputs`): all blocks must run, on padded batches."""
        return False

    @property
    def reads_labels(self) -> bool:
        """Whether it looks at labels or rows itself, not through `Forward.losses`: they can't be mixed."""
        return False

    @property
    def settles(self) -> bool:
        """Whether it sets weights before each evaluation: neither averaging nor fsdp."""
        return False

    @property
    def needs_head(self) -> str | None:
        """The `model.head` that it needs; None where any will do."""
        return None

    def check(self, task: Task) -> None:
        """Before data and weights are touched.

        Raises:
            ConfigError: it can't be done with this task; the key is one of the objective's or of the task's.
        """

    def prepare(self, setting: Setting) -> None:
        """Before the first update, and before anything of an interrupted run is restored."""

    def __call__(self, forward: Forward, batch: Batch) -> Result:
        """A sum of losses, or several one after the other."""
        raise TypeError(f"{type(self).__name__} doesn't say what it minimises")

    def between(self, turn: Turn) -> None:
        """After each gradient of an update but the last."""

    def restore(self) -> None:
        """After the last gradient: undo what `between` did to the weights. Whatever happens, it is called."""

    def after(self, forward: Forward) -> None:
        """After the optimizer's step."""

    def before_judging(self, forward: Forward) -> None:
        """Before each evaluation; random numbers drawn here don't reach the training."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """What trains beside the model, once prepared: at the optimizer's rate, without weight decay.

        `tensors` must hold it, too.
        """
        return {}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a resumed run needs; the same on every process."""
        return {}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `tensors` gave."""

    def facts(self) -> dict[str, Any]:
        """For the run's record, once prepared; what a run that goes on must find again."""
        return {}


def need_kind(task: Task, kinds: Sequence[str], why: str) -> None:
    """Refuse a task of another kind.

    Args:
        task: the run's.
        kinds: that will do.
        why: what the objective needs.

    Raises:
        ConfigError: it isn't one of them.
    """
    if task.kind not in kinds:
        problem = f"{why}; the task {task.name} is of kind {task.kind}: take another objective"
        raise ConfigError("", problem)


def passes(result: Result) -> Iterator[torch.Tensor]:
    """The sums of losses of one batch, one after the other."""
    import torch

    if isinstance(result, torch.Tensor):
        yield result
    else:
        yield from result
