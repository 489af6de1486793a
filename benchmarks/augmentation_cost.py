"""What each augmentation costs: texts a second, and its share beside an epoch of training.

Every method that needs no model of its own makes one copy of each training row, of English sentences (Rotten
Tomatoes) and of Chinese headlines (THUCNews). Loading lexicons and jieba isn't counted but shown. `share` is
the time for an epoch's copies over the time in which whet's own loop trains an epoch on rows and copies,
measured in the same process; `times_loop`, how many texts are copied in the time in which one is trained on
(aim: 20). One thread copies, in a new process each time: hardly a word was looked up before.

    make bench ARGS="augmentation_cost"
    python benchmarks/augmentation_cost.py --only eda,synonym --pairs 7
    python benchmarks/augmentation_cost.py --rows 4096 augmentation.rate=0.3   # overrides go to every method
"""

from __future__ import annotations

import argparse
from typing import Any

import common
import training

METHODS = ("aeda", "char_noise", "eda", "synonym", "compose")
WARM = ("good", "好")
"""One word of each language, so often that every operation has opened its lexicon."""
DATA = {"English": "task=rotten_tomatoes", "Chinese": "task=thucnews"}


def races(given: argparse.Namespace) -> list[common.Race]:
    rows = given.rows or (160 if given.quick else 1024)
    keys = [f"model={given.model}", f"debug.rows={rows}", "engine.duration=1ep"]
    return [
        common.Race(
            title=f"copies of {rows} {language} texts, beside an epoch of {given.model}",
            contestants={
                name: {"keys": [data, *keys], "augmentation": [f"augmentation={name}", *given.overrides]}
                for name in METHODS
            },
            figure="texts_per_second",
            unit="1/s",
            columns={"loading_seconds": ".2f", "times_loop": ".0f", "share": ".2%", "changed": ".1%"},
        )
        for language, data in DATA.items()
    ]


def child(settings: common.Figures) -> common.Figures:
    setup = training.set_up(settings["keys"], settings["threads"])
    data = setup.ready.data.corpus
    trained = training.fit(setup, warm=2).figures()
    epoch = trained["seconds_per_step"] * training.updates(setup)
    made = copies(settings, data)
    return {**made, "share": made["seconds"] / (2 * epoch), "times_loop": epoch / made["seconds"]}


def copies(settings: common.Figures, corpus: Any) -> common.Figures:
    """Time the copies of an epoch."""
    from whet.augmentation.base import CHUNK, Item, Surroundings, copies_of
    from whet.config import build, compose
    from whet.engine.train import Parts

    parts = build(compose("train", [*settings["keys"], *settings["augmentation"]]), Parts)()
    items = copies_of(corpus.splits["train"], 1, (parts.seed, settings["round"]))
    started = training.now()
    change = parts.augmentation.open(Surroundings(parts.paths, corpus.label_names))
    change([Item((word,), items[0].label, (number,)) for word in WARM for number in range(40)])
    loaded = training.now()
    made = [text for start in range(0, len(items), CHUNK) for text in change(items[start : start + CHUNK])]
    seconds = training.now() - loaded
    changed = sum(text != item.texts for text, item in zip(made, items, strict=True))
    return {
        "texts_per_second": len(items) / seconds,
        "seconds": seconds,
        "loading_seconds": loaded - started,
        "changed": changed / len(items),
    }


if __name__ == "__main__":
    made = training.parser("augmentation_cost", __doc__ or "", data=False)
    raise SystemExit(common.main(made, races, child))
