"""Real tokens a second of fine-tuning: whet beside what a user would pick instead.

Contestants, all with the same rows, tokens, pretrained weights, learning rate and number of threads:
  whet         `whet train` as it comes: its own loop, batches of 32
  hf_default   transformers.Trainer as it comes: fp32, random order, batches of 32 padded to their longest
  hf_best      transformers.Trainer at its best here: bf16, batches grouped by length, fused AdamW, no NaN
               filter, tokens in memory. Of few rows it would sort only small pools, so it is given the
               pools of 50 batches that it makes of many rows: its padding is that of the whole data
  article      the article's recipe: all padded to 256 tokens, fp32, batches of 16, plain loop with Adam

Each trains one epoch on the same number of examples (the article's on every 16th by length: its steps all
cost the same). Loading, the first steps and evaluation aren't timed; padding doesn't count as tokens.

    make bench ARGS="train_throughput"
    python benchmarks/train_throughput.py --data imdb --only hf_best --pairs 7
    python benchmarks/train_throughput.py --data sentences --only hf_best engine.batching.pool=100
    python benchmarks/train_throughput.py --accuracy        # validation accuracy after the epoch, too
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import numpy as np
import training

if TYPE_CHECKING:
    import torch
    from torch import nn


ROWS = {
    "sentences": {"rows": 1600, "accurate": 4800, "quick": 160},
    "imdb": {"rows": 640, "accurate": 1600, "quick": 128},
}
"""Training examples: usually, with --accuracy, with --quick."""
DATA = tuple(ROWS)
TARGETS = {
    "sentences": {"hf_default": (">=", 2.5), "hf_best": (">=", 1.15), "article": (">=", 20.0)},
    "imdb": {"hf_default": (">=", 2.5), "hf_best": (">=", 1.15)},
}  # fmt: skip
POOL = 50
BATCH, ARTICLE_BATCH, ARTICLE_LENGTH = 32, 16, 256
WARM = 3
JUDGED = 1000


def races(given: argparse.Namespace) -> list[common.Race]:
    unknown = set(given.data) - set(DATA)
    if unknown:
        raise SystemExit(f"--data {', '.join(unknown)}: choose from {', '.join(DATA)}")
    return [race(data, given) for data in given.data]


def race(data: str, given: argparse.Namespace) -> common.Race:
    """All contestants on one data set."""
    kind = "quick" if given.quick else "accurate" if given.accuracy else "rows"
    rows = given.rows or ROWS[data][kind]
    settings = {
        "keys": [*training.DATA[data], f"model={given.model}", f"debug.rows={rows}", "engine.duration=1ep"],
        "accuracy": given.accuracy,
        "seeds": list(range(1, common.options_of(given).pairs + 1)) if given.accuracy else [1],
    }
    settings |= common.prepared(given.threads, **settings)
    names = {name: {**settings, "contestant": name} for name in CONTESTANTS if name != "prepare"}
    names["whet"]["more"] = given.overrides
    columns = {"padding": ".1%", "steps": ".0f", "busy_cores": ".2f", "peak_mib": ".0f"}
    return common.Race(
        title=f"training {given.model} on {data}, {rows} examples",
        contestants=names,
        figure="tokens_per_second",
        reference="whet",
        unit="real tokens/s",
        reference_on_top=True,
        targets=TARGETS[data],
        columns=columns | ({"accuracy": ".4f"} if given.accuracy else {}),
    )


def child(settings: common.Figures) -> common.Figures:
    return CONTESTANTS[settings["contestant"]](settings)


def seed_of(settings: common.Figures) -> int:
    """With --accuracy each round has its own rows, order and head."""
    return int(settings["seeds"][settings["round"] % len(settings["seeds"])])


# ---------------------------------------------------------------- the same data for all


def prepare(settings: common.Figures) -> common.Figures:
    """Write the rows that whet trains on, tokenised, so that the others don't run any of whet."""
    for seed in settings["seeds"]:
        setup = training.set_up([*settings["keys"], f"seed={seed}"], settings["threads"])
        training.cut(setup.ready, "validation", JUDGED)
        for split in ("train", "validation"):
            tokens, examples = setup.ready.data.tokens[split], setup.ready.data.corpus.splits[split]
            np.savez(
                rows_file(settings["folder"], split, seed),
                ids=tokens.ids, types=tokens.types, offsets=tokens.offsets, labels=examples.labels,
            )  # fmt: skip
    loaded = setup.ready.loaded
    return {
        "folder": settings["folder"],
        "weights": str(loaded.located.folder),
        "labels": len(setup.ready.data.corpus.label_names),
        "inputs": list(loaded.tokenizer.model_input_names),
        "pad": int(loaded.tokenizer.pad_token_id),
        "recipe": recipe(setup),
    }


def rows_file(folder: str, split: str, seed: int) -> Path:
    return Path(folder) / f"{split}-{seed}.npz"


