"""The report of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from whet.review.compare import Difference, paired
from whet.review.contrast import (
    SEED,
    Contrast,
    contrast,
    curves_of,
    forest,
    metrics_of,
    primary_of,
    shown,
    tasks_of,
)  # fmt: skip
from whet.review.curves import overlay
from whet.review.html import Html, badge, chart, charts, joined, note, section, table, tag, tiles
from whet.review.records import RunRecord
from whet.review.style import number
from whet.tracking.progress import clock


def comparison_page(records: Sequence[RunRecord]) -> tuple[Html, list[Html]]:
    """Heading and sections."""
    found = contrast(records)
    return heading(found), [_table(found), _differences(found), _curves(found), _folders(found)]


def heading(found: Contrast) -> Html:
    """What is compared."""
    records = found.records
    statuses = [record.status for record in records]
    seeds = {record.record.get(SEED) for record in records}
    told = [f"task {', '.join(sorted(tasks_of(records)))}"]
    told += [f"differing in {', '.join(found.keys)}"] if found.keys else ["of one config"]
    figures: list[tuple[str, object]] = [
        ("runs", f"{len(records)}"),
        ("finished", f"{statuses.count('finished')}"),
        ("groups", f"{len(set(found.groups))}"),
        ("seeds", f"{len(seeds)}"),
    ]
    return joined(
        tag("h1", f"{len(records)} runs compared"), tag("p", ", ".join(told), class_="sub"), tiles(figures)
    )


def _table(found: Contrast) -> Html:
    """A row a run: what differs, what came out."""
    metrics = metrics_of(found.records)
    heads = ["run", "status", *found.keys, *metrics, "parameters trained", "training, s"]
    rows = []
    for place, record in enumerate(found.records):
        told = record.record
        values = [_plain(found.values[key][place]) for key in found.keys]
        results = [told.get("metrics", {}).get(name) for name in metrics]
        costs = [told.get("trainable", {}).get("trained_parameters"), told.get("timings", {}).get("train_s")]
        rows.append([found.names[place], badge(record.status), *values, *results, *costs])
    several = (
        note("These runs have different tasks: their figures don't compare.")
        if len(tasks_of(found.records)) > 1
        else None
    )
    return section(
        "Runs", several, table(heads, rows), intro="What differs, and what came out. Click on a head to sort."
    )


def _plain(value: object) -> object:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else shown(value)


# ---------------------------------------------------------------- differences


def _differences(found: Contrast) -> Html:
    """Means by group; paired differences where groups share seeds."""
    title, groups = "Differences between groups", list(dict.fromkeys(found.groups))
    metric = primary_of(found.records)
    if len(tasks_of(found.records)) > 1 or metric is None:
        return section(
            title, note("Not shown: the runs have different tasks or metrics, or none is finished.")
        )
    if len(groups) < 2:
        return section(
            title, note("There is one group: the runs differ in nothing but the seed."), _means(found, metric)
        )
    parts = [part for split in ("validation", "test") for part in _paired(found, f"{split}/{metric}")]
    told = (
        "Runs of the same seed are paired, which takes out what the seed does. Intervals are 95 %, by "
        f"Student's t; the baseline is the group of the first run: {groups[0]}. "
        "Without shared seeds nothing is paired."
    )
    return section(title, *parts, _means(found, metric), intro=told)


def _paired(found: Contrast, metric: str) -> list[Html]:
    """Figure and table of one metric; nothing where no group shares a seed with the baseline."""
    values, baseline = found.by_seed(metric), found.groups[0]
    if baseline not in values:
        return []
    shared = {g: own for g, own in values.items() if g == baseline or own.keys() & values[baseline].keys()}
    if len(shared) < 2:
        return []
    differences = paired(shared, baseline)
    heads = (f"{metric}, group", "pairs", "mean difference", "95 % from", "to", "")
    rows = [(d.group, d.n, d.mean, d.low, d.high, _verdict(d)) for d in differences]
    return [chart(forest(differences, baseline, metric)), table(heads, rows)]


def _verdict(each: Difference) -> str:
    """Whether the interval tells more than chance."""
    if each.n < 2:
        return "one pair: no interval"
    return "differs" if each.low > 0 or each.high < 0 else "could be chance"


def _means(found: Contrast, metric: str) -> Html:
    """Mean and standard deviation over seeds."""
    rows = []
    for split in ("validation", "test"):
        for group, own in found.by_seed(f"{split}/{metric}").items():
            values = list(own.values())
            rows.append(
                (group, f"{split}/{metric}", len(values), sum(values) / len(values), _deviation(values))
            )
    return (
        joined(tag("h3", "Means over seeds"), table(("group", "metric", "seeds", "mean", "± (ddof 1)"), rows))
        if rows
        else Html("")
    )


def _deviation(values: Sequence[float]) -> float | None:
    import statistics

    return statistics.stdev(values) if len(values) > 1 else None


# ---------------------------------------------------------------- curves, folders


def _curves(found: Contrast) -> Html:
    """Learning curves laid over each other, a colour a group."""
    groups = dict(zip(found.names, found.groups, strict=True))
    metric = primary_of(found.records)
    wanted = {"train/loss": ("Loss in training", "loss"), "validation/loss": ("Loss on validation", "loss")}
    if metric not in (None, "loss"):
        wanted[f"validation/{metric}"] = (f"Validation {metric}", str(metric))
    made = [
        overlay(curves, groups, title, unit)
        for name, (title, unit) in wanted.items()
        if (curves := curves_of(found, name))
    ]
    if not made:
        return section("Learning curves", note("No figures were logged."))
    return section("Learning curves", charts(made))


def _folders(found: Contrast) -> Html:
    rows = [
        (
            name,
            clock(r.record.get("timings", {}).get("total_s")),
            number(r.record.get("steps") or 0),
            r.record.get("reason"),
            str(r.folder),
        )
        for name, r in zip(found.names, found.records, strict=True)
    ]
    return section("Folders", table(("run", "time", "updates", "reason", "folder"), rows))
