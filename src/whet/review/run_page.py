"""The report of one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from whet.config import TARGET, Node
from whet.errors import ConfigError, WhetError, one_line
from whet.evaluation.plots import series
from whet.review import asked, verdicts
from whet.review.contrast import shown
from whet.review.curves import course
from whet.review.html import (
    Html,
    badge,
    charts,
    command,
    fold,
    joined,
    note,
    pairs,
    section,
    table,
    tag,
    tiles,
)  # fmt: skip
from whet.review.judged import SPLITS, Judged, judge, task_of
from whet.review.records import RunRecord
from whet.review.style import number
from whet.secrets import mask
from whet.task.base import Task
from whet.tracking.progress import clock

WAYS = {"maximize": "higher", "minimize": "lower"}


def run_page(record: RunRecord, texts: bool = True) -> tuple[Html, list[Html]]:
    """Heading and sections.

    Args:
        record: of the run.
        texts: read the data again to show the texts of the worst errors.
    """
    task, problem = _task(record)
    judged = {} if task is None else {name: judge(record, task, name, texts) for name in SPLITS}
    found = {name: each for name, each in judged.items() if each is not None}
    sections = [_course(record, task), _metrics(record, task)]
    sections += [_split(each) for each in found.values()]
    if problem:
        sections.append(section("Predictions", note(f"They can't be judged: {problem}")))
    return heading(record), [
        *(each for each in sections if each),
        _settings(record),
        _facts(record),
        _again(record),
    ]


def _task(record: RunRecord) -> tuple[Task | None, str]:
    """The run's task, or why there is none."""
    if "task" not in record.config:
        return None, "the run ended before it had a config"
    try:
        return task_of(record), ""
    except ConfigError as error:
        return None, one_line(error)


# ---------------------------------------------------------------- heading


def heading(record: RunRecord) -> Html:
    """Name, status and key figures."""
    told, best = record.record, record.record.get("best") or {}
    parts = [
        f"{group} {_part(record.config, group)}"
        for group in ("task", "model", "peft")
        if group in record.config
    ]
    title = tag("h1", record.name, " ", badge(record.status))
    about = tag("p", ", ".join([*parts, f"seed {told.get('seed')}"]), class_="sub")
    reason = tag("p", tag("b", "Reason: "), told["reason"], class_="sub bad") if told.get("reason") else None
    sizes, timings = told.get("trainable", {}), told.get("timings", {})
    metric = str(best.get("metric", "")).partition("/")[2]
    facts: list[tuple[str, object]] = [
        (f"best validation {metric}", _figure(best.get("value"))),
        (f"test {metric}", _figure(told.get("metrics", {}).get(f"test/{metric}"))),
        ("optimizer updates", _of(told.get("steps"), told.get("planned"))),
        ("best checkpoint", f"step {best['step']:,}" if "step" in best else None),
        (f"parameters trained{_share(sizes)}", sizes.get("trained_parameters")),
        ("time of training", clock(timings["train_s"]) if "train_s" in timings else None),
    ]
    return joined(title, about, reason, tiles(facts))


def _part(config: Node, group: str) -> str:
    node = config[group]
    return asked.name_of_part(config, group) if TARGET in node else "?"


def _figure(value: Any) -> str | None:
    return None if value is None else f"{float(value):.4f}"


def _of(done: int | None, planned: int | None) -> str | None:
    if done is None:
        return None
    return f"{done:,} of {planned:,}" if planned and planned != done else f"{done:,}"


def _share(sizes: Mapping[str, int]) -> str:
    """Of all parameters, for the figure's name."""
    return f" ({sizes['trained_parameters'] / sizes['parameters']:.2%})" if sizes.get("parameters") else ""


# ---------------------------------------------------------------- what came out


def _course(record: RunRecord, task: Task | None) -> Html:
    directions = {} if task is None else dict(task.directions())
    best = record.record.get("best") or {}
    made = course(record.metrics(), directions, best.get("step"))
    if not made:
        return section(
            "Course of training",
            note("No figures were logged (tracking.jsonl was off, or the run ended early)."),
        )
    stopped = f"Stopped early: {best['stopped']}. " if best.get("stopped") else ""
    intro = f"{stopped}A star marks the best value of a metric, the dotted line the checkpoint that was kept."
    return section("Course of training", charts(made), intro=intro)


def _metrics(record: RunRecord, task: Task | None) -> Html:
    """All figures of all splits."""
    found = record.record.get("metrics") or _last(record)
    if not found:
        return Html("")
    directions: Mapping[str, str] = {} if task is None else task.directions()
    splits = list(dict.fromkeys(name.partition("/")[0] for name in found))
    names = list(dict.fromkeys(name.partition("/")[2] for name in found))
    rows = [
        (name, *(found.get(f"{split}/{name}") for split in splits), WAYS.get(directions.get(name, ""), ""))
        for name in names
    ]
    return section("Metrics", table(("metric", *splits, "better is"), rows))


