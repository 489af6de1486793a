"""Every PEFT method, killed within an epoch, goes on to the same end in both forms of `resume`."""

import json
import shutil

import pytest
from tests.engine.test_resume import end_of, folder_of, keys, kill_at, killed_run, train  # noqa: F401

from whet.config import conf_dir

METHODS = sorted(path.stem for path in (conf_dir() / "peft").glob("*.yaml"))
STOPPING = ["engine.patience=2", "engine.min_delta=1.0"]
"""No accuracy gets better by more than 1: the third evaluation is the last, if what was waited for isn't lost."""


@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_both_forms(workplace, keys, kill_at, method):  # noqa: F811
    """Killed within an epoch, between a checkpoint and the evaluation that ends training early."""
    mine = [*keys, *STOPPING, f"peft={method}"]
    assert train(*mine, "name=whole") == 0
    whole = folder_of(workplace, "whole")
    record = json.loads((whole / "run.json").read_text())
    assert (record["steps"], "not improved for 2" in record["best"]["stopped"]) == (12, True)
    killed = killed_run(workplace, mine, "auto", kill_at, 10)
    shutil.copytree(killed, killed.with_name("folder"))
    for form in ("folder", "auto"):
        folder = folder_of(workplace, form)
        assert train(*([f"resume={folder}"] if form == "folder" else [*mine, "resume=auto"])) == 0
        assert len(json.loads((folder / "run.json").read_text())["resumed"]) == 1
        assert end_of(folder) == end_of(whole), form
