"""Time and memory of each parameter-efficient method beside full fine-tuning.

Every choice of conf/peft trains on the same rows in whet's own loop. Compared are seconds a step and the
peak of memory from the first step on (what is resident on a CPU, weights and libraries included; allocated
on a GPU). The frozen-trunk cache is off; what it saves is measured by frozen_cache.

    make bench ARGS="peft_cost"
    python benchmarks/peft_cost.py --only lora,bitfit --pairs 7
    python benchmarks/peft_cost.py --data imdb engine.batching.size=16      # overrides go to every method
"""

from __future__ import annotations

import argparse

import common
import training

FULL = "none"


def races(given: argparse.Namespace) -> list[common.Race]:
    from whet.config import conf_dir

    keys, rows = training.data(given, rows={"sentences": 1024, "imdb": 256})
    methods = sorted(path.stem for path in (conf_dir() / "peft").glob("*.yaml"))
    contestants = {
        name: {"keys": [f"peft={name}", "engine.trunk_cache=off", *keys, *given.overrides]}
        for name in [FULL, *sorted({*methods} - {FULL})]
    }
    return [
        common.Race(
            title=f"one step of {given.model} on {given.data}, {rows} examples",
            contestants=contestants,
            figure="seconds_per_step",
            unit="s",
            reference=FULL,
            columns={"trained": ",.0f", "peak_mib": ".0f", "busy_cores": ".2f"},
            also=("peak_mib",),
        )
    ]


def child(settings: common.Figures) -> common.Figures:
    setup = training.set_up(settings["keys"], settings["threads"])
    trained = sum(p.numel() for p in setup.ready.model.parameters() if p.requires_grad)
    return {**training.fit(setup, warm=3).figures(), "trained": trained}


if __name__ == "__main__":
    made = training.parser("peft_cost", __doc__ or "")
    raise SystemExit(common.main(made, races, child))
