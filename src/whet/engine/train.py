"""The story of a training run."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config import Method, Node
from whet.debug import Debug
from whet.engine import artifact
from whet.engine.assemble import (
    Prepared,
    describe_data,
    describe_trained,
    evaluator,
    make_plan,
    make_stepper,
    max_length,
    prepare,
    seed_everything,
)
from whet.engine.callbacks import Best, Callback, EarlyStopping, Profiler, Report, State
from whet.engine.checkpoint import Checkpoints, damage
from whet.engine.distributed import ALONE, World, current
from whet.engine.engine import Engine
from whet.engine.evaluate import Evaluator, logits_of
from whet.engine.frozen import use_frozen
from whet.engine.loop import fit
from whet.engine.plan import Plan
from whet.engine.resume import ALL_TRAINING, WEIGHTS, Images, restore_newest, take
from whet.engine.run import Run
from whet.engine.saving import Save, Saved
from whet.engine.speed import checkpoint_gradients, compile_model, use_packing
from whet.engine.step import Stepper
from whet.errors import Interrupted, RunError
from whet.model.encoder import Encoder, Loaded
from whet.paths import Paths
from whet.peft.base import apply
from whet.randomness import untouched
from whet.task.base import Task
from whet.tracking.base import RunInfo, Tracking

if TYPE_CHECKING:
    from torch import nn

    from whet.engine.precision import Amp
    from whet.engine.signals import StopRequest
    from whet.evaluation.predictions import Predictions
    from whet.evaluation.report import Report as SplitReport

log = logging.getLogger("whet")


@dataclass
class Outcome:
    """What a run came to."""

    folder: Path
    metrics: dict[str, float]
    """`test/accuracy` and so on."""
    primary: float
    """Primary metric on validation: what a sweep optimises."""
    text: str
    """The test report."""


@dataclass(kw_only=True)
class Parts:
    """The parts of an experiment: the signature that `whet train`'s composed config is checked against."""

    task: Task
    model: Encoder
    peft: Method
    augmentation: Method
    objective: Method
    optimizer: Method
    scheduler: Method
    engine: Engine
    tracking: Tracking
    paths: Paths
    debug: Debug
    seed: int = 1
    """Every random number of the run follows from it."""
    name: str | None = None
    """Of the run folder; null makes one of time, task, model, method and seed."""
    tags: list[str] = field(default_factory=list)
    """For W&B."""
    resume: str | None = None
    """A run folder to go on with; `auto`: the newest unfinished run of this very config, if there is one."""

    def __post_init__(self) -> None:
        self.engine = self.debug.engine(self.engine)


@dataclass
class Ready:
    """Data and model in memory, checked, nothing written yet."""

    data: Prepared
    loaded: Loaded
    model: nn.Module
    amp: Amp
    world: World = ALONE
    """The processes that train it."""


def get_ready(parts: Parts) -> Ready:
    """Load and check data and model. Raises before any run folder exists."""
    world = current()
    with world.preparing():
        return _get_ready(parts, world)


def _get_ready(parts: Parts, world: World) -> Ready:
    amp = parts.engine.amp(world.ranks)
    seed_everything(parts.seed)
    corpus = parts.debug.cut(parts.task.load(parts.paths), parts.seed)
    for line in corpus.findings.lines():
        if not line.startswith("    "):  # the rows themselves are for `whet data`
            log.info("audit: %s", line)
    loaded = parts.model.load(parts.task.head(corpus.label_names), parts.paths)
    data = prepare(parts.task, corpus, loaded, parts.augmentation, parts.paths, parts.seed)
    model = parts.model.tuned(apply(parts.peft, loaded))
    if parts.engine.gradient_checkpointing:
        checkpoint_gradients(model)
    return Ready(data, loaded, model, amp, world)


