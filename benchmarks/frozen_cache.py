"""Training above frozen layers: their outputs computed anew in every epoch, or once.

Whet's own loop trains three epochs with evaluations. Compared are the seconds of an epoch (updates and
evaluation) after the first, and the whole time, computing the stored states included. In fp32 both
contestants end with the same logits to the bit, and the benchmark says whether they did.

  uncached   engine.trunk_cache=off
  cached     the cache is empty at the start of each measurement

    make bench ARGS="frozen_cache"
    python benchmarks/frozen_cache.py --data imdb --pairs 7
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import common
import training

from whet.engine import loop
from whet.engine.assemble import evaluator, seed_everything
from whet.engine.callbacks import Callback, Report, State
from whet.engine.frozen import use_frozen

KINDS = {
    "linear probe": (["peft=linear_probe"], (">=", 20.0)),
    "linear probe, fp32": (["peft=linear_probe", "engine.precision=fp32"], (">=", 20.0)),
    "top 2 layers": (["peft=top_layers", "engine.frozen=eval"], None),
}
"""What trains: overrides, and how many times as fast an epoch should be."""


def races(given: argparse.Namespace) -> list[common.Race]:
    keys, rows = training.data(given, rows={"sentences": 2048, "imdb": 512})
    return [
        common.Race(
            title=f"{kind} of {given.model} on {given.data}, three epochs of {rows} examples",
            contestants={
                name: {
                    "keys": [
                        *keys,
                        *more,
                        "engine.duration=3ep",
                        f"engine.trunk_cache={way}",
                        *given.overrides,
                    ]
                }
                for name, way in (("cached", "auto"), ("uncached", "off"))
            },
            figure="epoch_seconds",
            unit="s",
            reference="cached",
            targets={} if target is None else {"uncached": target},
            columns={"whole_seconds": ".1f", "prepare_seconds": ".1f", "gib": ".3f"},
            also=("whole_seconds",),
        )
        for kind, (more, target) in KINDS.items()
    ]


def child(settings: common.Figures) -> common.Figures:
    with tempfile.TemporaryDirectory() as folder:
        setup = training.set_up(settings["keys"], settings["threads"])
        parts, ready = setup.parts, setup.ready
        plan, stepper = training.assemble(setup, Path(folder))
        judge = evaluator("validation", parts.task, ready.data, ready.loaded, parts.engine, ready.amp)
        started = training.now()
        frozen = use_frozen(parts.engine, stepper, judge, Path(folder) / "trunk")
        prepared = training.now()
        stepper.collator, judge = frozen.train, replace(judge, collator=frozen.validation)
        watch = Epochs(plan.per_epoch)
        seed_everything(parts.seed)
        loop.fit(
            plan,
            stepper,
            judge,
            [Report(parts.tracking), watch],
            plan.evaluations(parts.engine.evaluate_every),
        )
    expected = "off" if "engine.trunk_cache=off" in settings["keys"] else "on"
    if frozen.facts.get("cache", "off") != expected:
        raise SystemExit(f"the cache is {frozen.facts}")
    return {
        "epoch_seconds": statistics.median(watch.seconds[1:]),
        "first_epoch_seconds": watch.seconds[0],
        "prepare_seconds": prepared - started,
        "whole_seconds": prepared - started + sum(watch.seconds),
        "gib": frozen.facts.get("bytes", 0) / 2**30,
        "logits": watch.logits,
        "precision": stepper.amp.name,
    }


class Epochs(Callback):
    """Notes how long each epoch and its evaluation took, and the last logits' hash."""

    def __init__(self, updates: int) -> None:
        self.updates, self.seconds, self.began, self.logits = updates, [], 0.0, ""

    def on_start(self, state: State) -> None:
        self.began = training.now()

    def on_evaluation(self, state: State, metrics: dict[str, float], predictions: object) -> None:
        ended = training.now()
        self.seconds.append(ended - self.began)
        self.began = ended
        self.logits = hashlib.sha256(predictions.logits.tobytes()).hexdigest()


def same_logits(told: list[common.Figures]) -> common.Figures:
    """Whether all fp32 measurements of a race end with one and the same logits."""
    found: common.Figures = {}
    for race in told:
        exact = {row["logits"] for row in race["measurements"] if row["precision"] == "fp32"}
        if exact:
            found[race["title"]] = "logits equal to the bit" if len(exact) == 1 else "LOGITS DIFFER"
    return found


if __name__ == "__main__":
    made = training.parser("frozen_cache", __doc__ or "")
    raise SystemExit(common.main(made, races, child, same_logits))