def _last(record: RunRecord) -> dict[str, float]:
    """What a run that isn't finished logged last of validation."""
    return {n: points[-1][1] for n, points in series(record.metrics()).items() if n.startswith("validation/")}


def _split(judged: Judged) -> Html:
    """Confusion, classes, calibration, worst errors of one split."""
    report = judged.report
    left_out = f" {report.unlabelled:,} more have no label." if report.unlabelled else ""
    figures = [
        verdicts.confusion(judged),
        verdicts.values(judged),
        verdicts.scores(judged),
        verdicts.calibration(judged),
    ]
    inner = joined(charts(figures), _classes(judged), _costly(judged))
    title = f"{report.split.capitalize()} split"
    intro = f"{report.n:,} rows, judged with the best checkpoint.{left_out}"
    return section(title, inner, intro=intro)


def _classes(judged: Judged) -> Html | None:
    classes = judged.report.classes
    if not classes:
        return None
    heads = ("class", "precision", "recall", "F1", "rows", "predicted")
    rows = [(c.name, c.precision, c.recall, c.f1, c.support, c.predicted) for c in classes]
    return joined(tag("h3", "Classes"), table(heads, rows))


def _costly(judged: Judged) -> Html:
    if not judged.costly:
        return note("No row was decided wrongly.")
    far = judged.report.kind == "regression"
    heads = ["text", "true", "predicted", "P(true)", "squared error" if far else "loss", "id"]
    rows = [[c.text, c.true, c.predicted, c.probability, c.loss, c.id] for c in judged.costly]
    empty = [place for place, head in enumerate(heads) if all(row[place] is None for row in rows)]
    kept = [place for place in range(len(heads)) if place not in empty]
    told = note(f"Texts aren't shown: {judged.untold}.") if judged.untold else None
    title = "Furthest off" if far else "Costliest errors"
    intro = (
        f"The {len(rows)} of largest loss; a wrong label in the data is often among them."
        if not far
        else None
    )
    shown = table([heads[p] for p in kept], [[row[p] for p in kept] for row in rows])
    return joined(tag("h3", title), note(intro) if intro else None, told, shown)


# ---------------------------------------------------------------- what was asked, and where it ran


def _settings(record: RunRecord) -> Html:
    """Differences from the defaults, then the whole config."""
    if not record.config:
        return section("Config", note("The run ended before it had one."))
    whole = OmegaConf.to_yaml(OmegaConf.create(mask(record.config)))
    folded = fold("the whole config", tag("pre", whole))
    try:
        found = asked.differences(record)
    except WhetError as error:
        told = [
            note(f"What was asked for ({one_line(error)}):"),
            tag("pre", "\n".join(asked.overrides(record))),
        ]
        return section("Config", *told, folded)
    rows = [(key, _value(value), _value(default)) for key, value, default in found]
    shown = table(("key", "this run", "default"), rows) if rows else note("All as by default.")
    return section("Config", shown, folded, intro="What differs from the defaults of this installation.")


def _value(value: Any) -> str:
    """A setting as text, which a table leaves at the left."""
    return shown(value)


def _facts(record: RunRecord) -> Html:
    """Time, memory, machine, versions, hashes."""
    told = record.record
    data = told.get("data", {})
    rows: list[tuple[str, object]] = [
        ("started", told.get("started")),
        ("ended", told.get("ended")),
        ("resumed", ", ".join(told.get("resumed", []))),
        *(
            (f"time, {name.removesuffix('_s')}", clock(value))
            for name, value in told.get("timings", {}).items()
        ),
        *(
            (f"memory, {name.removesuffix('_mb')}", f"{number(value)} MB")
            for name, value in _numbers(told.get("memory"))
        ),
        *((f"rows, {split}", number(count)) for split, count in data.get("rows", {}).items()),
        ("number format", told.get("precision")),
        *((f"machine, {name}", _value(value)) for name, value in told.get("hardware", {}).items()),
        ("git", _git(told.get("git"))),
        *((f"version, {name}", value) for name, value in told.get("versions", {}).items()),
        *((f"SHA-256, {name}", tag("code", value)) for name, value in _hashes(told.get("hashes", {}))),
        ("folder", str(record.folder)),
    ]
    return section("Time, memory, versions, hashes", fold("show", pairs(rows)))


def _numbers(node: Any) -> list[tuple[str, float]]:
    return [(n, v) for n, v in (node or {}).items() if isinstance(v, (int, float))]


def _git(state: Mapping[str, Any] | None) -> str:
    if not state:
        return "not in a repository"
    return f"{state['commit']} on {state['branch']}" + (
        ", with uncommitted changes" if state.get("dirty") else ""
    )


def _hashes(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in node.items():
        own = f"{prefix} {name}".strip()
        found += _hashes(value, own) if isinstance(value, Mapping) else [(own, str(value))]
    return found


def _again(record: RunRecord) -> Html:
    return section("Run it again", command(asked.command(record)))
