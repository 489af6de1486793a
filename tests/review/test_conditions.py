"""The grammar of `where`, against Python's own comparisons."""

from __future__ import annotations

import math
import operator
import random

import pytest

from whet.errors import ConfigError
from whet.review.conditions import Condition, select

FACTS = {
    "optimizer.lr": 3e-4, "peft": "lora", "task.name": "mine", "name": "a-lora-b", "seed": 3, "engine.compile": False,
    "engine.threads": None, "tags": ["x", "y"], "validation/loss": math.nan, "age": 7200.0, "reason": None,
    "started": "2026-11-26T10:00:00+00:00",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("optimizer.lr>1e-4", True),
        ("optimizer.lr > 0.0003", False),
        ("optimizer.lr>=0.0003", True),
        ("optimizer.lr=3e-4", True),
        ("optimizer.lr==0.00030", True),
        ("optimizer.lr=x", False),
        ("peft=lora", True),
        ("peft!=lora", False),
        ("task.name!=x", True),
        ("name~=lora", True),
        ("name~=^lora", False),
        ("name!~^lora", True),
        ("seed<=3", True),
        ("seed<3", False),
        ("engine.compile=false", True),
        ("engine.compile=true", False),
        ("engine.threads=null", True),
        ("engine.threads!=null", False),
        ("engine.threads>1", False),
        ("engine.threads!=1", True),
        ("tags=y", True),
        ("tags=z", False),
        ("validation/loss<1", False),
        ("validation/loss>1", False),
        ("validation/loss!=1", True),
        ("age<3h", True),
        ("age<90min", False),
        ("age>1d", False),
        ("reason=", True),
        ("started>2026-11-25", True),
        ("started>2026-11-27", False),
    ],
)
def test_conditions(text, holds):
    assert Condition.parse(text).holds(FACTS) is holds


def test_numbers_compare_as_python_does():
    signs = {
        "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    }  # fmt: skip
    rng = random.Random(1)
    for _ in range(300):
        one, other, sign = (
            rng.choice([1, 2, 2.5, -3e-7]),
            rng.choice([1, 2, 2.5, -3e-7]),
            rng.choice([*signs]),
        )
        assert Condition.parse(f"a.b{sign}{other}").holds({"a.b": one}) is signs[sign](one, other)


def test_all_must_hold():
    rows = [{"peft": "lora", "seed": 1}, {"peft": "lora", "seed": 2}, {"peft": "none", "seed": 2}]
    assert select(rows, ["peft=lora", "seed>1"]) == [rows[1]]
    assert select(rows, []) == rows
    assert select(rows, ["study=mine"]) == [], "a short key is known though no run has it"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr>1", "where=lr: no run has it; did you mean optimizer.lr"),
        ("optimizer.lrr>1", "did you mean optimizer.lr"),
        ("pefd=lora", "did you mean peft"),
        ("lora", "not a condition"),
        ("name~=(", "not a regular expression"),
        ("optimizer.lr>high", "optimizer.lr is 0.0003 in a run"),
    ],
)
def test_wrong_conditions_are_named(text, told):
    with pytest.raises(ConfigError) as caught:
        select([FACTS], [text])
    assert told in str(caught.value)


def test_without_runs_no_key_is_wrong():
    assert select([], ["optimizer.lr>1"]) == []
