"""What does each method bring? Paired seeds against plain full fine-tuning, at the same budget, on real data.

Every method of `METHODS` is trained with paired seeds in four regimes: all data; 64 labelled rows a
class (judged once, at the end: who has no labels for training has none for choosing); 1,000 rows a class, 5 %
of their labels wrong; and the runs on all data attacked at test time (typing errors, swapped synonyms: test
sets made once, beside this file). The budget is a number of updates, so copies of texts get no more of them.
The runs are trials of whet sweeps, so the command goes on where it was stopped, and any number of terminals
or machines may work on them:

    python benchmarks/methods.py run                              all of it, in the background for a night
    python benchmarks/methods.py run regime=few                   one regime
    python benchmarks/methods.py run regime=few method=fgm,rdrop  some methods (plain always comes along)
    python benchmarks/methods.py run seeds=10                     the seeds 1 to 10, not five that fit
    python benchmarks/methods.py run seeds=11-20                  fresh ones: does a difference stay?
    python benchmarks/methods.py run jobs=2                       two at a time, each with its share of cores
    python benchmarks/methods.py report                           JSON, docs/methods.md from what is there
    python benchmarks/methods.py attack                           make the attacked test sets again

A run's own learning rate is its method's usual one, in `METHODS`; those of `bitfit` and `bottleneck` were
found by `sweep=peft_method` on the validation split. Nothing is tuned on the test split. A run is compared
with a plain one on the same kind of machine only: `engine.precision=auto` is bf16 on some and fp32 on others.
So seeds with which plain ran elsewhere don't fit; without `seeds=` the first that do are taken.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import signal
import statistics
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ATTACKED = HERE / "methods"
OUT = Path("outputs/methods")
RESULTS = HERE / "results" / "methods.json"
PAGE = HERE.parent / "docs" / "methods.md"
BASELINE = "plain"
SEEDS = 5
"""The first ones that fit this machine (see `fits`), where none are asked for."""
TASKS: dict[str, list[str]] = {
    "rotten_tomatoes": ["task=rotten_tomatoes"],
    "reuters_r8": ["task=reuters_r8", "task.max_length=64"],
}
DRAWN = "task.draw=${seed}"
"""Each seed has few rows and wrong labels of its own, the same for all methods."""
REGIMES: dict[str, list[str]] = {
    "few": [
        "task.shots=64", DRAWN, "engine.batching.size=16",
        "engine.duration=120st", "engine.evaluate_every=120st",
    ],
    "full": ["engine.duration=428st", "engine.evaluate_every=107st"],
    "noisy": [
        "task.shots=1000", "task.label_noise=0.05", DRAWN,
        "engine.duration=189st", "engine.evaluate_every=63st",
    ],
}  # fmt: skip
SCARCE: dict[tuple[str, str], list[str]] = {
    ("reuters_r8", "few"): ["task.shots=32"],
    ("reuters_r8", "noisy"): ["task.shots=null"],
}
"""Where a task has fewer rows of a class than its regime asks for."""
TOLD = {
    "rotten_tomatoes few": "64 labelled rows a class, 120 updates of 16 texts, judged once at the end",
    "rotten_tomatoes full": "all rows, 428 updates of 32 texts (2 epochs)",
    "rotten_tomatoes noisy": "1,000 rows a class, 5 % of the labels wrong, 189 updates of 32 texts",
    "reuters_r8 few": "32 labelled rows of each of 8 topics, 120 updates of 16 texts, judged once at the end",
    "reuters_r8 full": "all rows, 428 updates of 32 texts",
    "reuters_r8 noisy": "all rows, 5 % of the labels wrong, 189 updates of 32 texts",
}
"""Tasks and regimes in words."""
FRESH = {"rotten_tomatoes few": {"fgm": 11}}
"""Methods whose seeds from this one on were settled on before they ran, because those before looked good."""
APART = True
"""Each run has a process of its own, and so a peak of memory of its own."""
PEFT_LR = "optimizer.lr=1e-3"
METHODS: dict[str, list[str]] = {
    BASELINE: [],
    # what trains
    "linear_probe": ["peft=linear_probe", "optimizer.lr=1e-2"],
    "top_layers": ["peft=top_layers", "optimizer.lr=1e-4"],
    "gradual_unfreezing": ["peft=gradual_unfreezing"],
    "bitfit": ["peft=bitfit", "optimizer.lr=4e-3"],
    "layer_norm": ["peft=layer_norm", PEFT_LR],
    "lora": ["peft=lora", "optimizer.lr=5e-4"],
    "rslora": ["peft=rslora", "optimizer.lr=5e-4"],
    "dora": ["peft=dora", "optimizer.lr=5e-4"],
    "ia3": ["peft=ia3", "optimizer.lr=5e-3"],
    "vera": ["peft=vera", "optimizer.lr=5e-3"],
    "prefix": ["peft=prefix", "optimizer.lr=5e-3"],
    "prompt": ["peft=prompt", "optimizer.lr=1e-2"],
    "bottleneck": ["peft=bottleneck", "peft.placement=parallel", "peft.reduction=4", "optimizer.lr=2e-3"],
    "compacter": ["peft=compacter", PEFT_LR],
    "adalora": ["peft=adalora", "optimizer.lr=1e-3"],
    "p_tuning": ["peft=p_tuning", "optimizer.lr=1e-2"],
    "mam": ["peft=mam", PEFT_LR],
    "unipelt": ["peft=unipelt", PEFT_LR],
    # the loss
    "label_smoothing": ["objective=label_smoothing"],
    "focal": ["objective=focal"],
    "rdrop": ["objective=rdrop"],
    "fgm": ["objective=fgm"],
    "fgsm": ["objective=fgsm"],
    "pgd": ["objective=pgd"],
    "free": ["objective=free"],
    "freelb": ["objective=freelb"],
    "smart": ["objective=smart"],
    "vat": ["objective=vat"],
    "awp": ["objective=awp"],
    "sam": ["objective=sam"],
    "noise": ["objective=noise"],
    "supcon": ["objective=supcon"],
    # the texts
    "synonym": ["augmentation=synonym"],
    "eda": ["augmentation=eda"],
    "aeda": ["augmentation=aeda"],
    "char_noise": ["augmentation=char_noise"],
    "regenerate": ["augmentation=regenerate"],
    "mixup": ["augmentation=mixup"],
    "cutoff": ["augmentation=cutoff"],
    # the weights
    "ema": ["averaging=ema"],
    "swa": ["averaging=swa"],
    # the head
    "mean_head": ["model.head=mean"],
    "setfit": ["model.head=mean", "objective=setfit"],
}
POOL = "+augmentation@objective.augmentation=eda"
WITH_POOL = {
    "pseudo_label": ["objective=pseudo_label"],
    "mean_teacher": ["objective=mean_teacher"],
    "uda": ["objective=uda", POOL],
    "fixmatch": ["objective=fixmatch", POOL],
}
"""They learn from the rows that few labels leave over, and so only there."""
METHODS |= WITH_POOL
PRIMARY = {"rotten_tomatoes": "accuracy", "reuters_r8": "accuracy"}


# ---------------------------------------------------------------- runs


def overrides(task: str, regime: str, method: str, seed: int) -> list[str]:
    """Of one run."""
    return [
        *TASKS[task], *REGIMES[regime], *SCARCE.get((task, regime), []), *METHODS[method],
        f"seed={seed}", "tracking=local",
        "engine.patience=null", "engine.pictures=false",
        f"name={name_of(task, regime, method, seed)}", f"paths.output={OUT}",
    ]  # fmt: skip


def name_of(task: str, regime: str, method: str, seed: int) -> str:
    return f"{task}-{regime}-{method}-s{seed}"


def kept(task: str, regime: str, method: str, seed: int) -> Path:
    """Where a run's figures stay when its weights are gone."""
    return OUT / "figures" / f"{name_of(task, regime, method, seed)}.json"


