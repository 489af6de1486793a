"""The story of a training run."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.augmentation.base import Augmentation
from whet.averaging.base import is_off
from whet.averaging.none import none
from whet.config import Method, Node, to_config
from whet.debug import Debug
from whet.engine import artifact
from whet.engine.assemble import (
    Prepared,
    check_room,
    describe_data,
    describe_trained,
    evaluator,
    make_plan,
    make_stepper,
    max_length,
    prepare,
    seed_everything,
)
from whet.engine.average import Average
from whet.engine.callbacks import Best, Callback, EarlyStopping, Profiler, Report, State
from whet.engine.checkpoint import Checkpoints, damage
from whet.engine.distributed import ALONE, World, current
from whet.engine.engine import Engine
from whet.engine.evaluate import Evaluator, logits_of
from whet.engine.frozen import Frozen, uneven, use_frozen
from whet.engine.loop import fit
from whet.engine.plan import Plan, most_epochs
from whet.engine.resume import ALL_TRAINING, WEIGHTS, Images, bests, restore_newest, take
from whet.engine.run import Run
from whet.engine.saving import Save, Saved
from whet.engine.speed import checkpoint_gradients, compile_model, use_narrow, use_packing
from whet.engine.step import Stepper
from whet.engine.trial import Reporting, Trial
from whet.engine.warm import load_base
from whet.errors import ConfigError, Interrupted, PrunedError, RunError
from whet.model.encoder import Encoder, Loaded
from whet.objective.base import Objective, Setting
from whet.paths import Paths
from whet.peft.base import apply
from whet.randomness import untouched
from whet.sweep.settings import Sweep
from whet.task.base import Task
from whet.tracking.base import RunInfo, Tracking, shown_as

if TYPE_CHECKING:
    import torch
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
    augmentation: Augmentation
    objective: Method | Objective
    optimizer: Method
    scheduler: Method
    engine: Engine
    tracking: Tracking
    paths: Paths
    debug: Debug
    averaging: Method = none
    sweep: Sweep = field(default_factory=Sweep)
    """Of `whet train -m`; a run doesn't look at it."""
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
        if self.engine.parallel == "fsdp" and not is_off(self.averaging):
            problem = "not together with averaging: take ddp, or averaging=none"
            raise ConfigError("engine.parallel", problem, "fsdp")
        self.objective = self.augmentation.wrap(self.objective)
        if isinstance(self.objective, Objective):
            _check_objective(self.objective, self)


def _check_objective(objective: Objective, parts: Parts) -> None:
    """What an objective can't do is said before anything is loaded."""
    engine = parts.engine
    try:
        objective.check(parts.task)
    except ConfigError as error:
        raise error.under("objective") from None
    if objective.needs_head not in (None, parts.model.head):
        wanted = objective.needs_head
        problem = f"this objective works on the head {wanted}: set model.head={wanted}"
        raise ConfigError("model.head", problem, parts.model.head)
    if objective.settles and not is_off(parts.averaging):
        problem = "this objective fits the head to the weights at each evaluation: take averaging=none"
        raise ConfigError("averaging", problem)
    if objective.settles and engine.parallel == "fsdp":
        problem = "this objective fits the head, which must be in one piece: take ddp"
        raise ConfigError("engine.parallel", problem, "fsdp")
    if objective.moves_words and engine.compile is not False:
        problem = "compiled code doesn't see the objective move word embeddings; leave it false"
        raise ConfigError("engine.compile", problem, engine.compile)


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
    loaded, data = load_base(_base_key(parts), lambda: _load_base(parts))
    model = parts.model.tuned(apply(parts.peft, loaded))
    check_room(parts.task, loaded, model)
    if parts.engine.gradient_checkpointing:
        checkpoint_gradients(model)
    return Ready(data, loaded, model, amp, world)


def _load_base(parts: Parts) -> tuple[Loaded, Prepared]:
    """Data and pretrained model."""
    seed_everything(parts.seed)
    corpus = parts.debug.cut(parts.task.load(parts.paths), parts.seed)
    for line in corpus.findings.lines():
        if not line.startswith("    "):  # the rows themselves are for `whet data`
            log.info("audit: %s", line)
    loaded = parts.model.load(parts.task.head(corpus.label_names), parts.paths)
    engine, limit = parts.engine, parts.debug.steps

    def epochs(rows: int) -> int:
        return most_epochs(rows, engine.batching, engine.accumulate, engine.duration, limit)

    return loaded, prepare(parts.task, corpus, loaded, parts.augmentation, parts.paths, parts.seed, epochs)


