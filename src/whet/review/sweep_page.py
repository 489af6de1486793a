"""The report of a sweep."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from whet.review import asked, search
from whet.review.html import (
    Html,
    badge,
    chart,
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
)
from whet.review.records import RUN, RunRecord, SweepRecord
from whet.review.style import number
from whet.review.trials import (
    LEAST,
    Objective,
    complete,
    front,
    importances,
    kind_of,
    objectives_of,
    parameters,
)  # fmt: skip
from whet.sweep.results import saved_by_pruning, state_of, value_of
from whet.sweep.space import as_text, overrides_of
from whet.tracking.progress import clock

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    Trials = Sequence[FrozenTrial]

SLICES = 12
"""Parameters shown one by one at most, the most important ones."""
COMMANDS = 3
"""Shown at once."""
COLUMN = 110
"""Pixels that an axis of parallel coordinates needs."""


def sweep_page(sweep: SweepRecord) -> tuple[Html, list[Html]]:
    """Heading and sections.

    Raises:
        RunError: its study isn't there any more.
    """
    trials, objectives = sweep.study().get_trials(deepcopy=False), objectives_of(sweep)
    best = front(trials, objectives) if len(objectives) > 1 else _winner(trials, objectives[0])
    sections = [_best(sweep, best, objectives)]
    sections += [_pareto(trials, objectives, best)] if len(objectives) > 1 else []
    for objective in objectives:
        sections += _objective(trials, objective, f": {objective.name}" if len(objectives) > 1 else "")
    sections += [_states(trials), _work(trials), _trials(trials, objectives), _facts(sweep)]
    return heading(sweep, trials, objectives, best), sections


def _winner(trials: Trials, objective: Objective) -> list[FrozenTrial]:
    """The best complete trial, the first of equal ones; none before one is complete."""
    sign = -1 if objective.maximize else 1
    return sorted(complete(trials), key=lambda trial: sign * trial.values[0])[:1]


def heading(sweep: SweepRecord, trials: Trials, objectives: Sequence[Objective], best: Trials) -> Html:
    """Name, status and key figures."""
    facts = sweep.facts
    title = tag("h1", f"Sweep {sweep.name} ", badge(str(facts.get("status"))))
    told = [f"sampler {facts.get('sampler')}", f"pruner {facts.get('pruner')}"]
    aims = " and ".join(f"{'maximise' if o.maximize else 'minimise'} {o.name}" for o in objectives)
    made, planned = saved_by_pruning(trials)
    done = sum(trial.state.is_finished() for trial in trials)
    single = len(objectives) == 1 and best
    figures: list[tuple[str, object]] = [
        (f"best {objectives[0].name}", value_of(best[0]) if single else None),
        ("best trial", f"{best[0].number}" if single else None),
        ("on the Pareto front", f"{len(best)}" if len(objectives) > 1 else None),
        ("trials ended", f"{done} of {len(trials)}" if done < len(trials) else f"{done}"),
        ("updates saved by pruning", f"{1 - made / planned:.0%}" if planned > made else None),
        ("time of all trials", clock(_seconds(trials)) if done else None),
    ]
    return joined(title, tag("p", ", ".join([aims, *told]), class_="sub"), tiles(figures))


def _seconds(trials: Trials) -> float:
    return sum(float(trial.user_attrs.get("seconds", 0)) for trial in trials)


# ---------------------------------------------------------------- best


def _best(sweep: SweepRecord, best: Trials, objectives: Sequence[Objective]) -> Html:
    """The best config as a command; of a long front the rest unfolds."""
    title = "Best config" if len(objectives) == 1 else "Best configs"
    if not best:
        return section(title, note("No trial is complete."))
    parts = [_as_command(sweep, trial, alone=len(objectives) == 1) for trial in best]
    rest = fold(f"{len(parts) - COMMANDS} more", *parts[COMMANDS:]) if len(parts) > COMMANDS else None
    told = "A trial's command gives the same run again, to the bit; it tests the model, too."
    return section(title, *parts[:COMMANDS], rest, intro=told)


def _as_command(sweep: SweepRecord, trial: FrozenTrial, alone: bool) -> Html:
    record = run_of(sweep, trial)
    head = None if alone else tag("h3", f"Trial {trial.number}: {value_of(trial)}")
    more = note("More about its run: ", tag("code", f"whet report {record.folder}")) if record else None
    return joined(head, command(best_command(sweep, trial)), more)


def best_command(sweep: SweepRecord, trial: FrozenTrial) -> str:
    """A line for a shell that runs a trial's config (with the first seed, if the trial repeats it)."""
    record = run_of(sweep, trial)
    if record is not None:
        return asked.command(record)
    return shlex.join(["whet", "train", *sweep.facts.get("fixed", []), *overrides_of(trial.params)])