def recipe(setup: training.Setup) -> dict[str, Any]:
    """Whet's learning rate, schedule, decay and clipping in the Trainer's names."""
    optimizer, engine = setup.config["optimizer"], setup.config["engine"]
    warm = setup.parts.scheduler.keywords["warmup"]
    if warm.unit == "ep":
        raise SystemExit("write scheduler.warmup as a share or in steps")
    return {
        "learning_rate": optimizer["lr"],
        "weight_decay": optimizer["weight_decay"],
        "max_grad_norm": engine["clip"],
        "warmup_steps": warm.value,
    }


def items(settings: common.Figures, split: str) -> list[dict[str, Any]]:
    """Tokenised rows as the Trainer takes them, with the inputs that the model knows."""
    with np.load(rows_file(settings["folder"], split, seed_of(settings))) as found:
        ids, types, offsets, labels = (found[name] for name in ("ids", "types", "offsets", "labels"))
    rows = []
    for start, end, label in zip(offsets[:-1], offsets[1:], labels, strict=True):
        row = {"input_ids": ids[start:end].tolist(), "attention_mask": [1] * int(end - start)}
        if "token_type_ids" in settings["inputs"]:
            row["token_type_ids"] = types[start:end].tolist()
        rows.append({**row, "labels": int(label)})
    return rows


def pretrained(settings: common.Figures) -> nn.Module:
    """The weights in fp32 with a head of random numbers."""
    import torch
    from transformers import AutoModelForSequenceClassification, set_seed
    from transformers.utils import logging

    torch.set_num_threads(settings["threads"])
    logging.set_verbosity_error()
    set_seed(seed_of(settings))
    return AutoModelForSequenceClassification.from_pretrained(
        settings["weights"], num_labels=settings["labels"], dtype=torch.float32
    )


def device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# ---------------------------------------------------------------- whet


def whet(settings: common.Figures) -> common.Figures:
    keys = [*settings["keys"], f"seed={seed_of(settings)}", *settings["more"]]
    setup = training.set_up(keys, settings["threads"])
    trained = training.fit(setup, WARM, judged=JUDGED if settings["accuracy"] else 32)
    metrics = trained.clock.metrics if settings["accuracy"] else None
    return {**trained.figures(), **({"accuracy": metrics["accuracy"]} if metrics else {})}


# ---------------------------------------------------------------- Hugging Face


def hf_default(settings: common.Figures) -> common.Figures:
    return hugging_face(settings, {})


def hf_best(settings: common.Figures) -> common.Figures:
    best = {
        "bf16": True,
        "train_sampling_strategy": "group_by_length",
        "optim": "adamw_torch_fused",
        "logging_nan_inf_filter": False,
    }
    return hugging_face(settings, best)


def hugging_face(settings: common.Figures, arguments: dict[str, Any]) -> common.Figures:
    """One epoch of transformers.Trainer with `arguments`."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, TrainingArguments

    model, tokenizer = pretrained(settings), AutoTokenizer.from_pretrained(settings["weights"])
    cpu = device().type == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        told = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH,
            num_train_epochs=1, save_strategy="no", report_to="none", disable_tqdm=True,
            use_cpu=cpu, dataloader_pin_memory=not cpu, seed=seed_of(settings),
            **settings["recipe"], **arguments,
        )  # fmt: skip
        train = items(settings, "train")
        order = grouped(train, settings) if "train_sampling_strategy" in arguments else None
        steps = math.ceil(len(order or train) / BATCH)
        clock = Timed(Meter(model, settings["pad"]), WARM, steps)
        trainer = trainer_class(order)(
            model=model, args=told, train_dataset=train, processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer), callbacks=[trainer_callback(clock)],
        )  # fmt: skip
        trainer.train()
        figures = clock.figures()
        if settings["accuracy"]:
            found = trainer.predict(items(settings, "validation"))  # in the sampler's order, its labels too
            figures["accuracy"] = float((found.predictions.argmax(1) == found.label_ids).mean())
    return figures


def grouped(rows: list[dict[str, Any]], settings: common.Figures) -> list[int]:
    """The Trainer's order by length in pools of 50 batches.

    It puts the longest first. So that the untimed steps don't take them away, as many random ones go before
    (not where accuracy is compared: all see the same examples).
    """
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    torch.manual_seed(seed_of(settings))
    order = get_length_grouped_indices([len(row["input_ids"]) for row in rows], BATCH, mega_batch_mult=POOL)
    before = [] if settings["accuracy"] else torch.randperm(len(rows))[: WARM * BATCH].tolist()
    return [*before, *order]


def trainer_class(order: list[int] | None) -> Any:
    """The Trainer, taking its rows in `order` if it is given."""
    from transformers import Trainer

    class Ordered(Trainer):
        def _get_train_sampler(self, *arguments: Any) -> list[int]:
            return order or []

    return Trainer if order is None else Ordered


class Meter:
    """Counts the tokens of each batch, real and all, at the model's entrance."""

    def __init__(self, model: nn.Module, pad: int) -> None:
        self.pad = pad
        self.real: list[torch.Tensor] = []
        self.all: list[int] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, torch.Tensor]) -> None:
        ids = named["input_ids"]
        self.real.append((ids != self.pad).sum())  # read from the device at the end only
        self.all.append(ids.numel())

    def between(self, first: int, last: int) -> tuple[int, int]:
        """Real and all tokens of the batches from `first` up to `last`."""
        return sum(int(count) for count in self.real[first:last]), sum(self.all[first:last])


