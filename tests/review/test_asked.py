"""What was asked of a run, against the composed defaults."""

from __future__ import annotations

import shlex

import pytest

from whet.config import compose, save
from whet.errors import WhetError
from whet.review.asked import choices, command, differences, overrides
from whet.review.records import RunRecord


def asked(folder, told, **facts):
    save(compose("train", told), folder / "config.yaml")
    (folder / "overrides.txt").write_text("".join(f"{item}\n" for item in told))
    record = RunRecord(folder)
    record.__dict__["record"] = {"name": "x", **facts}
    return record


def test_groups_first_then_what_differs_from_the_chosen_groups_own(tmp_path):
    told = ["optimizer=sgd", "optimizer.lr=0.5", "seed=7", "name=x", "model=tiny", "peft=none", "tags=[a, b]"]
    record = asked(tmp_path, told)
    found = differences(record)
    assert found[:2] == [("optimizer", "sgd", "adamw"), ("model", "tiny", "minilm")]
    assert sorted(found[2:]) == [
        ("optimizer.lr", 0.5, compose("train", ["optimizer=sgd"])["optimizer"]["lr"]),
        ("seed", 7, 1),
    ]
    assert overrides(record) == told
    assert choices(record) == {"optimizer": "sgd", "model": "tiny", "peft": "none"}


def test_a_choice_that_is_gone(tmp_path):
    record = asked(tmp_path, ["model=tiny"])
    (tmp_path / "overrides.txt").write_text("task=mine_of_old\n")
    with pytest.raises(WhetError, match="mine_of_old"):
        differences(record)


def test_the_command_survives_a_shell(tmp_path):
    told = ["name=old", "resume=auto", "tags=[a b]", "peft=lora", "optimizer.lr=1e-3"]
    record = asked(tmp_path, told)
    line = command(record)
    assert shlex.split(line) == ["whet", "train", "tags=[a b]", "peft=lora", "optimizer.lr=1e-3"]
    record.record["processes"] = 2
    assert command(record).startswith("torchrun --nproc-per-node=2 -m whet train ")