def _base_key(parts: Parts) -> str:
    """All that `_load_base` depends on."""
    told = [parts.task, parts.model, parts.augmentation, parts.debug, parts.paths]
    engine = parts.engine
    length = [str(engine.duration), engine.batching.size, engine.accumulate]  # what `epochs` looks at
    editions = length if parts.augmentation.by_epoch else []
    return json.dumps([*map(to_config, told), editions, parts.seed], sort_keys=True)


def _trunk_key(parts: Parts) -> str:
    """All that the way above frozen layers depends on: a sweep's trials that share it prove it once."""
    told = [parts.peft, parts.objective, parts.engine]
    return json.dumps([_base_key(parts), *map(to_config, told)], sort_keys=True)


def train(
    parts: Parts,
    ready: Ready,
    run: Run,
    config: Node,
    group: str | None,
    resume: bool = False,
    trial: Trial | None = None,
) -> Outcome | None:
    """Train, keep the best, test it, report; with `resume` from the run's newest good checkpoint on.

    Of several processes the first one tests and reports; the others return None. Trials aren't tested.

    Raises:
        Interrupted: a signal asked for the end; the state is saved.
        PrunedError: a sweep ends its trial.
        RunError: the data isn't what the run was trained on.
    """
    world = ready.world
    plan, stepper, padding, sizes = _set_up(parts, ready, run, resume, trial)
    judges = {
        s: evaluator(s, parts.task, ready.data, ready.loaded, parts.engine, ready.amp)
        for s in ("validation", "test")
    }
    frozen, packing, last_block = _ways(parts, ready, stepper, judges["validation"], padding)
    watching = replace(judges["validation"], collator=frozen.validation, world=world)
    run.update(frozen=frozen.facts, packing=packing, last_block=last_block)
    checkpoints, request = Checkpoints(run.folder / "checkpoints"), world.stop_request()
    evaluations = plan.evaluations(parts.engine.evaluate_every)
    callbacks = _callbacks(parts, plan, evaluations, stepper, checkpoints, request, run.folder, world, trial)
    state = restore_newest(checkpoints, stepper, callbacks, world) if resume else None
    if resume:
        log.info("resuming after step %d of %d", state.step if state else 0, plan.total)
    if state is None:
        seed_everything(world.seed(parts.seed))  # what loading drew doesn't reach the training
    with untouched():
        parts.tracking.start(_info(parts, run, config, plan.total, group, state, resume, trial))
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
        finish = _conclude if trial is None else _conclude_trial
        outcome = finish(parts, ready, run, config, state, judges, checkpoints)
    except BaseException as error:
        if isinstance(error, PrunedError):
            run.update(steps=error.step)
        parts.tracking.finish(status_of(error), {"reason": str(error)})
        raise
    parts.tracking.finish("finished", {**outcome.metrics, **sizes})
    run.update(hashes={"final": checkpoints.hashes(state.step)})
    return outcome


def _set_up(
    parts: Parts, ready: Ready, run: Run, resume: bool, trial: Trial | None
) -> tuple[Plan, Stepper, float, dict[str, int]]:
    """Plan, stepper, share of padding and numbers of parameters; the run's record tells of them.

    Raises:
        RunError: the data, or what the objective reads, isn't what the run was trained on.
    """
    world = ready.world
    plan = make_plan(ready.data, parts.engine, parts.debug, parts.seed)
    world.spread(ready.model.to(ready.amp.device), ready.amp.device, parts.engine.parallel)
    stepper = make_stepper(
        ready.model, ready.data, ready.loaded, parts.engine, plan, ready.amp,
        parts.objective, parts.optimizer, parts.scheduler, run.folder, world,
    )  # fmt: skip
    objective = _prepared(parts, ready, plan, stepper)
    world.check(stepper.optimizer)
    table, sizes = describe_trained(ready.model, ready.loaded.new)
    padding, hashes = plan.padding(), ready.data.hashes()
    log.info("%s\n%s", describe_data(ready.data, plan, padding), table)
    _same_everywhere(world, hashes)
    if resume:
        _same_data(run, hashes)
        _same_objective(run, objective)
    run.update(
        max_length=max_length(parts.task, ready.loaded),
        trainable=sizes,
        hashes={"data": hashes, "weights": ready.loaded.located.sha256},
        data=_data_facts(ready, padding),
        precision=ready.amp.name,
        planned=plan.total,
        directions=directions(parts.task),
        objective=objective,
        **({} if trial is None else {"trial": trial.facts}),
    )
    return plan, stepper, padding, sizes


