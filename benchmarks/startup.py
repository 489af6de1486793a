"""Time from the command line to the composed config, and to the first training step.

Each contestant is a fresh process, timed from its start by its parent's clock; caches of data and tokens are
warm (one round isn't counted). The config: `whet train --cfg job` beside
  hydra        the smallest Hydra script over the same YAML files, with --cfg job
The first step: `whet train` on Rotten Tomatoes with MiniLM, until the first update is done, beside
  hugging_face a minimal script: load_dataset of the same rows as CSV, map the tokenizer, Trainer, first step

Whet checks every key against its signature, audits the rows and hashes weights and tokens on the way.

    make bench ARGS="startup"
    python benchmarks/startup.py --pairs 11
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import training

TASK = ["task=rotten_tomatoes", "model=minilm"]
HYDRA = """
import hydra
from omegaconf import DictConfig

@hydra.main(version_base="1.3", config_path={conf!r}, config_name="train")
def main(config: DictConfig) -> None:
    pass

main()
"""


def races(given: argparse.Namespace) -> list[common.Race]:
    files, warm_up = common.prepared(given.threads), 0 if given.quick else 1
    pairs = [
        ("from the command line to the printed config", "hydra", "whet --cfg job"),
        ("from the command line to the end of the first training step", "hugging_face", "whet train"),
    ]
    return [
        common.Race(
            title=title,
            contestants={name: {**files, "contestant": name} for name in (reference, other)},
            figure="seconds",
            unit="s",
            reference=reference,
            warm_up=warm_up,
        )
        for title, reference, other in pairs
    ]


def child(settings: common.Figures) -> common.Figures:
    return CONTESTANTS[settings["contestant"]](settings)


def command(arguments: list[str], settings: common.Figures) -> common.Figures:
    """Seconds that a command takes from start to end."""
    started = time.perf_counter()
    common.spawn([sys.executable, *arguments], settings["threads"], Path(settings["folder"]))
    return {"seconds": time.perf_counter() - started}


def hydra(settings: common.Figures) -> common.Figures:
    """The bare script; the callback that train.yaml names is whet's own, so it goes."""
    return command([settings["script"], "--cfg", "job", "~hydra.callbacks.multirun"], settings)


def config(settings: common.Figures) -> common.Figures:
    return command(["-m", "whet", "train", "--cfg", "job"], settings)


def until_step(contestant: str) -> Callable[[common.Figures], common.Figures]:
    """Seconds from the start of a process to its first update, by the clock that processes share."""

    def measure(settings: common.Figures) -> common.Figures:
        script = str(Path(__file__).resolve())
        inner = json.dumps({**settings, "contestant": contestant})
        started = time.time()
        output = common.spawn([sys.executable, script, "--child", inner], settings["threads"])
        return {"seconds": common.parse(output)["at"] - started}

    return measure


def first_step_done() -> None:
    """Tell the time, and end the process."""
    print(common.MARK + json.dumps({"at": time.time()}), flush=True)
    os._exit(0)


def whet_train(settings: common.Figures) -> common.Figures:
    """`whet train`, up to its first update."""
    from whet.cli.main import main
    from whet.engine.step import Stepper

    update = Stepper.update

    def first(self: Stepper, *arguments: Any) -> None:
        update(self, *arguments)
        first_step_done()

    Stepper.update = first  # type: ignore[method-assign,assignment]
    keys = [f"engine.threads={settings['threads']}", "tracking=none", f"paths.output={settings['folder']}"]
    raise SystemExit(f"whet train ended ({main(['train', *TASK, *keys])}) without a step")


def hugging_face(settings: common.Figures) -> common.Figures:
    """A minimal script with transformers.Trainer, up to its first step."""
    import torch
    from datasets import load_dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(settings["threads"])

    class FirstStep(TrainerCallback):
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            first_step_done()

    tokenizer = AutoTokenizer.from_pretrained(settings["weights"])
    model = AutoModelForSequenceClassification.from_pretrained(settings["weights"], num_labels=2)
    rows = load_dataset("csv", data_files={"train": settings["rows"]}, cache_dir=settings["folder"])["train"]
    rows = rows.map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True)
    told = TrainingArguments(
        output_dir=settings["folder"],
        per_device_train_batch_size=32,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    Trainer(
        model=model, args=told, train_dataset=rows, processing_class=tokenizer, callbacks=[FirstStep()]
    ).train()
    raise SystemExit("the Trainer ended without a step")


def prepare(settings: common.Figures) -> common.Figures:
    """Write what the other contestants need: the rows as CSV, a Hydra script; find the weights."""
    from whet.config import conf_dir

    setup = training.set_up(TASK, settings["threads"])
    folder = Path(settings["folder"])
    train = setup.ready.data.corpus.splits["train"]
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(
            [parts[0], int(label)] for parts, label in zip(train.texts, train.labels, strict=True)
        )
    (folder / "hydra_script.py").write_text(HYDRA.format(conf=str(conf_dir())), encoding="utf-8")
    return {
        "folder": str(folder),
        "rows": str(folder / "rows.csv"),
        "script": str(folder / "hydra_script.py"),
        "weights": str(setup.ready.loaded.located.folder),
    }


CONTESTANTS: dict[str, Callable[[common.Figures], common.Figures]] = {
    "prepare": prepare,
    "hydra": hydra,
    "whet --cfg job": config,
    "whet train": until_step("whet train, inside"),
    "whet train, inside": whet_train,
    "hugging_face": until_step("hugging_face, inside"),
    "hugging_face, inside": hugging_face,
}


if __name__ == "__main__":
    raise SystemExit(common.main(common.parser("startup", __doc__ or ""), races, child))