def run_of(sweep: SweepRecord, trial: FrozenTrial) -> RunRecord | None:
    """The trial's run, or the first of its repeats; of a reused result the run that made it."""
    number = trial.user_attrs.get("reused_from", trial.number)
    place = sweep.folder / f"{number:04d}"
    found = [path.parent for path in (place / RUN, *sorted(place.glob(f"*/{RUN}"))) if path.is_file()]
    return RunRecord(found[0]) if found else None


def _pareto(trials: Trials, objectives: Sequence[Objective], best: Trials) -> Html:
    """Each pair of objectives, and the front as a table."""
    if not best:
        return section("Pareto front", note("No trial is complete."))
    figures = [
        search.pareto(trials, one, other, best) for one, other in itertools.combinations(objectives, 2)
    ]
    names = list(parameters(best))
    rows = [
        (t.number, *(t.values[o.place] for o in objectives), *(_param(t, name) for name in names))
        for t in sorted(best, key=lambda trial: trial.values[0])
    ]
    told = "Trials that no other one betters in one objective without being worse in another."
    heads = ("trial", *(o.name for o in objectives), *names)
    return section("Pareto front", charts(figures), table(heads, rows), intro=told)


# ---------------------------------------------------------------- one objective


def _objective(trials: Trials, objective: Objective, suffix: str) -> list[Html]:
    """Course, importance and where good values lie."""
    found = importances(trials, objective)
    names = [*found, *(name for name in parameters(complete(trials)) if name not in found)]
    first = charts([search.history(trials, objective), search.importance(found)])
    parts = [section(f"Course and importance{suffix}", first, _on_importance(trials, found))]
    if complete(trials):
        parts.append(_where(trials, objective, names, suffix))
    half_way = search.intermediate(trials, objective) if objective.place == 0 else None
    return [*parts, section(f"Half-way{suffix}", chart(half_way))] if half_way else parts


def _where(trials: Trials, objective: Objective, names: Sequence[str], suffix: str) -> Html:
    """Where good values lie: each parameter, the two that matter most, all together."""
    pair = search.contour(trials, objective, names[:2]) if len(names) > 1 else None
    cut = "Crosses are pruned trials at the last value they told." if _cut(trials) else ""
    some = f"The {SLICES} most important of {len(names)} parameters. " if len(names) > SLICES else ""
    return section(
        f"Where good values lie{suffix}",
        charts([*search.slices(trials, objective, names[:SLICES]), pair]),
        chart(search.parallel(trials, objective), least=COLUMN * (len(names) + 1)),
        intro=some + cut,
    )


def _cut(trials: Trials) -> bool:
    return any(trial.state.name == "PRUNED" for trial in trials)


def _on_importance(trials: Trials, found: Mapping[str, float]) -> Html:
    done = sum("reused_from" not in trial.user_attrs for trial in complete(trials))
    if not found:
        return note(
            f"Importance isn't shown: {done} different trials are complete, of which at least {LEAST}, with "
            "values that differ, are needed."
        )
    few = "; few for so many parameters: read it with care" if done < 10 * len(found) else ""
    others = [name for name in parameters(complete(trials)) if name not in found]
    rest = (
        f" Not measured, as some trials lack it or all have one value: {', '.join(others)}." if others else ""
    )
    return note(f"Importance by functional ANOVA over {done} complete trials{few}.{rest}")


