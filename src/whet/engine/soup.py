"""One model whose weights are the mean of several finished runs' (Wortsman et al., 2022, model soups)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from whet.config import Node, part
from whet.engine import artifact
from whet.engine.load import open_run, split_of
from whet.engine.precision import Precision
from whet.engine.run import read_record, versions
from whet.errors import RunError
from whet.storage import aside
from whet.task.base import Task
from whet.tracking.progress import progress

if TYPE_CHECKING:
    import torch
    from torch import nn

    from whet.data.batch import Examples
    from whet.engine.evaluate import Evaluator
    from whet.engine.load import Finished
    from whet.evaluation.predictions import Predictions
    from whet.evaluation.report import Report
    from whet.paths import Paths

    Tensors = dict[str, torch.Tensor]

Way = Literal["greedy", "uniform"]


@dataclass(frozen=True)
class Member:
    """A finished run that may go into the soup."""

    folder: Path

    @cached_property
    def card(self) -> Node:
        """Of its model."""
        return artifact.read_card(self.folder / "model")

    @cached_property
    def record(self) -> Node:
        """Its `run.json`."""
        return read_record(self.folder)

    def metric(self, primary: str) -> float:
        """Its figure on validation. Raises RunError if it has none."""
        value = self.record.get("metrics", {}).get(f"validation/{primary}")
        if value is None:
            raise RunError(f"{self.folder}: it has no validation/{primary}; did the run finish?")
        return float(value)

    def tensors(self) -> Tensors:
        """The weights that it trained."""
        from safetensors.torch import load_file

        return load_file(self.folder / "model" / weights_file(self.card))


def weights_file(card: Node) -> str:
    """Where a model directory keeps what was trained."""
    return artifact.WHOLE if card["whole"] else artifact.PART


class Pot:
    """Sums of weights in float64, so that the order of the members hardly matters."""

    def __init__(self) -> None:
        self.count = 0
        self._first: Tensors = {}
        self._sums: Tensors = {}

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put a member in."""
        self._first = self._first or dict(tensors)
        self._sums = self._with(tensors)
        self.count += 1

    def mean(self, more: Mapping[str, torch.Tensor] | None = None) -> Tensors:
        """The mean of all members, or of them and one more; what isn't a float is the first one's."""
        sums = self._sums if more is None else self._with(more)
        count = self.count + (more is not None)
        return {
            name: (sums[name] / count).to(first.dtype) if name in sums else first
            for name, first in (self._first or dict(more or {})).items()
        }

    def _with(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        return {
            name: tensor.double() + self._sums.get(name, 0)
            for name, tensor in tensors.items()
            if tensor.is_floating_point()
        }


@dataclass
class Soup:
    """What the making of a soup came to."""

    folder: Path
    primary: str
    offered: list[tuple[Path, float, bool]]
    """Each run, best first, with its figure on validation and whether it went in."""
    metrics: dict[str, float]
    best: Member
    text: str = field(default="")
    """The test report."""

    def told(self) -> str:
        """In a few lines."""
        before = self.best.record["metrics"]
        lines = [f"validation/{self.primary} of the runs, best first (* in the soup):"]
        lines += [f"  {value:.4f} {'*' if taken else ' '} {folder}" for folder, value, taken in self.offered]
        for split in ("validation", "test"):
            name = f"{split}/{self.primary}"
            alone = f"{before[name]:.4f}" if name in before else "not tested"
            lines.append(f"{name}: soup {self.metrics[name]:.4f}, best run alone {alone}")
        return "\n".join([self.text, "", *lines])


def make_soup(
    folders: Sequence[Path],
    output: Path,
    way: Way,
    paths: Paths,
    device: str = "auto",
    precision: Precision | None = None,
) -> Soup:
    """Average finished runs into a new folder that serves as a run: model, predictions, reports, `run.json`.

    Args:
        folders: of at least two finished runs of one architecture that started from the same weights.
        output: the folder to make.
        way: `uniform` takes all; `greedy` goes through them from the best on and keeps each that doesn't make
            the primary metric on validation worse (recipe 1 of the paper).
        paths: where base weights are cached.
        device: where to evaluate.
        precision: number format; None takes that of the best run's training.

    Raises:
        RunError: fewer than two runs, or one that doesn't go with the best.
    """
    if len(set(folders)) < 2:
        raise RunError(f"a soup needs two finished runs at least, here are {len(set(folders))}")
    members = [Member(folder) for folder in dict.fromkeys(folders)]
    task: Task = part(members[0].card["task"], Task, "task")
    primary = str(task.primary)
    maximize = task.directions()[primary] == "maximize"
    members.sort(key=lambda member: member.metric(primary) * (-1 if maximize else 1))
    best, *others = members
    for other in others:
        _fits(best, other)
    finished = open_run(best.folder, paths, device, precision)
    rows = {split: split_of(finished, split, paths) for split in ("validation", "test")}
    judge = _Judge(finished, finished.judge(rows["validation"]), primary, maximize)
    pot, taken = _cook(members, judge, way)
    with aside(output) as beside:
        beside.mkdir()
        _write_model(beside / "model", best, pot.mean(), taken)
        judged = _judge_all(finished, rows, pot.mean(), beside)
        metrics = {
            f"{name}/{key}": value for name, one in judged.items() for key, value in one.metrics.items()
        }
        offered = [(member.folder, member.metric(primary), member in taken) for member in members]
        _write_record(beside, output.name, best, way, offered, metrics)
    return Soup(output, primary, offered, metrics, best, judged["test"].text())


def _fits(best: Member, other: Member) -> None:
    """Raise RunError for a run whose weights, labels or validation rows aren't those of the best one."""
    for key, value in (
        ("base weights", lambda m: m.card["base"]["sha256"]),
        ("labels", lambda m: m.card["label_names"]),
        ("method", lambda m: m.card["peft"]),
        ("validation rows", lambda m: m.record["hashes"]["data"]["validation"]),
        ("test rows", lambda m: m.record["hashes"]["data"]["test"]),
        ("tensors", _shapes),
    ):
        if value(best) != value(other):
            raise RunError(f"{other.folder}: no soup with {best.folder}: its {key} aren't the same")


def _shapes(member: Member) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(member.folder / "model" / weights_file(member.card), "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


@dataclass
class _Judge:
    """Says how good weights are on validation."""

    finished: Finished
    evaluator: Evaluator
    primary: str
    maximize: bool

    def value(self, tensors: Mapping[str, torch.Tensor]) -> float:
        """The primary metric, larger is better."""
        predictions = _predict(self.finished.trained.model, tensors, self.evaluator)
        found = self.evaluator.metrics(predictions)[self.primary]
        return found if self.maximize else -found


def _predict(model: nn.Module, tensors: Mapping[str, torch.Tensor], judge: Evaluator) -> Predictions:
    model.load_state_dict(dict(tensors), strict=False)
    return judge.predict(model)


def _cook(members: Sequence[Member], judge: _Judge, way: Way) -> tuple[Pot, list[Member]]:
    """Put the members in that belong there, best first."""
    pot, best = Pot(), 0.0
    taken: list[Member] = []
    with progress(len(members), "making the soup", "runs") as advance:
        for member in members:
            tensors = member.tensors()
            value = judge.value(pot.mean(tensors)) if way == "greedy" else 0.0
            if not taken or way == "uniform" or value >= best:
                pot.add(tensors)
                taken.append(member)
                best = value
            advance(1)
    return pot, taken


def _write_model(folder: Path, best: Member, tensors: Tensors, taken: Sequence[Member]) -> None:
    """The best run's model directory with other weights."""
    from safetensors.torch import save_file

    name = weights_file(best.card)
    shutil.copytree(best.folder / "model", folder, ignore=shutil.ignore_patterns(name))
    save_file(tensors, folder / name, metadata={"format": "pt"})
    card = {**best.card, "soup": [str(member.folder) for member in taken]}
    (folder / artifact.CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False), encoding="utf-8")


def _judge_all(
    finished: Finished, rows: Mapping[str, Examples], tensors: Tensors, folder: Path
) -> dict[str, Report]:
    """Predictions and report of each split."""
    found = {}
    for split, examples in rows.items():
        judge = finished.judge(examples)
        predictions = _predict(finished.trained.model, tensors, judge)
        predictions.save(folder / "predictions" / f"{split}.npz")
        found[split] = judge.report(predictions, judge.metrics(predictions), folder / "report")
    return found


def _write_record(
    folder: Path,
    name: str,
    best: Member,
    way: Way,
    offered: Sequence[tuple[Path, float, bool]],
    metrics: Mapping[str, float],
) -> None:
    """`run.json` and `config.yaml` as a run has them; the best run's settings serve to load the soup."""
    shutil.copyfile(best.folder / "config.yaml", folder / "config.yaml")
    kept: Node = {
        key: best.record[key] for key in ("seed", "max_length", "precision", "data") if key in best.record
    }
    facts: dict[str, Any] = {
        "name": name,
        "status": "finished",
        "reason": "",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        **kept,
        "hashes": {key: best.record["hashes"][key] for key in ("data", "weights")},
        "soup": {
            "way": way,
            "runs": [{"run": str(run), "validation": value, "in": taken} for run, value, taken in offered],
        },
        "metrics": dict(metrics),
    }
    (folder / "run.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
