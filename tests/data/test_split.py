"""Sizes, balance, togetherness and determinism of the division, mostly as properties."""

import random
from collections import Counter, defaultdict
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from whet.config import build, complete
from whet.data.audit import text_key
from whet.data.split import Split, apportion
from whet.data.table import Table
from whet.errors import ConfigError, DataError

NAMES = ("train", "validation", "test")


def table(labels, texts=None, prefix="r"):
    texts = texts or [f"{prefix} text {i}" for i in range(len(labels))]
    return Table([f"{prefix}{i}" for i in range(len(labels))], [(text,) for text in texts], list(labels))


def largest_remainder(quotas, total):
    """Hare's method, written out."""
    counts = [int(quota) for quota in quotas]
    order = sorted(range(len(quotas)), key=lambda i: (-(quotas[i] - counts[i]), i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


# ---------------------------------------------------------------- sizes


def test_the_size_of_rotten_tomatoes():
    made = Split().divide({"all": table(["neg", "pos"] * 4265)})
    assert {name: len(rows) for name, rows in made.items()} == {"train": 6824, "validation": 853, "test": 853}
    for rows in made.values():
        counts = Counter(rows.labels)
        assert abs(counts["neg"] - counts["pos"]) <= 1


SHARES = st.integers(5, 40).map(lambda percent: percent / 100)


@given(
    st.lists(st.sampled_from("abc"), min_size=30, max_size=120),
    SHARES,
    SHARES,
    st.integers(0, 5),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_exact_sizes_order_and_nothing_lost(labels, validation, test, seed, stratify):
    rows = table(labels)
    made = Split(validation=validation, test=test, seed=seed, stratify=stratify).divide({"all": rows})
    v, t = Fraction(str(validation)), Fraction(str(test))
    expected = largest_remainder([len(labels) * t, len(labels) * v, len(labels) * (1 - t - v)], len(labels))
    assert [len(made[name]) for name in ("test", "validation", "train")] == expected
    assert list(made) == list(NAMES)
    assert sorted(row for name in NAMES for row in made[name].ids) == sorted(rows.ids)
    for name in NAMES:
        numbers = [int(row[1:]) for row in made[name].ids]
        assert numbers == sorted(numbers)
        assert all(labels[n] == label for n, label in zip(numbers, made[name].labels, strict=True))


@given(st.lists(st.sampled_from("aaaaaabbbc"), min_size=30, max_size=120), SHARES, SHARES)
@settings(max_examples=60, deadline=None)
def test_balance_and_every_class_in_every_split(labels, validation, test):
    counts = Counter(labels)
    assume(min(counts.values()) >= 3)
    made = Split(validation=validation, test=test).divide({"all": table(labels)})
    assume(min(map(len, made.values())) >= len(counts))
    for rows in made.values():
        found = Counter(rows.labels)
        for label, count in counts.items():
            assert found[label] >= 1
            expected = count * len(rows) / len(labels)
            assert abs(found[label] - expected) < 2 + len(counts)
    for name in ("validation", "test"):  # the big class only pays for the small ones it makes room for
        assert abs(Counter(made[name].labels)["a"] - counts["a"] * len(made[name]) / len(labels)) < 1 + len(
            counts
        )


def test_without_stratify_balance_is_left_to_chance():
    labels = ["a", "b"] * 100
    spread = {
        Counter(Split(seed=seed, stratify=False).divide({"all": table(labels)})["test"].labels)["a"]
        for seed in range(20)
    }
    exact = {
        Counter(Split(seed=seed).divide({"all": table(labels)})["test"].labels)["a"] for seed in range(20)
    }
    assert len(spread) > 2
    assert exact == {10}


def test_regression_is_balanced_by_quantile():
    rng = random.Random(4)
    values = [rng.gauss(0, 1) for _ in range(500)]
    made = Split().divide({"all": table(values)})
    for rows in made.values():
        low = sum(value < sorted(values)[250] for value in rows.labels)
        assert abs(low - len(rows) / 2) <= 2
    constant = Split().divide({"all": table([1.0] * 100)})
    assert len(constant["test"]) == 10


def test_multi_label_is_balanced_by_label_set_and_rare_sets_by_their_rarest_name():
    labels = [["x"], ["x", "y"], [], ["y", "x"]] * 50 + [["x", "rare", f"odd{i % 2}"] for i in range(4)]
    made = Split(validation=0.25, test=0.25).divide({"all": table(labels)})
    for name in ("validation", "test"):
        sets = Counter(tuple(sorted(label)) for label in made[name].labels)
        assert abs(sets["x", "y"] - 25) <= 1
        assert abs(sets["x",] - 12.5) <= 1
        assert sum("rare" in label for label in made[name].labels) >= 1


# ---------------------------------------------------------------- togetherness


@given(
    st.lists(st.tuples(st.integers(0, 25), st.sampled_from("ab")), min_size=40, max_size=120),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_equal_texts_stay_together_and_sizes_stay_near(rows, seed):
    texts = [f"Text {'!' * (i % 3)} {number}" for i, (number, _) in enumerate(rows)]
    clusters = Counter(number for number, _ in rows)
    assume(len(clusters) > 15 and max(clusters.values()) < 8)
    made = Split(validation=0.2, test=0.2, seed=seed).divide(
        {"all": table([label for _, label in rows], texts)}
    )
    home = defaultdict(set)
    for name, part in made.items():
        for text in part.texts:
            home[text_key(text)].add(name)
    assert all(len(names) == 1 for names in home.values())
    for name in ("validation", "test"):
        assert -1 < len(rows) * 0.2 - len(made[name]) < max(clusters.values()) + 1


def test_without_keep_together_copies_spread():
    texts = ["same"] * 200
    made = Split(keep_together=False).divide({"all": table(["a"] * 200, texts)})
    assert {name: len(rows) for name, rows in made.items()} == {"train": 160, "validation": 20, "test": 20}
    with pytest.raises(DataError, match=r"200 rows \(1 different texts\) are too few"):
        Split().divide({"all": table(["a"] * 200, texts)})


def test_singles_fill_the_gaps_that_clusters_leave():
    texts = [f"c{i // 7}" for i in range(700)] + [f"s{i}" for i in range(300)]
    made = Split().divide({"all": table(["a"] * 1000, texts)})
    assert {name: len(rows) for name, rows in made.items()} == {"train": 800, "validation": 100, "test": 100}


# ---------------------------------------------------------------- determinism


@given(st.randoms(use_true_random=False), st.booleans(), st.sampled_from(["class", "number", "set"]))
@settings(max_examples=40, deadline=None)
def test_order_of_rows_does_not_matter(rng, together, kind):
    made_of = {
        "class": lambda i: "abc"[i % 3],
        "number": lambda i: i * 0.37 % 1,
        "set": lambda i: ["x", "y"][: i % 3],
    }
    rows = table([made_of[kind](i) for i in range(90)], [f"t{i // 2}" for i in range(90)])
    order = list(range(90))
    rng.shuffle(order)
    split = Split(keep_together=together)
    one, other = split.divide({"all": rows}), split.divide({"all": rows.take(order)})
    assert {name: set(part.ids) for name, part in one.items()} == {
        name: set(part.ids) for name, part in other.items()
    }


def test_the_seed_decides_and_the_test_set_outlives_another_validation_share():
    rows = table(["a", "b"] * 200)
    first, again = Split().divide({"all": rows}), Split().divide({"all": rows})
    assert [first[name].ids for name in NAMES] == [again[name].ids for name in NAMES]
    assert Split(seed=1).divide({"all": rows})["test"].ids != first["test"].ids
    assert Split(validation=0.3).divide({"all": rows})["test"].ids == first["test"].ids


def test_membership_is_random_enough():
    rows = table(["a"] * 40)
    hits = Counter(row for seed in range(200) for row in Split(seed=seed).divide({"all": rows})["test"].ids)
    assert len(hits) == 40
    assert min(hits.values()) >= 3 and max(hits.values()) <= 45  # binomial(200, 0.1): mean 20, sd 4.2


# ---------------------------------------------------------------- what is given


def test_given_splits_stay(caplog):
    train, validation, test = (table(["a", "b"] * 50, prefix=name) for name in NAMES)
    everything = {"train": train, "validation": validation, "test": test}
    assert Split().divide(everything) == everything
    with caplog.at_level("INFO"):
        made = Split(validation=0.2).divide({"train": train, "test": test})
    assert "no validation split: carved out of train" in caplog.text
    assert made["test"] is test
    assert (len(made["train"]), len(made["validation"])) == (80, 20)
    made = Split(test=0.3).divide({"train": train, "validation": validation})
    assert made["validation"] is validation
    assert (len(made["train"]), len(made["test"])) == (70, 30)
    made = Split().divide({"train": train})
    assert [len(made[name]) for name in NAMES] == [80, 10, 10]


def test_a_share_of_nothing_makes_no_split():
    rows = table(["a", "b"] * 50)
    assert list(Split(validation=0.0).divide({"all": rows})) == ["train", "test"]
    assert Split(validation=0.0, test=0.0).divide({"all": rows}) == {"train": rows}


@pytest.mark.parametrize(
    ("given_splits", "words"),
    [
        ({"all": table("aab")}, "too few"),
        ({"all": table("")}, "too few"),
        ({"test": table("aab")}, "no train split"),
        ({"all": table("aab"), "test": table("aab")}, "either one undivided"),
    ],
)
def test_what_cannot_be_divided(given_splits, words):
    with pytest.raises(DataError, match=words):
        Split().divide(given_splits)


def test_shares_that_leave_no_train_rows():
    with pytest.raises(DataError, match="below 1"):
        Split(validation=0.5, test=0.5)
    with pytest.raises(ConfigError, match=r"validation=1.5: must be less than or equal to 1"):
        build(complete({"_target_": "whet.data.split.Split", "validation": 1.5}), Split)


# ---------------------------------------------------------------- apportionment


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_apportion_is_largest_remainder(weights, total):
    quotas = [Fraction(weight * total, sum(weights)) for weight in weights]
    counts = apportion(quotas, total)
    assert counts == largest_remainder(quotas, total)
    assert all(abs(count - quota) < 1 for count, quota in zip(counts, quotas, strict=True))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_apportion_keeps_its_bounds(parts):
    lower = [low for _, low, _ in parts]
    upper = [low + more for _, low, more in parts]
    total = sum(upper) - sum(more // 2 for _, _, more in parts)
    counts = apportion([Fraction(quota) for quota, _, _ in parts], total, lower, upper)
    assert sum(counts) == total
    assert all(low <= count <= high for low, count, high in zip(lower, counts, upper, strict=True))
