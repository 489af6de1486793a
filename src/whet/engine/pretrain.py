"""Go on pretraining on a task's own texts before fine-tuning (Gururangan et al., 2020, task-adaptive).

A run of the same loop: the model guesses hidden tokens, its loss on the validation split's texts decides the
best checkpoint, and the folder `model/` of that serves as weights.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whet.config import Method, Node
from whet.data.batch import Batch, Collator, Examples
from whet.data.tokens import Tokens, texts_hash, tokenize, tokenizer_hash
from whet.debug import Debug
from whet.engine.assemble import max_length, seed_everything
from whet.engine.callbacks import Best, Callback, EarlyStopping, Report, State
from whet.engine.checkpoint import Checkpoints, load_tensors
from whet.engine.distributed import ALONE
from whet.engine.engine import Engine
from whet.engine.loop import fit
from whet.engine.plan import Plan
from whet.engine.resume import ALL_TRAINING, WEIGHTS, Images, restore_newest, take
from whet.engine.run import Run
from whet.engine.saving import Save, Saved
from whet.engine.speed import checkpoint_gradients
from whet.engine.step import Stepper
from whet.engine.train import status_of
from whet.errors import ConfigError, DataError, RunError
from whet.evaluation.predictions import Predictions
from whet.model.encoder import Encoder, Loaded
from whet.model.masked import hide, load_masked, only_at, save_masked
from whet.objective.base import Forward
from whet.paths import Paths
from whet.randomness import untouched
from whet.storage import aside
from whet.task.base import Criterion, Task
from whet.tracking.base import RunInfo, Tracking
from whet.types import Probability

if TYPE_CHECKING:
    import torch
    from torch import nn

    from whet.engine.precision import Amp

log = logging.getLogger("whet")


@dataclass(kw_only=True)
class Pretraining:
    """The parts of a pretraining: the signature that `whet pretrain`'s composed config is checked against."""

    task: Task
    model: Encoder
    optimizer: Method
    scheduler: Method
    engine: Engine
    tracking: Tracking
    paths: Paths
    debug: Debug
    rate: Probability = 0.15
    """Share of a text's tokens that is hidden."""
    texts: str | None = None
    """A file of further texts to train on, beside the training split's."""
    seed: int = 1
    """Every random number of the run follows from it."""
    name: str | None = None
    """Of the run folder; null makes one of time, task and model."""
    resume: str | None = None
    """A run folder of a pretraining that was interrupted, to go on with."""

    def __post_init__(self) -> None:
        self.engine = self.debug.engine(self.engine)
        for name, value in (("compile", self.engine.compile), ("packing", self.engine.packing == "on")):
            if value is not False:
                problem = "not for pretraining, where each step has another shape"
                raise ConfigError(f"engine.{name}", problem, getattr(self.engine, name))


@dataclass
class Guess:
    """The objective: cross entropy of hidden tokens, chosen anew in every update."""

    loaded: Loaded
    seed: int

    def __call__(self, forward: Forward, batch: Batch) -> torch.Tensor:
        return self.losses(forward.model, batch, [self.seed, forward.step, forward.piece])

    def losses(self, model: nn.Module, batch: Batch, seeds: list[int]) -> torch.Tensor:
        """Sum over the hidden tokens of a batch, whose labels say how many each text has."""
        import torch
        import torch.nn.functional as F

        ids = batch.inputs["input_ids"]
        state = int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator(ids.device).manual_seed(state)
        hidden, chosen = hide(ids, batch.labels, self.loaded.tokenizer, generator)
        with only_at(self.loaded.model, chosen):
            logits = model(**{**batch.inputs, "input_ids": hidden}).logits
        return F.cross_entropy(logits.float(), ids[chosen], reduction="sum")


