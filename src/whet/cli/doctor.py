"""`whet doctor`: what works here."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from whet.cli.app import launch, listen
from whet.config import build, to_plain
from whet.paths import Paths
from whet.types import PositiveFloat

if TYPE_CHECKING:
    from omegaconf import DictConfig

LEAST_FREE_GB = 2.0


def main(arguments: list[str]) -> int:
    """Print the findings; 1 if something needed is missing."""
    findings = [item for found in launch("doctor", run, arguments) for item in found]
    return 1 if any(item["state"] == "bad" for item in findings) else 0


def run(composed: DictConfig) -> list[dict[str, str]]:
    """The Hydra task."""
    listen()
    findings: list[dict[str, str]] = build(to_plain(composed), examine)()
    return findings


def examine(*, timeout: PositiveFloat = 5.0, json: bool = False, paths: Paths) -> list[dict[str, str]]:
    """Look at versions, devices, hub, W&B and disk, and print what was found."""
    findings = [*_versions(), *_devices(), _hub(timeout), _wandb(), *_disk(paths)]
    print(_as_json(findings) if json else "\n".join(_line(item) for item in findings))
    return findings


def _as_json(findings: list[dict[str, str]]) -> str:
    return json.dumps(findings, indent=1)


def _line(item: dict[str, str]) -> str:
    mark = {"good": "ok  ", "note": "note", "bad": "BAD "}[item["state"]]
    return f"{mark}  {item['what']:<14} {item['found']}"


def _finding(state: str, what: str, found: str) -> dict[str, str]:
    return {"state": state, "what": what, "found": found}


def _versions() -> list[dict[str, str]]:
    from whet.engine.run import LIBRARIES, versions

    found = versions()
    missing = [name for name in LIBRARIES if name not in found]
    rows = [_finding("good", name, version) for name, version in found.items()]
    return rows + [_finding("bad", name, "not installed: pip install whet") for name in missing]


def _devices() -> list[dict[str, str]]:
    import torch

    from whet.engine.precision import Amp, pick_device
    from whet.engine.run import hardware

    facts = hardware()
    device = pick_device("auto")
    rows = [_finding("good", "device", f"{device} (autocast: {Amp.of('auto', device).name})")]
    size = f"{facts['cores']} cores, {facts['threads']} torch threads, {facts['memory_gb']} GB"
    rows.append(_finding("good", "processor", f"{facts['cpu']}, {size}"))
    rows += [_finding("good", "gpu", name) for name in facts["gpus"]]
    if torch.get_num_threads() > int(facts["cores"]):
        rows.append(_finding("note", "threads", "more torch threads than cores: set engine.threads"))
    return rows


def _hub(timeout: float) -> dict[str, str]:
    from huggingface_hub import constants

    place = urlsplit(constants.ENDPOINT)
    port = place.port or (443 if place.scheme == "https" else 80)
    if constants.HF_HUB_OFFLINE:
        return _finding(
            "note", "hub", "HF_HUB_OFFLINE is set: only cached snapshots and model.weights.path work"
        )
    try:
        with contextlib.closing(socket.create_connection((str(place.hostname), port), timeout)):
            return _finding("good", "hub", f"{place.hostname} answers")
    except OSError as error:
        return _finding(
            "note",
            "hub",
            f"{place.hostname} can't be reached ({error}): use models from wheels or model.weights.path",
        )


def _wandb() -> dict[str, str]:
    import wandb

    from whet.tracking.wandb import logged_in

    if logged_in(wandb.Settings()):
        return _finding("good", "wandb login", "yes: runs go online")
    return _finding(
        "note", "wandb login", "no: runs are kept offline in their folder (wandb login; whet sync later)"
    )


def _disk(paths: Paths) -> list[dict[str, str]]:
    from pathlib import Path

    rows = []
    for what, folder in (("cache", paths.cached("")), ("output", paths.outputs())):
        existing = next(place for place in (folder, *Path(folder).parents) if place.is_dir())
        free = shutil.disk_usage(existing).free / 1e9
        rows.append(
            _finding("good" if free >= LEAST_FREE_GB else "bad", what, f"{folder} ({free:.1f} GB free)")
        )
    rows.append(_finding("good", "python", sys.executable))
    return rows