def _prepared(parts: Parts, ready: Ready, plan: Plan, stepper: Stepper) -> dict[str, Any]:
    """Let the objective get ready; what it says of itself for the record."""
    if not isinstance(parts.objective, Objective):
        return {}
    try:
        parts.objective.prepare(_setting(parts, ready, plan))
    except ConfigError as error:
        raise error.under("objective") from None
    stepper.adopt(parts.objective.parameters())
    return parts.objective.facts()


def _setting(parts: Parts, ready: Ready, plan: Plan) -> Setting:
    """What an objective may know."""
    corpus = ready.data.corpus
    return Setting(
        task=parts.task, label_names=corpus.label_names, train=corpus.splits["train"],
        left=corpus.left, tokenizer=ready.loaded.tokenizer, max_length=max_length(parts.task, ready.loaded),
        batching=parts.engine.batching, model=ready.model, amp=ready.amp, paths=parts.paths,
        augmentation=parts.augmentation, seed=parts.seed, total=plan.total, prompt=ready.loaded.prompt,
    )  # fmt: skip


def _ways(
    parts: Parts, ready: Ready, stepper: Stepper, judge: Evaluator, padding: float
) -> tuple[Frozen, dict[str, Any], dict[str, Any]]:
    """Let the steps take the quickest way that changes nothing else; facts on it for the record."""
    engine, world, own = parts.engine, ready.world, stepper.collator
    uncached, unpacked = _against(parts.objective)
    with world.preparing(), untouched():
        hooked = blocked = engine.hooks_blocked(world.sharded)
        packs = "engine.packing=on" if engine.packing == "on" else None
        room, reason, key = parts.paths.cached("trunk"), blocked or packs or uncached, _trunk_key(parts)
        frozen = use_frozen(engine, stepper, judge, room, reason, key)
        if frozen.facts and not packs:
            blocked = "layers below are frozen, and may come from the trunk cache"
        packing = use_packing(engine.packing, ready.model, own, ready.amp, padding, blocked or unpacked or "")
        whole = hooked or unpacked or ("rows are packed" if packing["packing"] == "on" else "")
        narrowed = use_narrow(engine.last_block, ready.model, lambda: _uneven(stepper), key, whole)
    compile_model(ready.model, engine.compile)
    stepper.collator = frozen.train
    return frozen, packing, narrowed


def _uneven(stepper: Stepper) -> dict[str, torch.Tensor]:
    """A small batch of texts of unequal length."""
    return stepper.collator(uneven(stepper.collator), stepper.amp.device).inputs


def _against(objective: Any) -> tuple[str | None, str | None]:
    """What the objective has against the trunk cache, and against packing."""
    if not isinstance(objective, Objective):
        return None, None
    if objective.reads_states:
        return ("the objective reads hidden states",) * 2
    return "the objective changes the embeddings" if objective.moves_words else None, None


def execute(
    parts: Parts,
    ready: Ready,
    run: Run,
    config: Node,
    group: str | None = None,
    resume: bool = False,
    trial: Trial | None = None,
) -> Outcome | None:
    """`train` under watch; what only a resume needs goes once the run is on record as finished."""
    checkpoints = Checkpoints(run.folder / "checkpoints")
    try:
        with run.watched(), ready.world.witnessed():
            outcome = train(parts, ready, run, config, group, resume, trial)
    except PrunedError:
        checkpoints.keep(set())
        raise
    if outcome is not None:
        checkpoints.finish(run.record["best"]["step"], ALL_TRAINING)
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
    trial: Trial | None = None,
) -> list[Callback]:
    """In the order of their hooks; what is saved last has been logged."""
    metric = str(parts.task.primary)
    maximize = parts.task.directions()[metric] == "maximize"
    found: list[Callback] = [*_averaged(parts, plan, stepper), Best(metric, maximize)]
    if parts.engine.patience is not None:
        found.append(EarlyStopping(metric, maximize, parts.engine.patience, parts.engine.min_delta))
    found.append(Report(parts.tracking))
    if trial is not None:
        found.append(Reporting(trial))
    if parts.debug.profile and world.first:
        found.append(Profiler(folder))
    every = parts.engine.checkpoint_every
    further = frozenset() if every is None else plan.evaluations(every) - evaluations

    keep, on_error, images = parts.engine.keep, parts.engine.on_save_error, Images()
    save = Save(
        lambda state: take(stepper, state, found, world, images).write,
        checkpoints, request, keep, further, on_error, world=world, earlier=lambda: bests(checkpoints),
    )  # fmt: skip
    return [Saved(save), *found, save]


