"""Every PEFT method, killed within an epoch, goes on to the same end, by either form of `resume`."""

import json

import pytest
from tests.engine.test_resume import end_of, folder_of, keys, kill_at, killed_run, train  # noqa: F401

from whet.config import conf_dir

METHODS = sorted(path.stem for path in (conf_dir() / "peft").glob("*.yaml"))
STOPPING = ["engine.patience=2", "engine.min_delta=1.0"]
"""No accuracy gets better by more than 1: the third evaluation is the last, if what was waited for isn't lost."""
CASES = [
    pytest.param(method, form, marks=[pytest.mark.slow] * ((number + place) % 2))
    for number, method in enumerate(METHODS)
    for place, form in enumerate(("folder", "auto"))
]
"""Every method in both forms; one of them, in turn, is for `make properties`."""


@pytest.mark.parametrize(("method", "form"), CASES)
def test_every_method(workplace, keys, kill_at, method, form):  # noqa: F811
    """Killed within an epoch, between a checkpoint and the evaluation that ends training early."""
    mine = [*keys, *STOPPING, f"peft={method}"]
    assert train(*mine, "name=whole") == 0
    whole = folder_of(workplace, "whole")
    record = json.loads((whole / "run.json").read_text())
    assert (record["steps"], "not improved for 2" in record["best"]["stopped"]) == (12, True)
    folder = killed_run(workplace, mine, "killed", kill_at, 10)
    assert train(*([f"resume={folder}"] if form == "folder" else [*mine, "resume=auto"])) == 0
    assert len(json.loads((folder / "run.json").read_text())["resumed"]) == 1
    assert end_of(folder) == end_of(whole)
