"""Run and sweep folders written by hand, as whet leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from whet.config import Node, save


def config_of(peft: str = "none", lr: float = 5e-5, seed: int = 1, task: str = "mine") -> Node:
    return {
        "seed": seed,
        "name": None,
        "tags": ["first", "second"],
        "task": {"_target_": "whet.task.single_label.SingleLabel", "name": task, "max_length": 128},
        "model": {"_target_": "whet.model.tiny.Tiny", "name": "tiny"},
        "peft": {"_target_": f"whet.peft.{peft}.{peft}"},
        "optimizer": {"_target_": "whet.optimizer.adamw.adamw", "lr": lr},
        "engine": {"_target_": "whet.engine.engine.Engine", "threads": None, "compile": False},
    }


def write_run(
    folder: Path,
    accuracy: float | None = None,
    *,
    test: float | None = None,
    metric: str = "accuracy",
    status: str = "finished",
    config: Node | None = None,
    **facts: Any,
) -> Path:
    """A run folder with `run.json`, `config.yaml` and `overrides.txt`."""
    config = config_of() if config is None else config
    folder.mkdir(parents=True)
    save(config, folder / "config.yaml")
    (folder / "overrides.txt").write_text(f"seed={config['seed']}\n")
    record: Node = {
        "name": folder.name,
        "status": status,
        "started": "2026-11-26T10:00:00+00:00",
        "seed": config["seed"],
        "pid": 1,
        "hashes": {"config": f"{folder.name:x<64}", "data": {"test": "t" * 64}},
        "reason": "",
    }
    if accuracy is not None:
        record["best"] = {"step": 2, "metric": f"validation/{metric}", "value": accuracy, "stopped": ""}
        record["metrics"] = {f"validation/{metric}": accuracy}
        record["timings"] = {"train_s": 100.0, "total_s": 101.0}
    if test is not None:
        record["metrics"][f"test/{metric}"] = test
    (folder / "run.json").write_text(json.dumps({**record, **facts}))
    return folder


def write_sweep(folder: Path, **facts: Any) -> Path:
    """A sweep folder with `sweep.json`; its study is to be made apart."""
    folder.mkdir(parents=True)
    told = {
        "study": folder.name,
        "storage": f"sqlite:///{folder / 'study.db'}",
        "objectives": ["validation/accuracy"],
        "directions": ["maximize"],
        "space": {"optimizer.lr": "interval(0.1,0.2)"},
        "status": "finished",
        "command": "whet train -m sweep=mine",
        "started": "2026-11-26T10:00:00+00:00",
    }
    (folder / "sweep.json").write_text(json.dumps({**told, **facts}))
    return folder