# ---------------------------------------------------------------- states, work, trials


def _states(trials: Trials) -> Html:
    """How trials ended, reasons of failures, what pruning saved."""
    kinds = [kind_of(trial) for trial in trials]
    rows = [
        (badge(kind), kinds.count(kind), f"{kinds.count(kind) / len(kinds):.0%}")
        for kind in dict.fromkeys(sorted(kinds))
    ]
    reasons: dict[str, list[int]] = {}
    for trial in trials:
        if kind_of(trial) == "failed":
            reasons.setdefault(str(trial.user_attrs.get("reason")), []).append(trial.number)
    failed = table(
        ("reason of failure", "trials"), [(why, ", ".join(map(str, who))) for why, who in reasons.items()]
    )
    return section(
        "States", table(("state", "trials", "share"), rows), failed if reasons else None, _saving(trials)
    )


def _saving(trials: Trials) -> Html:
    made, planned = saved_by_pruning(trials)
    if planned <= made:
        return note("Pruning saved nothing." if _cut(trials) else "No trial was pruned.")
    saved = f"{planned - made:,} of {planned:,} optimizer updates ({1 - made / planned:.1%})"
    cut = sum(trial.state.name == "PRUNED" for trial in trials)
    return tag("p", f"Pruning ended {cut} of {len(trials)} trials early and saved {saved}.")


def _work(trials: Trials) -> Html:
    made = search.timeline(trials, datetime.now())  # Optuna's times are local, too
    return section("Work", chart(made) or note("No trial has begun."))


def _trials(trials: Trials, objectives: Sequence[Objective]) -> Html:
    """All of them; a click on a head sorts."""
    names = list(parameters(trials))
    spread = any("std" in trial.user_attrs for trial in trials)
    heads = [
        "trial",
        "state",
        *(o.name for o in objectives),
        *(["±"] if spread else []),
        *names,
        "updates",
        "seconds",
        "why",
    ]
    rows = [_row(trial, objectives, names, spread) for trial in trials]
    intro = "Click on a head to sort. Of a trial without a value the last one told stands in brackets."
    return section("All trials", table(heads, rows), intro=intro)


def _row(
    trial: FrozenTrial, objectives: Sequence[Objective], names: Sequence[str], spread: bool
) -> list[object]:
    facts = trial.user_attrs
    values: list[object] = [o.of(trial) for o in objectives]
    if values[0] is None and trial.intermediate_values:
        values[0] = f"({value_of(trial)})"
    params = [_param(trial, name) for name in names]
    return [
        trial.number, badge_of(trial), *values, *([facts.get("std")] if spread else []), *params,
        facts.get("steps"), facts.get("seconds"), facts.get("reason"),
    ]  # fmt: skip


def badge_of(trial: FrozenTrial) -> Html:
    """Its state, coloured by kind."""
    return tag("span", state_of(trial), class_=f"badge {kind_of(trial)}")


def _param(trial: FrozenTrial, name: str) -> object:
    if name not in trial.params:
        return None
    value = trial.params[name]
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else as_text(value)


def _facts(sweep: SweepRecord) -> Html:
    """How it was started."""
    facts = sweep.facts
    ranges = [(key, value) for key, value in facts.get("space", {}).items()]
    rows: list[tuple[str, object]] = [
        ("started", facts.get("started")),
        ("ended", facts.get("ended")),
        ("storage", facts.get("storage")),
        ("trials asked for", number(int(facts.get("n_trials", 0)))),
        ("repeats of a trial", str(facts.get("repeats", ""))),
        ("fixed", " ".join(facts.get("fixed", []))),
        ("folder", str(sweep.folder)),
    ]
    whole: dict[str, Any] = dict(facts)
    return section(
        "How it was searched",
        table(("parameter", "range"), ranges),
        pairs(rows),
        fold("sweep.json", tag("pre", json.dumps(whole, indent=1, ensure_ascii=False))),
        tag("h3", "The same command goes on with it"),
        command(str(facts.get("command"))),
    )
