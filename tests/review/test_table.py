"""Sorting and grouping, against pandas."""

from __future__ import annotations

import math
import random

import pandas as pd
import pytest

from whet.errors import ConfigError
from whet.review.table import arrange, average, by_seed, default_columns, doubts, group


def run(number: int, **facts):
    usual = {
        "kind": "run",
        "name": f"r{number}",
        "folder": f"/{number}",
        "task": "mine",
        "metric": "accuracy",
        "seed": number,
    }
    return {**usual, "hashes.config": f"h{number}", **facts}


def test_missing_values_and_nan_come_last_in_both_directions():
    rows = [
        {"n": 1, "v": 2.0},
        {"n": 2, "v": None},
        {"n": 3, "v": 5},
        {"n": 4, "v": math.nan},
        {"n": 5},
        {"n": 6, "v": 2},
    ]
    assert [row["n"] for row in arrange(rows, ["v"])] == [1, 6, 3, 2, 4, 5]
    assert [row["n"] for row in arrange(rows, ["-v"])] == [3, 1, 6, 2, 4, 5]
    assert [row["n"] for row in arrange(rows, ["-v"], limit=2)] == [3, 1]


def test_several_keys_as_pandas_sorts():
    rng = random.Random(2)
    rows = [{"a": rng.choice("xyz"), "b": rng.randint(0, 3), "n": n} for n in range(60)]
    expected = (
        pd.DataFrame(rows).sort_values(["a", "b"], ascending=[True, False], kind="stable")["n"].tolist()
    )
    assert [row["n"] for row in arrange(rows, ["a", "-b"])] == expected


def test_unknown_sort_key():
    with pytest.raises(ConfigError, match="sort=vv: no run has it; did you mean v"):
        arrange([{"v": 1, "other": 2}], ["-vv"])


def test_groups_as_pandas_has_them():
    rng = random.Random(3)
    rows = [
        run(
            n,
            peft=rng.choice(["none", "lora"]),
            **{"optimizer.lr": rng.choice([1e-4, 1e-3]), "test/accuracy": rng.random()},
        )
        for n in range(40)
    ]
    found = {
        (row["peft"], row["optimizer.lr"]): row
        for row in (g.flat() for g in group(rows, ["peft", "optimizer.lr"], ["test/accuracy"]))
    }
    expected = (
        pd.DataFrame(rows).groupby(["peft", "optimizer.lr"])["test/accuracy"].agg(["size", "mean", "std"])
    )
    assert set(found) == set(expected.index)
    for key, row in expected.iterrows():
        assert found[key]["runs"] == found[key]["test/accuracy.n"] == row["size"]
        assert found[key]["test/accuracy"] == pytest.approx(row["mean"])
        assert found[key]["test/accuracy.std"] == pytest.approx(row["std"])


def test_what_is_missing_is_not_averaged():
    rows = [
        run(1, validation=0.5),
        run(2, validation=None),
        run(3, validation=math.nan),
        run(4, validation=1.0),
    ]
    (found,) = group(rows, ["task"], ["validation"])
    assert found.flat() == {
        "task": "mine", "runs": 4, "validation": 0.75, "validation.std": pytest.approx(math.sqrt(0.125)), "validation.n": 2,
    }  # fmt: skip
    assert average([]).mean is None
    assert average([0.5]).std is None, "one figure has no spread"


def test_tasks_and_metrics_stay_apart():
    rows = [
        run(1, peft="lora", validation=0.9, **{"validation/accuracy": 0.9}),
        run(2, peft="lora", validation=0.2, task="other", metric="loss", **{"validation/loss": 0.2}),
        run(3, peft="lora", validation=0.7, **{"validation/accuracy": 0.7}),
        run(4, peft="lora", metric=None),
    ]
    found = [one.flat() for one in group(rows, ["peft"])]
    assert [(row["task"], row["metric"], row["peft"], row["runs"]) for row in found] == [
        ("mine", "accuracy", "lora", 3),
        ("other", "loss", "lora", 1),
    ], "the run without a figure belongs to its task's group"
    assert found[0]["validation"] == pytest.approx(0.8)
    assert found[1]["validation"] == 0.2
    (alone,) = group(rows[::2], ["peft"])
    assert (
        set(alone.flat()) >= {"validation/accuracy", "validation/accuracy.std"} and "task" not in alone.flat()
    )


def test_what_is_no_number_cannot_be_averaged():
    with pytest.raises(ConfigError, match=r"columns=peft: can't be averaged \('lora'\): put it into group"):
        group([run(1, peft="lora")], ["task"], ["peft"])


def test_doubts_are_told():
    same = {"optimizer.lr": 1e-4, "paths.output": "a"}
    assert (
        doubts(group([run(1, **same), run(2, **same, **{"engine.threads": None})], ["task"], ["seed"])) == []
    )
    other = run(2, **{**same, "optimizer.lr": 1e-3, "paths.output": "b"})
    (told,) = doubts(group([run(1, **same), other], ["task"], ["seed"]))
    assert "(optimizer.lr)" in told
    assert doubts(group([run(1, **same), other], ["optimizer.lr"], ["seed"])) == []
    (told,) = doubts(group([run(1), run(2, **{"hashes.config": "h1"})], ["task"], ["seed"]))
    assert told.startswith("1 of the averaged runs repeat")
    (told,) = doubts(
        group([run(1, **{"hashes.data.test": "x"}), run(2, **{"hashes.data.test": "y"})], ["task"], ["seed"])
    )
    assert "hashes.data.test" in told


def test_default_columns_name_the_metric_where_there_is_one():
    assert "validation/accuracy" in default_columns([run(1), run(2, metric=None)])
    two = default_columns([run(1), run(2, metric="loss")])
    assert "validation/accuracy" not in two
    assert {"metric", "validation", "test"} <= set(two)


def test_by_seed():
    rows = [
        run(1, peft="none", test=0.5),
        run(2, peft="none", test=None),
        run(1, peft="lora", test=0.75, name="x"),
    ]
    assert by_seed(rows, "peft", "test") == {"none": {1: 0.5}, "lora": {1: 0.75}}
    twin = run(1, peft="lora", test=0.1, name="y", **{"optimizer.lr": 1})
    with pytest.raises(
        ConfigError, match=r"x and y are both lora with seed 1 \(they differ in optimizer.lr\)"
    ):
        by_seed([*rows, twin], "peft", "test")
    with pytest.raises(ConfigError, match="key=pefd: no run has it; did you mean peft"):
        by_seed(rows, "pefd", "test")
