"""`whet pretrain`: go on pretraining a model on a task's texts, by masked language modelling."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from whet.cli.app import launch, listen, overrides
from whet.config import Node, build, to_plain

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from whet.engine.pretrain import Pretraining
    from whet.engine.run import Run


def main(arguments: list[str]) -> int:
    """Pretrain once."""
    for text in launch("pretrain", run, arguments):
        print(text)
    return 0


def run(composed: DictConfig) -> str:
    """The Hydra task."""
    from whet.engine.continuing import saved_config
    from whet.engine.pretrain import Pretraining, finish, get_ready, pretrain
    from whet.engine.run import Run, find_run

    listen()
    config = to_plain(composed)
    given = config["resume"]
    if given is not None:
        config = saved_config(find_run(str(given)), config, overrides())
    parts: Pretraining = build(config, Pretraining)()
    setup = get_ready(parts)
    record = Run.reopen(find_run(str(given)), parts.engine.deterministic) if given else _begin(parts, config)
    record.verb = "pretrain"
    with record.watched():
        metrics = pretrain(parts, setup, record, config, resume=given is not None)
    finish(record)
    return _summary(record.folder, metrics)


def _begin(parts: Pretraining, config: Node) -> Run:
    from whet.engine.run import Run, new_folder, stamp

    name = parts.name or f"{stamp()}-{parts.task.name}-{parts.model.name}-mlm-s{parts.seed}"
    place = new_folder(parts.paths.outputs() / "pretraining", name)
    return Run.create(place, config, overrides(), verb="pretrain")


def _summary(folder: Path, metrics: dict[str, float]) -> str:
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    told = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    return f"{told}\n\nfine-tune it  whet train model=local model.weights.path={shown}/model"