class Timed(training.Clock):
    """A clock whose tokens come from a meter."""

    def __init__(self, meter: Meter, warm: int, total: int) -> None:
        super().__init__(warm, total)
        self.meter, self.memory, self.first, self.last = meter, training.Memory(), 0, 0

    def step(self, number: int) -> None:
        """Update `number` (from 1) is done."""
        self.tick(number, 0)
        self.last = len(self.meter.real)
        self.first = self.last if number == self.warm else self.first

    def figures(self) -> common.Figures:
        self.tokens, everything = self.meter.between(self.first, self.last)
        padding = 1 - self.tokens / everything
        return {**super().figures(), "padding": padding, "peak_mib": self.memory.peak()}


def trainer_callback(clock: Timed) -> Any:
    from transformers import TrainerCallback

    class Ticking(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            clock.step(state.global_step)

    return Ticking()


# ---------------------------------------------------------------- the article


def article(settings: common.Figures) -> common.Figures:
    """The plain loop of the article: model, batch, loss, backward, step."""
    import torch

    model, train = pretrained(settings).to(device()), items(settings, "train")
    if not settings["accuracy"]:
        train = thinned(train, max(ARTICLE_BATCH * (WARM + 5), len(train) // 16))
    batches = article_batches(train, settings["pad"], seed_of(settings))
    clock = Timed(Meter(model, settings["pad"]), WARM, len(batches))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-5)
    model.train()
    for number, batch in enumerate(batches):
        optimizer.zero_grad()
        model(**{name: tensor.to(device()) for name, tensor in batch.items()}).loss.backward()
        optimizer.step()
        clock.step(number + 1)
    figures = clock.figures()
    if settings["accuracy"]:
        figures["accuracy"] = plain_accuracy(model, items(settings, "validation"), settings["pad"])
    return figures


def thinned(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` rows whose lengths are spread like those of all."""
    ranked = sorted(rows, key=lambda row: len(row["input_ids"]))
    places = (np.arange(min(count, len(rows))) + 0.5) * len(rows) / min(count, len(rows))
    return [ranked[int(place)] for place in places]


def article_batches(rows: list[dict[str, Any]], pad: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Shuffled batches of 16 rows, each padded to 256 tokens."""
    order = np.random.default_rng(seed).permutation(len(rows))
    parts = [order[start : start + ARTICLE_BATCH] for start in range(0, len(order), ARTICLE_BATCH)]
    return [padded([rows[place] for place in part], pad) for part in parts]


def padded(rows: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """A batch of 256 tokens a row."""
    import torch

    fill = {name: pad if name == "input_ids" else 0 for name in rows[0] if name != "labels"}
    batch = {
        name: torch.tensor([row[name] + [value] * (ARTICLE_LENGTH - len(row[name])) for row in rows])
        for name, value in fill.items()
    }
    return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def plain_accuracy(model: nn.Module, rows: list[dict[str, Any]], pad: int) -> float:
    import torch

    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(rows), ARTICLE_BATCH):
            batch = padded(rows[start : start + ARTICLE_BATCH], pad)
            logits = model(**{name: tensor.to(device()) for name, tensor in batch.items()}).logits
            right += int((logits.argmax(1).cpu() == batch["labels"]).sum())
    return right / len(rows)


CONTESTANTS: dict[str, Callable[[common.Figures], common.Figures]] = {
    "prepare": prepare,
    "whet": whet,
    "hf_default": hf_default,
    "hf_best": hf_best,
    "article": article,
}


def arguments() -> argparse.ArgumentParser:
    made = common.parser("train_throughput", __doc__ or "")
    made.add_argument(
        "--data",
        type=common.listed,
        default=DATA,
        metavar="A,B",
        help="sentences, imdb (default both)",
    )
    made.add_argument("--rows", type=int, help="examples instead of 1,600 sentences and 640 reviews")
    made.add_argument("--model", default="minilm", help="a name of conf/model (default minilm)")
    made.add_argument(
        "--accuracy",
        action="store_true",
        help="validation accuracy after 4,800 sentences and 1,600 reviews, another seed a round",
    )
    made.add_argument("overrides", nargs="*", help="of whet's config, for the contestant whet only")
    return made


if __name__ == "__main__":
    raise SystemExit(common.main(arguments(), races, child))
