"""What a sweep costs: twelve trials by whet, and the same twelve as scripts of Trainer and Optuna.

Both search the same grid of learning rates and warmups over the same rows, epochs, batches of 32 and frozen
lower layers, evaluate after every epoch, and keep their study in SQLite. Nothing is pruned.

  whet        one command, `whet train -m sweep=optuna`: a peer that keeps what it has loaded, and computes
              the frozen layers once
  separate    one process a trial, as scripts that call transformers.Trainer do it: bf16, batches by length,
              fused AdamW; the parent asks and tells

The more rows, the more of a trial is training above the frozen layers, which both do: try `--rows 1600`.

    make bench ARGS="sweep_cost"
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import training

LRS, WARMUPS = ("1e-4", "2e-4", "4e-4", "8e-4"), ("0.0", "0.1", "0.2")
EPOCHS, BATCH, LAYERS = 2, 32, 2
SCRIPT = """
import json, sys
import numpy as np
import torch
from transformers import (AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer,
                          TrainingArguments, set_seed)
told = json.loads(sys.argv[1])
torch.set_num_threads(told["threads"])
set_seed(1)
def rows(split):
    with np.load(f"{told['folder']}/{split}.npz") as found:
        ids, offsets, labels = found["ids"], found["offsets"], found["labels"]
    return [{"input_ids": ids[a:b].tolist(), "attention_mask": [1] * int(b - a), "labels": int(y)}
            for a, b, y in zip(offsets[:-1], offsets[1:], labels)]
model = AutoModelForSequenceClassification.from_pretrained(told["weights"], num_labels=2, dtype=torch.float32)
blocks = model.bert.encoder.layer
for part in (model.bert.embeddings, *blocks[: len(blocks) - told["layers"]]):
    part.requires_grad_(False)
tokenizer = AutoTokenizer.from_pretrained(told["weights"])
arguments = TrainingArguments(
    output_dir=told["out"], num_train_epochs=told["epochs"], per_device_train_batch_size=told["batch"],
    per_device_eval_batch_size=64, learning_rate=told["lr"], warmup_steps=told["warmup"], bf16=True,
    train_sampling_strategy="group_by_length", optim="adamw_torch_fused", eval_strategy="epoch",
    save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
    logging_nan_inf_filter=False, dataloader_pin_memory=False,
)
trainer = Trainer(model=model, args=arguments, train_dataset=rows("train"), eval_dataset=rows("validation"),
                  processing_class=tokenizer, data_collator=DataCollatorWithPadding(tokenizer),
                  compute_metrics=lambda p: {"accuracy": np.mean(p.predictions.argmax(1) == p.label_ids)})
trainer.train()
best = max(line["eval_accuracy"] for line in trainer.state.log_history if "eval_accuracy" in line)
print("accuracy:", best)
"""


def races(given: argparse.Namespace) -> list[common.Race]:
    rows = given.rows or (128 if given.quick else 400)
    keys = ["task=rotten_tomatoes", "model=minilm", f"debug.rows={rows}", f"peft.layers={LAYERS}",
            "peft=top_layers"]  # fmt: skip
    files = common.prepared(given.threads, keys=keys)
    grid = [(lr, warmup) for lr in LRS for warmup in WARMUPS][: 2 if given.quick else None]
    names = ("whet", "separate")
    return [
        common.Race(
            title=f"{len(grid)} trials of MiniLM on {rows} sentences, {EPOCHS} epochs, top {LAYERS} layers",
            contestants={name: {**files, "keys": keys, "contestant": name, "grid": grid} for name in names},
            figure="seconds",
            unit="s",
            reference="whet",
            targets={"separate": (">=", 3.0)},
            columns={"best": ".4f", "trials": ".0f"},
        )
    ]


def child(settings: common.Figures) -> common.Figures:
    return CONTESTANTS[settings["contestant"]](settings)


def prepare(settings: common.Figures) -> common.Figures:
    """The rows as whet cuts and tokenises them, for the scripts."""
    setup = training.set_up(settings["keys"], settings["threads"])
    for split in ("train", "validation"):
        tokens = setup.ready.data.tokens[split]
        labels = setup.ready.data.corpus.splits[split].labels
        np.savez(
            Path(settings["folder"]) / f"{split}.npz",
            ids=tokens.ids,
            offsets=tokens.offsets,
            labels=labels,
        )
    return {"folder": settings["folder"], "weights": str(setup.ready.loaded.located.folder)}


def whet(settings: common.Figures) -> common.Figures:
    """One command."""
    place = Path(settings["folder"]) / f"whet-{settings['round']}-{time.time_ns()}"
    lrs = sorted({lr for lr, _ in settings["grid"]})
    warmups = sorted({warmup for _, warmup in settings["grid"]})
    # frozen layers below stay in evaluation mode, so that they are computed once; the Trainer's have dropout
    command = [
        sys.executable, "-m", "whet", "train", "-m", "sweep=optuna", *settings["keys"], "tracking=local",
        "hydra/sweeper/sampler=grid", f"optimizer.lr=choice({','.join(lrs)})",
        f"scheduler.warmup=choice({','.join(warmups)})", f"engine.duration={EPOCHS}ep", "engine.frozen=eval",
        "engine.patience=null", f"engine.batching.size={BATCH}", f"engine.threads={settings['threads']}",
        f"paths.output={place}", "sweep.test=false", "sweep.start=false",
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    (study,) = (place / "sweeps").glob("*/study.db")
    return {"seconds": seconds, **judged(f"sqlite:///{study}", study.parent.name)}


def separate(settings: common.Figures) -> common.Figures:
    """One process a trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place = Path(settings["folder"]) / f"separate-{settings['round']}-{time.time_ns()}"
    place.mkdir()
    url = f"sqlite:///{place}/study.db"
    started = time.perf_counter()
    study = optuna.create_study(storage=url, study_name="grid", direction="maximize")
    for lr, warmup in settings["grid"]:
        study.enqueue_trial({"lr": lr, "warmup": warmup})
    for _ in settings["grid"]:
        trial = study.ask()
        lr = trial.suggest_categorical("lr", LRS)
        warmup = trial.suggest_categorical("warmup", WARMUPS)
        told = {name: settings[name] for name in ("folder", "weights", "threads")}
        told |= {"lr": float(lr), "warmup": float(warmup), "epochs": EPOCHS, "batch": BATCH}
        told |= {"layers": LAYERS, "out": str(place)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(told)], check=True, capture_output=True, text=True,
            env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"},
        )  # fmt: skip
        study.tell(trial, float(done.stdout.rpartition("accuracy:")[2]))
    return {"seconds": time.perf_counter() - started, **judged(url, "grid")}


def judged(url: str, name: str) -> common.Figures:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name=name, storage=url)
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    return {"best": study.best_value, "trials": len(complete)}


CONTESTANTS: dict[str, Any] = {"prepare": prepare, "whet": whet, "separate": separate}

if __name__ == "__main__":
    made = common.parser("sweep_cost", __doc__ or "")
    made.add_argument("--rows", type=int, help="training examples (default 400)")
    raise SystemExit(common.main(made, races, child))
