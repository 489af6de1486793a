"""k rows a class, wrong labels: exact counts, order-free, held-out splits untouched."""

import random
from collections import Counter

import numpy as np
import pytest

from whet.data.files import Files
from whet.data.scarce import few, mislabelled
from whet.data.table import Table
from whet.errors import ConfigError, DataError
from whet.paths import Paths
from whet.task.binary import Binary
from whet.task.multi_label import MultiLabel
from whet.task.regression import Regression
from whet.task.single_label import SingleLabel

NAMES = ["a", "b", "c"]


def table(rows=90):
    labels = [None if n % 10 == 9 else NAMES[n % 3] for n in range(rows)]
    return Table([f"id-{n}" for n in range(rows)], [(f"text {n}",) for n in range(rows)], labels)


def shuffled(given):
    return given.take(random.Random(4).sample(range(len(given)), len(given)))


def test_so_many_of_each_class_and_all_others_left():
    given = table()
    for shots in (1, 4, 16):
        kept, left = few(given, shots, 0, NAMES)
        assert Counter(kept.labels) == dict.fromkeys(NAMES, shots)
        assert sorted(kept.ids + left.ids) == sorted(given.ids)
        again = dict(zip(given.ids, given.labels, strict=True))
        assert all(again[row] == label for row, label in zip(kept.ids, kept.labels, strict=True))


def test_the_draw_follows_seed_and_texts_not_the_order():
    kept = [set(few(some, 5, seed, NAMES)[0].ids) for some in (table(), shuffled(table())) for seed in (0, 1)]
    assert kept[0] == kept[2] and kept[1] == kept[3] and kept[0] != kept[1]


def test_more_shots_hold_the_rows_of_fewer():
    sizes = [set(few(table(), shots, 3, NAMES)[0].ids) for shots in (2, 5, 20)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_every_row_has_its_chance():
    hits = Counter(row for seed in range(200) for row in few(table(30), 3, seed, NAMES)[0].ids)
    assert len(hits) == 27 and min(hits.values()) > 30 and max(hits.values()) < 110  # 200 * 3 / 9 = 67


def test_without_classes_in_all():
    numbers = Table(["x", "y", "z"], [("1",), ("2",), ("3",)], [0.5, None, 2.0])
    kept, left = few(numbers, 2, 0, ())
    assert kept.labels == [0.5, 2.0] and left.ids == ["y"]


def test_too_few_rows_are_named():
    with pytest.raises(DataError, match=r"task.shots=31: there are only 27 rows of a to train on"):
        few(table(), 31, 0, NAMES)
    with pytest.raises(DataError, match="only 2 rows with a label"):
        few(Table(["x", "y"], [("1",), ("2",)], [0.5, 1.0]), 3, 0, ())


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_share_is_exact_and_the_new_label_another(share):
    given = table(600)
    noisy = mislabelled(given, share, 0, NAMES)
    pairs = [(old, new) for old, new in zip(given.labels, noisy.labels, strict=True) if old != new]
    labelled = sum(label is not None for label in given.labels)
    assert len(pairs) == round(share * labelled)
    assert all(old is not None and new in NAMES for old, new in pairs)
    assert noisy.ids == given.ids and noisy.texts == given.texts
    if share == 0.9:
        counts = Counter(pairs)
        assert len(counts) == 6 and min(counts.values()) > 50  # 486 / 6 = 81


def test_noise_follows_seed_and_texts_not_the_order():
    def wrong(some, seed):
        noisy = mislabelled(some, 0.2, seed, NAMES)
        return {
            (row, new)
            for row, old, new in zip(some.ids, some.labels, noisy.labels, strict=True)
            if old != new
        }

    assert wrong(table(), 1) == wrong(shuffled(table()), 1) != wrong(table(), 2)


# ---------------------------------------------------------------- through a task


@pytest.fixture
def load(tmp_path):
    """A task's corpus over 120 rows."""

    def make(kind, labels, **settings):
        path = tmp_path / "rows.csv"
        path.write_text("text,label\n" + "".join(f"text {n},{label}\n" for n, label in enumerate(labels)))
        return kind(name="t", data=Files(path=str(path)), **settings).load(
            Paths(cache=str(tmp_path / "cache"))
        )

    return make


def same(one, other):
    return one.ids.tolist() == other.ids.tolist() and np.array_equal(one.labels, other.labels)


def test_only_the_training_rows_change(load):
    labels = [NAMES[n % 3] for n in range(120)]
    whole, shot = load(SingleLabel, labels), load(SingleLabel, labels, shots=4)
    noisy, other = (
        load(SingleLabel, labels, shots=4, label_noise=0.25),
        load(SingleLabel, labels, shots=4, draw=1),
    )
    for found in (shot, noisy, other):
        assert all(same(found.splits[name], whole.splits[name]) for name in ("validation", "test"))
        assert len(found.splits["train"]) == 12
        assert len(found.left) == len(whole.splits["train"]) - 12
        assert not set(found.left) & set(found.splits["train"].texts)
    assert whole.left == []
    assert noisy.splits["train"].ids.tolist() == shot.splits["train"].ids.tolist()
    assert (noisy.splits["train"].labels != shot.splits["train"].labels).sum() == 3
    assert noisy.tables["train"].labels != shot.tables["train"].labels
    assert other.splits["train"].ids.tolist() != shot.splits["train"].ids.tolist()
    assert shot.sample(5, 0).left == shot.left


def test_kinds(load):
    binary = load(Binary, ["no", "yes"] * 60, shots=3, label_noise=0.5)
    assert len(binary.splits["train"]) == 6
    values = load(Regression, [n / 7 for n in range(120)], shots=9)
    assert len(values.splits["train"]) == 9
    sets = load(MultiLabel, ["a|b", "b", "c"] * 40, shots=9)
    assert len(sets.splits["train"]) == 9
    for kind in (Regression, MultiLabel):
        with pytest.raises(ConfigError, match="label_noise=0.1: only where a row has one class"):
            load(kind, [1.0] * 120, label_noise=0.1)
