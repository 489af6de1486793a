"""Properties of all text methods, and which rows an epoch gets."""

import logging

import numpy as np
import pytest
from tests.augmentation.material import TEXTS, around, examples, items, lexicons

from whet.augmentation.aeda import Aeda
from whet.augmentation.base import Item, copies_of
from whet.augmentation.char_noise import CharNoise
from whet.augmentation.compose import Compose
from whet.augmentation.eda import Eda
from whet.augmentation.none import NoAugmentation
from whet.augmentation.synonym import Synonym

METHODS = ("synonym", "eda", "aeda", "char_noise", "compose")
SENTENCES = [f"the film number {n} is a good story of an odd actor" for n in range(40)]


def method(name, folder, **settings):
    own = lexicons(folder)
    if name == "compose":
        return Compose(methods={"eda": Eda(**own), "aeda": Aeda()}, probabilities={"aeda": 0.5}, **settings)
    return {
        "synonym": lambda: Synonym(**own, **settings),
        "eda": lambda: Eda(**own, **settings),
        "aeda": lambda: Aeda(**settings),
        "char_noise": lambda: CharNoise(**settings),
    }[name]()


@pytest.fixture(params=METHODS)
def change(request, tmp_path):
    return method(request.param, tmp_path).open(around())


def test_the_same_seed_the_same_text(change):
    assert change(items(SENTENCES)) == change(items(SENTENCES))


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 1}, {"copy": 2}])
def test_another_seed_epoch_or_copy_another_text(change, other):
    before, after = change(items(SENTENCES)), change(items(SENTENCES, **other))
    assert sum(one != two for one, two in zip(before, after, strict=True)) > 20


def test_another_row_another_text(change):
    same = change([Item((SENTENCES[0],), 0, (1, 0, row, 1)) for row in range(40)])
    assert len(set(same)) > 5


def test_independent_of_order_and_batch(change):
    given = items(SENTENCES)
    whole = change(given)
    assert change(given[::-1])[::-1] == whole
    assert [text for item in given for text in change([item])] == whole


@pytest.mark.parametrize("name", TEXTS)
def test_awkward_texts_never_become_empty(change, name):
    made = [text for (text,) in change(items([TEXTS[name]] * 20))]
    assert all(text.strip() for text in made)
    if name in ("emoji", "punctuation"):
        assert set(made) == {TEXTS[name]}


def test_an_empty_text_stays_empty(change):
    assert change(items(["", "  "])) == [("",), ("  ",)]


def test_both_texts_of_a_pair_change_each_for_itself(change):
    pairs = [Item((SENTENCES[n], SENTENCES[n]), 0, (1, 0, n, 1)) for n in range(40)]
    made = change(pairs)
    assert all(len(texts) == 2 for texts in made)
    assert sum(one != two for one, two in made) > 10


# ---------------------------------------------------------------- rows


def test_no_augmentation_gives_the_rows_themselves():
    train = examples(SENTENCES)
    made = NoAugmentation().training(train, around(), 1, lambda rows: 3)
    assert made.examples is train
    assert made.editions == ()
    assert not NoAugmentation().by_epoch


@pytest.mark.parametrize("name", METHODS)
def test_rows_of_each_epoch(name, tmp_path):
    train, asked = examples(SENTENCES), []
    made = method(name, tmp_path, copies=2).training(train, around(), 7, lambda rows: asked.append(rows) or 3)
    assert asked == [120]  # forty rows and two copies of each
    found = made.examples
    assert len(found) == 40 + 3 * 80 == len(found.texts) == len(found.labels)
    assert [sorted(rows)[:40] for rows in made.editions] == [list(range(40))] * 3
    copies = [set(rows.tolist()) - set(range(40)) for rows in made.editions]
    assert set.union(*copies) == set(range(40, 280))
    assert sum(map(len, copies)) == 240
    for epoch, rows in enumerate(made.editions):
        change = method(name, tmp_path).open(around())
        own = [Item(train.texts[n], 0, (7, epoch, n, copy)) for copy in (1, 2) for n in range(40)]
        assert [found.texts[row] for row in rows[40:]] == change(own)
        assert [str(found.ids[row]) for row in rows] == [
            *train.ids, *(f"row-{n}#1" for n in range(40)), *(f"row-{n}#2" for n in range(40)),
        ]  # fmt: skip
        assert found.labels[rows].tolist() == train.labels.tolist() * 3
    assert found.texts[:40] == train.texts


def test_originals_may_be_left_out():
    made = Aeda(keep=False).training(examples(SENTENCES), around(), 1, lambda rows: 2)
    assert [rows.tolist() for rows in made.editions] == [list(range(40)), list(range(40, 80))]
    assert all("#" in name for name in made.examples.ids)
    assert not set(made.examples.texts) & {(text,) for text in SENTENCES}


def test_once_is_the_first_edition_in_every_epoch():
    once = Aeda(editions="once").training(examples(SENTENCES), around(), 1, lambda rows: 3)
    anew = Aeda().training(examples(SENTENCES), around(), 1, lambda rows: 3)
    assert once.editions == ()
    assert once.examples.texts == anew.examples.texts[:80]
    assert [m.by_epoch for m in (Aeda(editions="once"), Aeda())] == [False, True]


def test_labels_of_every_kind_are_repeated():
    for labels in (np.zeros((40, 3), dtype=np.float32), np.linspace(0, 1, 40, dtype=np.float32)):
        made = Aeda().training(examples(SENTENCES, labels), around(), 1, lambda rows: 1)
        assert made.examples.labels.dtype == labels.dtype
        assert np.array_equal(made.examples.labels, np.concatenate([labels, labels]))


def test_the_share_of_changed_copies_is_told(told, caplog):
    caplog.set_level(logging.INFO, "whet")
    train = examples(["good film"] * 3 + ["😀"])
    made = Aeda().training(train, around(), 1, lambda rows: 2)
    assert made.facts == {"copies": 1, "editions": 2, "changed": 0.75}
    assert told == ["augmentation: 8 copies, 75.0% of them changed"]


def test_seeds_are_of_run_epoch_row_and_copy():
    train = examples(["a", "b"])
    found = copies_of(train, 2, (5, 3))
    assert [item.key for item in found] == [(5, 3, 0, 1), (5, 3, 1, 1), (5, 3, 0, 2), (5, 3, 1, 2)]
    expected = np.random.default_rng([5, 3, 1, 2]).random(3)
    assert np.array_equal(found[-1].rng().random(3), expected)
