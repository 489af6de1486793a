"""The statistics of the benchmarks, against brute force and closed forms."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest

from benchmarks import common


def race(**changes):
    settings = {
        "title": "t",
        "contestants": {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 3}},
        "figure": "rate",
        "unit": "1/s",
        "reference": "a",
    }
    return common.Race(**{**settings, **changes})


OPTIONS = common.Options(pairs=3, quick=False, threads=2, out=common.RESULTS / "x.json")


@pytest.mark.parametrize("rounds", [1, 2, 5, 6])
def test_every_round_has_everyone_and_neighbouring_rounds_mirror_each_other(rounds):
    found = common.orders(["a", "b", "c"], rounds)
    assert len(found) == rounds and found[0] == ["a", "b", "c"]
    assert all(one == other[::-1] for one, other in itertools.pairwise(found))


def test_a_steady_drift_favours_nobody_over_an_even_number_of_rounds():
    order = [name for turn in common.orders(["a", "b", "c", "d"], 6) for name in turn]
    places = {name: np.mean([place for place, other in enumerate(order) if other == name]) for name in "abcd"}
    assert len(set(places.values())) == 1


@pytest.mark.parametrize("count", range(1, 12))
def test_the_coverage_is_that_of_all_ways_to_fall_on_either_side_of_the_median(count):
    ways = list(itertools.product([0, 1], repeat=count))  # 1: below the true median; each way as likely
    for rank in range(1, (count + 1) // 2 + 1):
        inside = sum(rank <= sum(way) <= count - rank for way in ways) / len(ways)
        assert common.coverage(count, rank) == pytest.approx(inside)


@pytest.mark.parametrize(("count", "confidence"), [(5, 0.9), (11, 0.9), (11, 0.6), (20, 0.95)])
def test_the_interval_holds_the_median_as_often_as_it_says_and_is_the_narrowest(count, confidence):
    rng = np.random.default_rng(0)
    samples = rng.exponential(size=(4000, count))  # skewed: nothing is assumed about the distribution
    found = [common.median_interval(list(sample), confidence) for sample in samples]
    share = np.mean([low <= math.log(2) <= high for low, high, _ in found])
    sure = found[0][2]
    assert sure >= confidence and share == pytest.approx(sure, abs=0.02)
    rank = sorted(samples[0]).index(found[0][0]) + 1
    assert sorted(samples[0])[-rank] == found[0][1]
    assert common.coverage(count, rank + 1) < confidence


@pytest.mark.parametrize(
    ("values", "sure"), [([3.0], 0.0), ([1.0, 3.0, 2.0], 0.75), ([1.0, 2.0, 3.0, 4.0], 0.875)]
)
def test_few_values_give_the_whole_spread_and_say_what_it_is_worth(values, sure):
    assert common.median_interval(values) == (min(values), max(values), sure)


def test_no_values_have_no_interval():
    with pytest.raises(ValueError, match="no values"):
        common.median_interval([])


def test_ratios_are_made_within_rounds():
    drift = np.array([1.0, 5.0, 0.2, 3.0, 2.0])  # the machine's speed, the same for both in a round
    found = common.compare(list(3 * drift), list(2 * drift))
    assert found["ratios"] == pytest.approx([1.5] * 5)
    assert found["median"] == pytest.approx(1.5) and found["spread"] == pytest.approx([1.5, 1.5])


def test_figures_that_are_not_paired_are_refused():
    with pytest.raises(ValueError, match="shorter|longer"):
        common.compare([1.0, 2.0], [1.0])


ROWS = [
    {"round": turn, "contestant": name, "rate": rate * speed, "memory": memory}
    for turn, speed in enumerate([1.0, 2.0, 4.0])
    for name, rate, memory in [("a", 6.0, 10), ("b", 2.0, 20), ("c", 3.0, None)]
]


@pytest.mark.parametrize(("on_top", "ratio"), [(True, 3.0), (False, 1 / 3)])
def test_the_summary_divides_the_way_it_is_told(on_top, ratio):
    told = common.summary(race(reference_on_top=on_top, columns={"memory": ".0f"}), ROWS)
    found = told["contestants"]
    assert found["b"]["ratio"]["median"] == pytest.approx(ratio)
    assert found["b"]["rate"] == statistics.median([2.0, 4.0, 8.0])
    assert found["b"]["memory"] == 20 and found["c"]["memory"] is None
    assert "ratio" not in found["a"] and told["ratio"] == ("a / it" if on_top else "it / a")


def test_further_columns_are_compared_the_same_way():
    rows = [row for row in ROWS if row["contestant"] != "c"]
    pair = race(contestants={"a": {}, "b": {}}, columns={"memory": ".0f"}, also=("memory",))
    assert common.summary(pair, rows)["contestants"]["b"]["also"]["memory"]["median"] == 2


def test_without_a_reference_the_figures_themselves_are_told():
    found = common.summary(race(reference=None), ROWS)["contestants"]
    assert found["a"]["ratio"]["median"] == 12 and found["a"]["ratio"]["spread"] == [6, 24]


@pytest.mark.parametrize(("target", "met"), [((">=", 3.0), True), ((">=", 3.1), False), (("<=", 3.0), True)])
def test_a_target_is_met_or_missed(target, met):
    told = common.summary(race(reference_on_top=True, targets={"b": target}), ROWS)
    assert told["contestants"]["b"]["target"] == {"is": list(target), "met": met}


def test_each_is_measured_once_a_round_after_rounds_that_do_not_count():
    seen = []

    def one(settings):
        seen.append(settings["x"])
        return {"rate": len(seen)}

    rows = common.measure(race(warm_up=1), OPTIONS, one)
    assert seen == [1, 2, 3, 3, 2, 1] * 2
    assert [row["rate"] for row in rows] == list(range(4, 13))
    assert {(row["round"], row["contestant"]) for row in rows} == set(itertools.product(range(3), "abc"))


def test_the_time_left_is_what_each_took_so_far():
    taken = {"a": [1.0, 3.0], "b": [10.0]}
    assert common.remaining(["a", "b", "a"], taken) == 14
    assert common.remaining(["a", "new"], taken) == pytest.approx(2 + 14 / 3)
    assert common.remaining([], taken) == 0 and math.isnan(common.remaining(["a"], {}))


def test_contestants_are_chosen_beside_the_reference():
    assert list(common.take_part(race(), ["c"]).contestants) == ["a", "c"]
    assert list(common.take_part(race(), []).contestants) == ["a", "b", "c"]
    with pytest.raises(SystemExit, match="--only d.*a, b, c"):
        common.take_part(race(), ["d"])


def test_a_childs_figures_are_its_last_marked_line():
    printed = f'noise\n{common.MARK}{{"rate": 1}}\n{common.MARK}{{"rate": 2}}\nmore noise\n'
    assert common.parse(printed) == {"rate": 2}
    with pytest.raises(SystemExit, match="no figures.*noise"):
        common.parse("noise")
