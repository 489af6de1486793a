"""A finished run as an ordinary model: its method folded into the weights, and proof that nothing changed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.engine import artifact
from whet.engine.checkpoint import tensors_of
from whet.engine.load import Finished, split_of
from whet.errors import DataError, RunError
from whet.peft.fold import fold
from whet.storage import aside

if TYPE_CHECKING:
    from whet.paths import Paths


@dataclass(frozen=True)
class Parity:
    """How far apart two models are on the same rows."""

    rows: int
    logits: float
    """Largest difference of a logit."""
    before: dict[str, float]
    after: dict[str, float]
    """Metrics."""

    def text(self) -> str:
        """A table for people."""
        lines = [f"{self.rows} validation rows: logits differ by up to {self.logits:.3g}"]
        lines += [f"{'metric':<20}{'run':>12}{'merged':>12}{'difference':>14}"]
        for name, value in self.before.items():
            other = self.after[name]
            lines.append(f"{name:<20}{value:>12.6f}{other:>12.6f}{other - value:>14.3g}")
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """For the record."""
        changes = {name: self.after[name] - value for name, value in self.before.items()}
        return {"rows": self.rows, "logits": self.logits, "metrics": changes}


def merge_run(run: Finished, output: Path, tolerance: float, paths: Paths) -> str:
    """Fold `run`'s method, compare on its validation rows, write the model; returns what came out.

    Args:
        run: opened in fp32.
        output: folder to make.
        tolerance: most that a logit may differ.
        paths: where data is cached.

    Raises:
        DataError: `output` is there already.
        ModelError: the method can't be folded.
        RunError: logits differ by more than the tolerance; nothing is written.
    """
    if output.exists():
        raise DataError("output", "is there already; name a folder that isn't", output)
    method = str(run.config["peft"]["_target_"]).rpartition(".")[2]
    judge = run.judge(split_of(run, "validation", paths))
    before = judge.predict(run.trained.model)
    count = fold(run.trained.model, method)
    after = judge.predict(run.trained.model)
    apart = float(np.abs(before.logits - after.logits).max())
    parity = Parity(len(before.ids), apart, judge.metrics(before), judge.metrics(after))
    if not (math.isfinite(apart) and apart <= tolerance):
        problem = f"more than tolerance={tolerance:g}: not written"
        raise RunError(f"merged logits differ from the run's by up to {apart:g}, {problem}")
    with aside(output) as beside:
        beside.mkdir()
        _write(run, beside, output.name, parity)
    return f"{method}: {count} layers folded\n{parity.text()}\n\nmodel  {output}"


def _write(run: Finished, folder: Path, name: str, parity: Parity) -> None:
    """An ordinary model directory that is a run folder, too."""
    from safetensors.torch import save_file

    from whet.config import save

    model: Any = run.trained.model
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    tensors = {key: tensor.contiguous() for key, tensor in tensors_of(model).items()}
    save_file(tensors, folder / artifact.WHOLE, metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    run.trained.tokenizer.save_pretrained(folder)
    merged = {"run": str(run.folder.absolute()), **parity.facts()}
    card = {**run.trained.card, "whole": True, "merged": merged}
    record = {**run.record, "name": name, "merged": merged}
    for file, content in ((artifact.CARD, card), ("run.json", record)):
        (folder / file).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    save(run.config, folder / "config.yaml")