def train(
    parts: Parts, ready: Ready, run: Run, config: Node, group: str | None, resume: bool = False
) -> Outcome | None:
    """Train, keep the best, test it, report; with `resume` from the run's newest good checkpoint on.

    Of several processes the first one tests and reports; the others return None.

    Raises:
        Interrupted: a signal asked for the end; the state is saved.
        RunError: the data isn't what the run was trained on.
    """
    world = ready.world
    plan = make_plan(ready.data, parts.engine, parts.debug, parts.seed)
    world.spread(ready.model.to(ready.amp.device), ready.amp.device, parts.engine.parallel)
    stepper = make_stepper(
        ready.model, ready.data, ready.loaded, parts.engine, plan, ready.amp,
        parts.objective, parts.optimizer, parts.scheduler, run.folder, world,
    )  # fmt: skip
    world.check(stepper.optimizer)
    table, sizes = describe_trained(ready.model, ready.loaded.new)
    padding, hashes = plan.padding(), ready.data.hashes()
    log.info("%s\n%s", describe_data(ready.data, plan, padding), table)
    _same_everywhere(world, hashes)
    if resume:
        _same_data(run, hashes)
    run.update(
        max_length=max_length(parts.task, ready.loaded),
        trainable=sizes,
        hashes={"data": hashes, "weights": ready.loaded.located.sha256},
        data=_data_facts(ready, padding),
        precision=ready.amp.name,
    )
    judges = {
        s: evaluator(s, parts.task, ready.data, ready.loaded, parts.engine, ready.amp)
        for s in ("validation", "test")
    }
    with world.preparing(), untouched():
        blocked = parts.engine.hooks_blocked(world.sharded)
        packs = "engine.packing=on" if parts.engine.packing == "on" else None
        room = parts.paths.cached("trunk")
        frozen = use_frozen(parts.engine, stepper, judges["validation"], room, blocked or packs)
        if frozen.facts and not packs:
            blocked = "layers below are frozen, and may come from the trunk cache"
        own = stepper.collator
        packing = use_packing(parts.engine.packing, ready.model, own, ready.amp, padding, blocked or "")
    compile_model(ready.model, parts.engine.compile)
    stepper.collator = frozen.train
    watching = replace(judges["validation"], collator=frozen.validation, world=world)
    run.update(frozen=frozen.facts, packing=packing)
    checkpoints, request = Checkpoints(run.folder / "checkpoints"), world.stop_request()
    evaluations = plan.evaluations(parts.engine.evaluate_every)
    callbacks = _callbacks(parts, plan, evaluations, stepper, checkpoints, request, run.folder, world)
    state = restore_newest(checkpoints, stepper, callbacks, world) if resume else None
    if resume:
        log.info("resuming after step %d of %d", state.step if state else 0, plan.total)
    if state is None:
        seed_everything(world.seed(parts.seed))  # what loading drew doesn't reach the training
    with untouched():
        parts.tracking.start(_info(parts, run, config, plan.total, group, state, resume))
    try:
        started = time.perf_counter()
        with request.listening():
            state = fit(plan, stepper, watching, callbacks, evaluations, state)
        if not world.first:
            return None
        run.update(
            timings={"train_s": round(time.perf_counter() - started, 3)},
            steps=state.step,
            best=_best(parts, state),
        )
        outcome = _conclude(parts, ready, run, config, state, judges, checkpoints)
    except BaseException as error:
        stopped = isinstance(error, (KeyboardInterrupt, Interrupted))
        parts.tracking.finish("interrupted" if stopped else "failed", {"reason": str(error)})
        raise
    parts.tracking.finish("finished", {**outcome.metrics, **sizes})
    run.update(hashes={"final": checkpoints.hashes(state.step)})
    return outcome


def execute(
    parts: Parts, ready: Ready, run: Run, config: Node, group: str | None = None, resume: bool = False
) -> Outcome | None:
    """`train` under watch; what only a resume needs goes once the run is on record as finished."""
    with run.watched(), ready.world.witnessed():
        outcome = train(parts, ready, run, config, group, resume)
    if outcome is not None:
        Checkpoints(run.folder / "checkpoints").finish(run.record["best"]["step"], ALL_TRAINING)
    return outcome


def _callbacks(
    parts: Parts,
    plan: Plan,
    evaluations: frozenset[int],
    stepper: Stepper,
    checkpoints: Checkpoints,
    request: StopRequest,
    folder: Path,
    world: World,
) -> list[Callback]:
    """In the order of their hooks; what is saved last has been logged."""
    metric = str(parts.task.primary)
    maximize = parts.task.directions()[metric] == "maximize"
    found: list[Callback] = [Best(metric, maximize)]
    if parts.engine.patience is not None:
        found.append(EarlyStopping(metric, maximize, parts.engine.patience, parts.engine.min_delta))
    found.append(Report(parts.tracking))
    if parts.debug.profile and world.first:
        found.append(Profiler(folder))
    every = parts.engine.checkpoint_every
    further = frozenset() if every is None else plan.evaluations(every) - evaluations

    keep, on_error, images = parts.engine.keep, parts.engine.on_save_error, Images()
    save = Save(
        lambda state: take(stepper, state, found, world, images).write,
        checkpoints, request, keep, further, on_error, world=world,
    )  # fmt: skip
    return [Saved(save), *found, save]


def _conclude(
    parts: Parts,
    ready: Ready,
    run: Run,
    config: Node,
    state: State,
    judges: dict[str, Evaluator],
    checkpoints: Checkpoints,
) -> Outcome:
    """Export the best checkpoint, load it back, compare, test."""
    folder = run.folder / "model"
    weights = checkpoints.at(state.best_step) / WEIGHTS
    problem = damage(weights.parent)
    if problem is not None:
        raise RunError(f"{weights.parent}: the best checkpoint can't be exported: {problem}")
    artifact.export(folder, weights, ready.model, ready.loaded, config, ready.data.corpus.label_names)
    best = artifact.load(folder, parts.paths).model.to(ready.amp.device)
    compare_reloaded(best, judges["validation"], state)
    seen = _judge(parts, run, "validation", _best_predictions(state), judges["validation"])
    tested = _judge(parts, run, "test", judges["test"].predict(best), judges["test"])
    metrics = {f"validation/{name}": value for name, value in seen.metrics.items()}
    metrics |= {f"test/{name}": value for name, value in tested.metrics.items()}
    run.update(metrics=metrics)
    _curves(run.folder, parts.task)
    return Outcome(run.folder, metrics, state.best_value, tested.text())