@dataclass
class Guessed:
    """Judges a model by the tokens that it guesses in one split, always the same ones."""

    guess: Guess
    collator: Collator
    examples: Examples
    amp: Amp

    def predict(self, model: nn.Module) -> Predictions:
        """[batches, 1] sums of losses as logits, and how many tokens were guessed as labels."""
        import torch

        from whet.tracking.progress import progress

        model.eval()
        batches, found = self.collator.batching.evaluation(self.collator.tokens.lengths), []
        with torch.inference_mode(), progress(len(self.examples), "evaluating", "texts") as advance:
            for number, rows in enumerate(batches):
                with self.amp.autocast():
                    loss = self.guess.losses(model, self.collator(rows, self.amp.device), [0, number])
                found.append(float(loss))
                advance(len(rows))
        ids = np.array([f"batch-{number}" for number in range(len(batches))])
        counts = np.array([self.collator.labels[rows].sum() for rows in batches], dtype=np.float32)
        return Predictions(ids, np.array(found, dtype=np.float32)[:, None], counts, self.examples.split)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Mean loss of a token, and what it is e to the power of."""
        loss = float(predictions.logits.sum(dtype=np.float64)) / float(
            predictions.labels.sum(dtype=np.float64)
        )
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


@dataclass
class Texts:
    """Tokenised texts of a split, and how many tokens of each are to be hidden."""

    examples: Examples
    tokens: Tokens

    @classmethod
    def of(cls, split: str, texts: list[tuple[str, ...]], parts: Pretraining, loaded: Loaded) -> Texts:
        """Raises DataError where there is nothing to guess."""
        folder, room = loaded.located.folder, parts.paths.cached("tokens")
        limit = max_length(parts.task, loaded)
        tokens = tokenize(texts, loaded.tokenizer, limit, tokenizer_hash(folder), room)
        counts = hidden_counts(tokens, loaded.tokenizer.all_special_ids, parts.rate)
        kept = np.flatnonzero(counts)
        if not len(kept):
            raise DataError("task.data", f"the {split} split has no tokens to guess", split)
        return cls(Examples(split, np.arange(len(texts)).astype(np.str_), texts, counts), tokens)


def hidden_counts(tokens: Tokens, special: list[int], rate: float) -> NDArray[np.int64]:
    """[n] tokens to hide: this share of a text's ordinary ones, rounded, but one where it has any."""
    ordinary = np.concatenate([[0], np.cumsum(~np.isin(tokens.ids, special))])
    count = np.diff(ordinary[tokens.offsets])
    return np.asarray(np.where(count > 0, np.maximum(1, np.rint(rate * count)), 0), dtype=np.int64)


@dataclass
class Setup:
    """What is in memory before a folder exists."""

    loaded: Loaded
    train: Texts
    validation: Texts
    amp: Amp


def get_ready(parts: Pretraining) -> Setup:
    """Load and check data and model."""
    amp = parts.engine.amp()
    seed_everything(parts.seed)
    corpus = parts.debug.cut(parts.task.load(parts.paths), parts.seed)
    for name in ("train", "validation"):
        if name not in corpus.splits or not len(corpus.splits[name]):
            raise DataError("task.split", f"no rows for the {name} split; split.{name} sets its share", "")
    loaded = load_masked(parts.model, parts.paths)
    parts.model.tuned(loaded.model)
    if parts.engine.gradient_checkpointing:
        checkpoint_gradients(loaded.model)
    texts = [*corpus.splits["train"].texts, *corpus.left, *_further(parts)]
    train = Texts.of("train", texts, parts, loaded)
    return Setup(loaded, train, Texts.of("validation", corpus.splits["validation"].texts, parts, loaded), amp)


def _further(parts: Pretraining) -> list[tuple[str, ...]]:
    from whet.data.rows import read_rows

    if parts.texts is None:
        return []
    try:
        return [row.texts for row in read_rows(parts.texts, parts.task.columns, None, "auto", parts.paths)]
    except DataError as error:
        raise DataError("texts", error.problem, parts.texts) from None