def _averaged(parts: Parts, plan: Plan, stepper: Stepper) -> list[Callback]:
    """What follows the weights, where they are averaged; from now on the average is judged."""
    if is_off(parts.averaging):
        return []
    average = Average(stepper.model, parts.averaging, plan.per_epoch)
    stepper.judged = average.worn
    return [average]


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
    folder = _export(ready, run, config, state, checkpoints)
    best = artifact.load(folder, parts.paths).model.to(ready.amp.device)
    compare_reloaded(best, judges["validation"], state)
    seen = _judge(parts, run, "validation", _best_predictions(state), judges["validation"])
    tested = _judge(parts, run, "test", judges["test"].predict(best), judges["test"])
    metrics = {f"validation/{name}": value for name, value in seen.metrics.items()}
    metrics |= {f"test/{name}": value for name, value in tested.metrics.items()}
    run.update(metrics=metrics)
    if parts.engine.pictures:
        _curves(run.folder, parts.task)
    return Outcome(run.folder, metrics, state.best_value, tested.text())


def _export(ready: Ready, run: Run, config: Node, state: State, checkpoints: Checkpoints) -> Path:
    """Put the best checkpoint into the run's `model` folder."""
    folder, weights = run.folder / "model", checkpoints.at(state.best_step) / WEIGHTS
    problem = damage(weights.parent)
    if problem is not None:
        raise RunError(f"{weights.parent}: the best checkpoint can't be exported: {problem}")
    artifact.export(folder, weights, ready.model, ready.loaded, config, ready.data.corpus.label_names)
    return folder


def _conclude_trial(
    parts: Parts,
    ready: Ready,
    run: Run,
    config: Node,
    state: State,
    judges: dict[str, Evaluator],
    checkpoints: Checkpoints,
) -> Outcome:
    """Export the best checkpoint and report on validation; the sweep tests its best trial when it is over."""
    _export(ready, run, config, state, checkpoints)
    best, judge = _best_predictions(state), judges["validation"]
    seen = _judge(parts, run, "validation", best, judge, pictures=False)  # `whet report` draws them
    metrics = {f"validation/{name}": value for name, value in seen.metrics.items()}
    run.update(metrics=metrics)
    return Outcome(run.folder, metrics, state.best_value, seen.text())


def status_of(error: BaseException) -> str:
    """How a run that raised `error` ended."""
    if isinstance(error, PrunedError):
        return "pruned"
    return "interrupted" if isinstance(error, (KeyboardInterrupt, Interrupted)) else "failed"


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


def _judge(
    parts: Parts, run: Run, split: str, predictions: Predictions, judge: Evaluator, pictures: bool = True
) -> SplitReport:
    """Predictions file, report files, trackers."""
    predictions.save(run.folder / "predictions" / f"{split}.npz")
    metrics = judge.metrics(predictions)
    report = judge.report(predictions, metrics, run.folder / "report", pictures and parts.engine.pictures)
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
    parts: Parts,
    run: Run,
    config: Node,
    total: int,
    group: str | None,
    state: State | None,
    resume: bool,
    trial: Trial | None,
) -> RunInfo:
    from whet.secrets import mask

    told = parts.task.directions() if state is not None and state.evaluated >= 0 else {}
    facts = None if trial is None else trial.facts
    return RunInfo(
        folder=run.folder,
        config=mask(config),
        trial=facts,
        **shown_as(run.folder, parts.name, group, facts),
        tags=tuple(parts.tags),
        total_steps=total,
        resumed_after=None if not resume else state.step if state else 0,
        logged=frozenset(f"validation/{name}" for name in told),
        directions=directions(parts.task),
    )


def directions(task: Task) -> dict[str, str]:
    """Of a task's metrics on validation and test, by the names that the trackers have."""
    return {f"{s}/{n}": d for s in ("validation", "test") for n, d in task.directions().items()}


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


def _same_objective(run: Run, now: dict[str, Any]) -> None:
    """A run goes on only towards what it was trained for."""
    before = run.record.get("objective", now)
    for name, value in now.items():
        if before.get(name) != value:
            raise RunError(f"{run.folder}: the objective's {name} isn't that of the run any more; start anew")


def _data_facts(ready: Ready, padding: float) -> dict[str, Any]:
    tokens = ready.data.tokens
    return {
        "rows": {name: len(found) for name, found in ready.data.corpus.splits.items()},
        "augmentation": ready.data.training.facts,
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