def compare_reloaded(model: nn.Module, judge: Evaluator, state: State) -> None:
    """The exported model must say exactly what the best checkpoint said during training.

    Raises:
        RunError: it doesn't.
    """
    import numpy as np

    before, after = (
        _best_predictions(state).logits,
        logits_of(model, judge.collator, judge.amp, "checking the saved model"),
    )
    if not np.array_equal(before, after, equal_nan=True):
        worst = float(np.abs(before - after).max())
        exact = judge.amp.device.type == "cpu"
        if exact or worst > 1e-2:
            raise RunError(
                f"the saved model differs from the trained one (logits by up to {worst:g}): not reported"
            )
        log.warning("the saved model's logits differ by up to %g (non-deterministic kernels)", worst)


def _best_predictions(state: State) -> Predictions:
    if state.best is None:
        raise RunError("no evaluation took place")
    return state.best


def _judge(parts: Parts, run: Run, split: str, predictions: Predictions, judge: Evaluator) -> SplitReport:
    """Predictions file, report files, trackers."""
    predictions.save(run.folder / "predictions" / f"{split}.npz")
    metrics = judge.metrics(predictions)
    report = judge.report(predictions, metrics, run.folder / "report")
    parts.tracking.report(predictions, list(judge.label_names) or None, metrics)
    return report


def _curves(folder: Path, task: Task) -> None:
    """Learning curves, where the local log was kept."""
    from whet.evaluation.plots import learning_curves
    from whet.tracking.jsonl import read_metrics

    if (folder / "metrics.jsonl").is_file():
        directions = {f"validation/{name}": way for name, way in task.directions().items()}
        learning_curves(
            read_metrics(folder / "metrics.jsonl"), folder / "report" / "learning_curves.png", directions
        )


def _info(
    parts: Parts, run: Run, config: Node, total: int, group: str | None, state: State | None, resume: bool
) -> RunInfo:
    from whet.secrets import mask

    told = parts.task.directions() if state is not None and state.evaluated >= 0 else {}
    return RunInfo(
        folder=run.folder,
        name=parts.name or run.folder.name,
        config=mask(config),
        group=group,
        tags=tuple(parts.tags),
        total_steps=total,
        resumed_after=None if not resume else state.step if state else 0,
        logged=frozenset(f"validation/{name}" for name in told),
        directions={
            f"{s}/{n}": d for s in ("validation", "test") for n, d in parts.task.directions().items()
        },
    )


def _same_everywhere(world: World, hashes: dict[str, str]) -> None:
    """Every process must have read the same rows: each knows of all of them."""
    everywhere = world.gather(hashes)
    for rank, others in enumerate(everywhere):
        for split in hashes:
            if others[split] != everywhere[0][split]:
                raise RunError(f"the {split} rows of rank {rank} aren't those of rank 0; copy the data anew")


def _same_data(run: Run, now: dict[str, str]) -> None:
    """A run goes on only on the rows, in the order, that it was trained on."""
    before = run.record.get("hashes", {}).get("data")
    for split in now:
        if before is not None and before.get(split) != now[split]:
            raise RunError(f"{run.folder}: the {split} rows aren't those of the run any more; start anew")


def _data_facts(ready: Ready, padding: float) -> dict[str, Any]:
    tokens = ready.data.tokens
    return {
        "rows": {name: len(found) for name, found in tokens.items()},
        "label_names": list(ready.data.corpus.label_names),
        "label_counts": _counts(ready),
        "padding": round(padding, 4),
        "truncated": {name: round(float(found.truncated.mean()), 4) for name, found in tokens.items()},
        "audit": json.loads(json.dumps(ready.data.corpus.findings.to_dict(), default=str)),
    }


def _counts(ready: Ready) -> list[int] | None:
    """Training rows of each class; None where labels aren't classes."""
    import numpy as np

    labels = ready.data.corpus.splits["train"].labels
    if labels.dtype.kind != "i":
        return None
    return [int(n) for n in np.bincount(labels[labels >= 0], minlength=len(ready.data.corpus.label_names))]


def _best(parts: Parts, state: State) -> dict[str, Any]:
    return {
        "step": state.best_step,
        "metric": f"validation/{parts.task.primary}",
        "value": state.best_value,
        "stopped": state.stopped,
    }


def run_name(parts: Parts, config: Node) -> str:
    """Readable, and sorts by time."""
    from whet.engine.run import stamp

    method = str(config["peft"]["_target_"]).rpartition(".")[2]
    return parts.name or f"{stamp()}-{parts.task.name}-{parts.model.name}-{method}-s{parts.seed}"