def pretrain(
    parts: Pretraining, setup: Setup, run: Run, config: Node, resume: bool = False
) -> dict[str, float]:
    """Train, keep the best, write `model/`; returns the best evaluation's metrics.

    Raises:
        Interrupted: a signal asked for the end; the state is saved.
        RunError: with `resume`, the texts aren't those of the run.
    """
    plan = Plan.of(
        setup.train.tokens.lengths, parts.engine.batching, parts.engine.accumulate, parts.seed,
        parts.engine.duration, parts.debug.steps,
    )  # fmt: skip
    guess = Guess(setup.loaded, parts.seed)
    stepper = _stepper(parts, setup, plan, guess, run.folder)
    judge = Guessed(guess, _collator(parts, setup, setup.validation), setup.validation.examples, setup.amp)
    hashes = {"train": texts_hash(setup.train.examples.texts), "validation": texts_hash(judge.examples.texts)}
    if resume and run.record.get("hashes", {}).get("data") != hashes:
        raise RunError(f"{run.folder}: the texts aren't those of the run any more; start anew")
    run.update(hashes={"data": hashes, "weights": setup.loaded.located.sha256}, planned=plan.total)
    log.info(
        "%s texts to train on, %s tokens of them hidden in each epoch; %d updates; new: %s",
        f"{len(setup.train.examples):,}", f"{int(setup.train.examples.labels.sum()):,}", plan.total,
        ", ".join(sorted(setup.loaded.new)) or "nothing",
    )  # fmt: skip
    checkpoints = Checkpoints(run.folder / "checkpoints")
    evaluations = plan.evaluations(parts.engine.evaluate_every)
    request = ALONE.stop_request()
    callbacks = _callbacks(parts, plan, evaluations, stepper, checkpoints, request)
    state = restore_newest(checkpoints, stepper, callbacks) if resume else None
    with _told(parts, run, config, plan, state, resume) as summary:
        if state is None:
            seed_everything(parts.seed)
        with request.listening():
            state = fit(plan, stepper, judge, callbacks, evaluations, state)  # type: ignore[arg-type]
        if state.best is None:
            raise RunError("no evaluation took place")
        metrics = {f"validation/{name}": value for name, value in judge.metrics(state.best).items()}
        summary |= metrics
        run.update(
            steps=state.step, best={"step": state.best_step, "value": state.best_value}, metrics=metrics
        )
        load_tensors(setup.loaded.model, checkpoints.at(state.best_step) / WEIGHTS)
        with aside(run.folder / "model") as beside:
            save_masked(setup.loaded.model, setup.loaded, beside)
    return metrics


def finish(run: Run) -> None:
    """Remove what only a resume needs."""
    Checkpoints(run.folder / "checkpoints").finish(run.record["best"]["step"], ALL_TRAINING)


@contextlib.contextmanager
def _told(
    parts: Pretraining, run: Run, config: Node, plan: Plan, state: State | None, resume: bool
) -> Iterator[dict[str, Any]]:
    """The trackers hear of the beginning and of the end; what is put into the dict is the summary."""
    from whet.secrets import mask

    names = ("loss", "perplexity")
    info = RunInfo(
        folder=run.folder, name=run.folder.name, config=mask(config), job_type="pretrain",
        total_steps=plan.total, resumed_after=None if not resume else state.step if state else 0,
        logged=frozenset(f"validation/{n}" for n in names) if state and state.evaluated >= 0 else frozenset(),
        directions={f"validation/{name}": "minimize" for name in names},
    )  # fmt: skip
    with untouched():
        parts.tracking.start(info)
    summary: dict[str, Any] = {}
    try:
        yield summary
    except BaseException as error:
        parts.tracking.finish(status_of(error), {"reason": str(error)})
        raise
    parts.tracking.finish("finished", summary)


def _collator(parts: Pretraining, setup: Setup, texts: Texts) -> Collator:
    return Collator.of(texts.tokens, texts.examples.labels, setup.loaded.tokenizer, parts.engine.batching)


def _stepper(parts: Pretraining, setup: Setup, plan: Plan, guess: Guess, folder: Path) -> Stepper:
    """Its criterion only weighs: a text counts as often as tokens of it are hidden."""
    model = setup.loaded.model.to(setup.amp.device)
    criterion = Criterion(lambda logits, labels: logits[:, 0], lambda counts: counts.astype(np.float64))
    return Stepper(
        model=model, criterion=criterion, objective=guess, optimizer=parts.optimizer(model),
        schedule=parts.scheduler, plan=plan, collator=_collator(parts, setup, setup.train),
        examples=setup.train.examples, amp=setup.amp, clip=parts.engine.clip, folder=folder,
        on_nan=parts.engine.on_nan,
    )  # fmt: skip


def _callbacks(
    parts: Pretraining,
    plan: Plan,
    evaluations: frozenset[int],
    stepper: Stepper,
    checkpoints: Checkpoints,
    request: Any,
) -> list[Callback]:
    found: list[Callback] = [Best("loss", maximize=False)]
    if parts.engine.patience is not None:
        found.append(EarlyStopping("loss", False, parts.engine.patience, parts.engine.min_delta))
    found.append(Report(parts.tracking))
    every, images = parts.engine.checkpoint_every, Images()
    further = frozenset() if every is None else plan.evaluations(every) - evaluations
    save = Save(
        lambda state: take(stepper, state, found, ALONE, images).write,
        checkpoints, request, parts.engine.keep, further, parts.engine.on_save_error,
    )  # fmt: skip
    return [Saved(save), *found, save]