def train(task: str, regime: str, method: str, seed: int) -> dict[str, Any]:
    """One run, or what it came to when it was made; its weights don't stay.

    Raises:
        RuntimeError: it failed.
        KeyboardInterrupt: it was stopped by a signal; the same command goes on with it.
    """
    from whet.cli.main import main
    from whet.storage import aside

    path = kept(task, regime, method, seed)
    done: dict[str, Any] | None = gathered().get(f"{task} {regime}", {}).get(method, {}).get(seed)
    if done is not None:
        return done
    told = overrides(task, regime, method, seed)
    folder = OUT / "runs" / name_of(task, regime, method, seed)
    resumed = folder.is_dir()
    with hydra_aside():
        code = main(["train", f"resume={folder}"]) if resumed else main(["train", *told])
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise KeyboardInterrupt
    if code:
        raise RuntimeError(f"{folder}: exit code {code}")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    found = {
        "test": record["metrics"][f"test/{PRIMARY[task]}"],
        "seconds": record["timings"]["train_s"],
        "peak_mb": record["memory"]["peak_mb"],
        "trained_parameters": record["trainable"]["trained_parameters"],
        "whole": not resumed,
        "machine": f"{record['hardware']['cpu']}, {record['precision']}",
    }
    if regime == "full" and task == "rotten_tomatoes":
        found |= {f"attacked_{kind}": judged(folder, path) for kind, path in attacked().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as beside:
        beside.write_text(json.dumps(found), encoding="utf-8")
    for part in ("model", "checkpoints"):
        shutil.rmtree(folder / part, ignore_errors=True)
    return found


@contextlib.contextmanager
def hydra_aside() -> Iterator[None]:
    """Let another Hydra app run inside this one, not as its trial."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from whet.sweep.current import working_on

    one, other = GlobalHydra.instance(), HydraConfig.instance()
    kept = one.hydra, other.cfg
    one.clear()
    try:
        with working_on(None):
            yield
    finally:
        one.hydra, other.cfg = kept


def judged(run: Path, rows: Path) -> float:
    """Accuracy of a run on a file."""
    from whet.engine.load import open_run, rows_of
    from whet.paths import Paths

    paths = Paths(output=str(OUT))
    finished = open_run(run, paths)
    judge = finished.judge(rows_of(finished, str(rows), paths))
    return float(judge.metrics(judge.predict(finished.trained.model))["accuracy"])


def run(
    regimes: Sequence[str],
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: Mapping[str, Sequence[int]],
    jobs: int = 1,
) -> None:
    """Sweep over what is asked for: one study a task and regime, every method with every of its seeds."""
    import hydra
    from omegaconf import OmegaConf

    for task in tasks:
        for regime in regimes:
            fit = [name for name in methods if regime == "few" or name not in WITH_POOL]
            chosen = ",".join(dict.fromkeys([BASELINE, *fit]))
            drawn = ",".join(map(str, seeds[f"{task} {regime}"]))
            study = f"{task}-{regime}-{zlib.crc32(f'{chosen} {drawn}'.encode()):08x}"
            arguments = [
                "-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid",
                "hydra.sweeper.direction=maximize",
                f"hydra.sweeper.study_name={study}", f"hydra.sweep.dir={OUT}/study/{task}-{regime}",
                f"hydra.sweeper.n_jobs={jobs}", f"hydra.sweeper.isolate={APART}",
                f"+seed=choice({drawn})", f"+method=choice({chosen})",
                f"+task={task}", f"+regime={regime}", "hydra.sweep.subdir=.",
            ]  # fmt: skip
            sys.argv = [sys.argv[0], *arguments]

            def trial(config: Any) -> float:
                told = OmegaConf.to_container(config)
                return float(train(**{str(key): value for key, value in told.items()})["test"])

            # any folder will do; without one Hydra looks for a package around this file
            hydra.main(version_base="1.3", config_path=str(ATTACKED))(trial)()


def machine() -> str:
    """This kind of machine, as `train` records it."""
    from whet.engine.precision import Amp, pick_device
    from whet.engine.run import hardware

    precision = Amp.of("auto", pick_device("auto")).name  # imports torch, which `hardware` then asks
    return f"{hardware()['cpu']}, {precision}"


def fits(place: str, seeds: Sequence[int] | None) -> list[int]:
    """Seeds of a task and regime with which plain ran on this kind of machine, or not yet.

    Args:
        place: task and regime.
        seeds: that were asked for; None: the first SEEDS that fit.

    Raises:
        ValueError: one that was asked for doesn't fit.
    """
    base, here = gathered().get(place, {}).get(BASELINE, {}), machine()
    good = (seed for seed in itertools.count(1) if seed not in base or base[seed].get("machine") == here)
    if seeds is None:
        return list(itertools.islice(good, SEEDS))
    if wrong := [seed for seed in seeds if seed in base and base[seed].get("machine") != here]:
        free = max(base) + 1
        there = base[wrong[0]].get("machine", "a machine unknown")
        raise ValueError(
            f"seeds={wrong[0]}: {place}: plain ran with it on {there}, this is {here}: "
            f"leave seeds out, or take fresh ones, like {free}-{free + SEEDS - 1}"
        )
    return list(seeds)


# ---------------------------------------------------------------- attacked test sets


def attacked() -> dict[str, Path]:
    """The files, by kind of attack."""
    return {kind: ATTACKED / f"rotten_tomatoes-{kind}.csv" for kind in ("char", "synonym")}


def attack() -> None:
    """Make the test sets: one word in five misspelt, or exchanged for a synonym, by a fixed seed."""
    import csv

    from whet.config import build, compose
    from whet.engine.train import Parts

    for kind, choice in (("char", "char_noise"), ("synonym", "synonym")):
        config = compose("train", [f"augmentation={choice}", "augmentation.rate=0.2"])
        parts = build(config, Parts)()
        corpus = parts.task.load(parts.paths)
        rows = corpus.splits["test"]
        texts = changed(parts, rows.texts, 20)
        with attacked()[kind].open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            names = corpus.label_names
            writer.writerows(
                [text, names[int(label)]] for text, label in zip(texts, rows.labels, strict=True)
            )


def changed(parts: Any, texts: Sequence[tuple[str, ...]], seed: int) -> list[str]:
    """Each text, changed once."""
    from whet.augmentation.base import Item, Surroundings

    change = parts.augmentation.changer(Surroundings(parts.paths))
    return [text for (text,) in change([Item(each, None, (seed, row)) for row, each in enumerate(texts)])]


# ---------------------------------------------------------------- report


def published() -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """The figures that are checked in: other machines' and sessions' runs count, too."""
    told = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    return {
        place: {name: {int(seed): each for seed, each in runs.items()} for name, runs in methods.items()}
        for place, methods in told.items()
    }


def gathered() -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """Figures by `task regime`, method and seed."""
    found = published()
    for task in TASKS:
        for regime in REGIMES:
            for method in METHODS:
                for path in sorted((OUT / "figures").glob(f"{task}-{regime}-{method}-s*.json")):
                    place = found.setdefault(f"{task} {regime}", {}).setdefault(method, {})
                    seed = int(path.stem.rpartition("-s")[2])
                    place[seed] = json.loads(path.read_text(encoding="utf-8"))
    return found


def report() -> None:
    """JSON of all figures and a page of tables."""
    found = gathered()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1), encoding="utf-8")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(found), encoding="utf-8")
    print(f"{PAGE}\n{RESULTS}")


def page(found: dict[str, Any]) -> str:
    """docs/methods.md."""
    lines = [
        "# Methods compared", "",
        "MiniLM, paired seeds: mean test accuracy of a method's own seeds, mean difference to plain full",
        "fine-tuning in points with its 95 % interval (Student's t over the seeds' differences). An",
        "interval that holds 0 says that these runs show no difference; one method in twenty that does",
        "nothing has one that doesn't hold it. Differences are over the seeds that a method and plain both",
        "have on the same kind of machine and in the same number format. Where rows are few or labels",
        "wrong, each seed has its own, the same for all methods. Time of training and peak memory: medians",
        "relative to plain.",
        "Made by `python benchmarks/methods.py report` from `benchmarks/results/methods.json`.",
        "",
    ]  # fmt: skip
    for place, methods in found.items():
        lines += table(f"{place.replace(' ', ', ')}: {TOLD[place]}", methods, "test", FRESH.get(place, {}))
        for kind in ("char", "synonym"):
            if any(f"attacked_{kind}" in one for runs in methods.values() for one in runs.values()):
                lines += table(f"{place.replace(' ', ', ')}, attacked: {kind}", methods, f"attacked_{kind}")
    return "\n".join(lines)


def table(
    title: str, methods: dict[str, Any], figure: str, fresh: Mapping[str, int] | None = None
) -> list[str]:
    """One table, the best difference first, and what it says in words."""
    from whet.review.compare import paired

    base = methods[BASELINE]
    methods = {name: comparable(runs, base) for name, runs in methods.items()}
    values = {name: {seed: 100 * one[figure] for seed, one in runs.items()} for name, runs in methods.items()}
    told = sorted((each for each in paired(values, BASELINE) if each.n), key=lambda each: -each.mean)
    lines = [f"## {title}", ""]
    lines += [
        "| method | seeds | accuracy | difference | 95 % interval | trained parameters | time | memory |",
        "|---|--:|--:|--:|---|--:|--:|--:|",
    ]
    shown = [(BASELINE, len(base), "", "")]
    shown += [(e.group, e.n, f"{e.mean:+.2f}", f"{e.low:+.2f} to {e.high:+.2f}") for e in told]
    for name, seeds, difference, interval in shown:
        runs, mean = methods[name], statistics.fmean(values[name].values())
        lines.append(
            f"| `{name}` | {seeds} | {mean:.2f} % | {difference} | {interval} "
            f"| {share(runs, base, 'trained_parameters', '.2%')} | {share(runs, base, 'seconds', '.2f')} "
            f"| {share(runs, base, 'peak_mb', '.2f')} |"
        )
    again = [
        f"`{each.group}`, the {each.n} seeds from {start} on alone, settled on before they ran: "
        f"{each.mean:+.2f} ({each.low:+.2f} to {each.high:+.2f}).  "
        for name, start in (fresh or {}).items()
        for each in paired({BASELINE: values[BASELINE], name: after(values[name], start)}, BASELINE)
    ]
    return [*lines, "", *words(told), *again, ""]


def after(values: dict[int, float], start: int) -> dict[int, float]:
    """Those of the seeds from `start` on."""
    return {seed: value for seed, value in values.items() if seed >= start}


def comparable(runs: dict[int, Any], base: dict[int, Any]) -> dict[int, Any]:
    """Those on the machine of plain's run of the same seed (of earlier ones it isn't known: one kind)."""
    return {
        seed: one
        for seed, one in runs.items()
        if seed in base and one.get("machine") == base[seed].get("machine")
    }


def share(runs: dict[Any, Any], base: dict[Any, Any], figure: str, form: str) -> str:
    """Median over seeds of a figure relative to plain's; a dash where it wasn't measured."""
    both = [seed for seed in runs if runs[seed]["whole"] and base[seed]["whole"]]
    ratios = [runs[s][figure] / base[s][figure] for s in both if figure in runs[s] and figure in base[s]]
    return format(statistics.median(ratios), form) if ratios else "–"


def words(told: Iterable[Any]) -> list[str]:
    """What helped, what did nothing that shows, what hurt."""
    kinds: dict[str, Callable[[Any], bool]] = {
        "Helped": lambda each: each.low > 0,
        "No difference shown": lambda each: each.low <= 0 <= each.high,
        "Hurt": lambda each: each.high < 0,
    }
    told = list(told)
    named = {kind: [f"`{each.group}`" for each in told if holds(each)] for kind, holds in kinds.items()}
    return [f"{kind}: {', '.join(names) or 'none'}.  " for kind, names in named.items()]


def settings(words: Sequence[str]) -> dict[str, Any]:
    """Lists and numbers that were asked for on the command line.

    Raises:
        ValueError: with one line for the user.
    """
    given = dict(item.partition("=")[::2] for item in words)
    lists = {"regime": list(REGIMES), "task": list(TASKS), "method": list(METHODS)}
    known = [*lists, "jobs", "seeds"]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{unknown[0]}: not a setting ({', '.join(known)})")
    told: dict[str, Any] = {}
    for key, names in lists.items():
        told[f"{key}s"] = given[key].split(",") if key in given else names
        if wrong := [name for name in told[f"{key}s"] if name not in names]:
            raise ValueError(f"{key}={wrong[0]}: not one of {', '.join(names)}")
    jobs, seeds = given.get("jobs", "1"), given.get("seeds")
    if not jobs.isdecimal() or not int(jobs):
        raise ValueError(f"jobs={jobs}: not a number from 1 on")
    if seeds is None:
        return {**told, "jobs": int(jobs), "seeds": None}
    ends = seeds.split("-") if "-" in seeds else ["1", seeds]
    if len(ends) != 2 or not all(end.isdecimal() for end in ends) or not 1 <= int(ends[0]) <= int(ends[1]):
        raise ValueError(f"seeds={seeds}: neither a number from 1 on nor two of them, like 11-20")
    return {**told, "jobs": int(jobs), "seeds": range(int(ends[0]), int(ends[1]) + 1)}


def main(arguments: Sequence[str]) -> int:
    """Exit code."""
    if not arguments or arguments[0] not in ("run", "report", "attack"):
        print((__doc__ or "").strip())
        return 0 if not arguments or arguments[0] in ("-h", "--help") else 2
    try:
        told = settings(arguments[1:])
        if arguments[0] == "run":
            seeds = told.pop("seeds")
            places = [f"{task} {regime}" for task in told["tasks"] for regime in told["regimes"]]
            told["seeds"] = {place: fits(place, seeds) for place in places}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments[0] == "run":
        run(**told)
    else:
        {"report": report, "attack": attack}[arguments[0]]()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
