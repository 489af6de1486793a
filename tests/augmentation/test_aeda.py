"""AEDA adds marks and nothing else."""

import numpy as np
import pytest
from tests.augmentation.material import TEXTS, around, items

from whet.augmentation.aeda import MARKS, Aeda, punctuated
from whet.augmentation.words import Cutter


@pytest.mark.parametrize("name", TEXTS)
def test_letters_and_their_order_stay(name):
    text = TEXTS[name]
    cut = Cutter("auto", around())
    words = cut(text)
    for seed in range(5):
        made = punctuated(words, 0.3, np.random.default_rng(seed))
        added = len(made) - len(words)
        assert (1 if len(words) else 0) <= added <= max(1, int(0.3 * len(words)))
        rest = iter(made.text())
        assert all(letter in rest for letter in text)  # what was there is a subsequence
        marks = MARKS[words.language]
        assert [word for word in made.words if word not in marks] == list(words.words)


@pytest.mark.parametrize(("rate", "most"), [(0.05, 2), (0.3, 12), (1.0, 40)])
def test_rate_is_the_most(rate, most):
    text = "word " * 40
    made = [m for (m,) in Aeda(rate=rate).open(around())(items([text] * 200))]
    counts = [sum(m.count(mark) for mark in MARKS["en"]) for m in made]
    assert min(counts) == 1
    assert most - max(counts) <= most // 20
    assert max(counts) <= most


def test_marks_of_the_language():
    change = Aeda().open(around())
    assert any(mark in change(items(["好看的电影"]))[0][0] for mark in MARKS["zh"])
    assert any(mark in change(items(["good film"]))[0][0] for mark in MARKS["en"])
