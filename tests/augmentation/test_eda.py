"""Each operation of EDA against what it may do."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.augmentation.material import LONG, TEXTS, around, items, lexicons, synonyms_of

from whet.augmentation.eda import OPERATIONS, Eda, deleted, inserted, swapped
from whet.augmentation.words import Cutter
from whet.errors import ConfigError


@pytest.fixture
def cut():
    return Cutter("auto", around())


SENTENCES = [LONG, TEXTS["plain"], TEXTS["chinese"], "good", ""]


@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("seed", range(5))
def test_a_swap_is_a_permutation(cut, text, seed):
    words = cut(text)
    made = swapped(words, 3, np.random.default_rng(seed))
    assert Counter(made.words) == Counter(words.words)
    assert made.gaps == words.gaps
    assert sum(a != b for a, b in zip(made.words, words.words, strict=True)) <= 6


def test_one_swap_moves_two_words(cut):
    words = cut("a b c d e f")
    for seed in range(20):
        made = swapped(words, 1, np.random.default_rng(seed))
        assert sum(a != b for a, b in zip(made.words, words.words, strict=True)) == 2


@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_deletion_only_removes(cut, text, share):
    words = cut(text)
    made = deleted(words, share, np.random.default_rng(1))
    rest = iter(words.words)
    assert all(word in rest for word in made.words)  # a subsequence
    assert len(made) >= min(1, len(words))
    if share == 1.0:
        assert len(made) == min(1, len(words))


def test_deletion_takes_its_share(cut):
    words = cut("word " * 2000)
    left = len(deleted(words, 0.3, np.random.default_rng(0)))
    assert abs(left - 1400) < 4 * (2000 * 0.3 * 0.7) ** 0.5


@pytest.mark.parametrize("name", ["english", "chinese"])
@pytest.mark.parametrize("count", [1, 5])
def test_insertion_adds_synonyms_of_words_that_are_there(cut, tmp_path, name, count):
    words = cut({"english": TEXTS["plain"], "chinese": TEXTS["chinese"]}[name])
    known = lexicons(tmp_path)[name].open(around().paths)
    for seed in range(10):
        made = inserted(words, count, known, np.random.default_rng(seed))
        rest = iter(made.words)
        assert all(word in rest for word in words.words)
        added = Counter(made.words) - Counter(words.words)
        assert added.total() == count
        present = {word.lower() for word in words.words}
        assert all(synonyms_of(word.lower()) & present for word in added)


def test_nothing_to_insert(cut, tmp_path):
    known = lexicons(tmp_path)["english"].open(around().paths)
    words = cut("nobody knows these")
    assert inserted(words, 3, known, np.random.default_rng(0)) == words


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_alpha_of_0_leaves_an_operation_out(tmp_path, name):
    """With one operation left every copy is made by it."""
    others = {other: 0.0 for other in OPERATIONS if other != name}
    text = "the film is a good story of an odd actor and a bad one"
    change = Eda(**lexicons(tmp_path), rate=0.2, **others).open(around())
    before = Counter(text.split())
    for (made,) in change(items([text] * 15)):
        after = Counter(made.split())
        gone, new = (before - after).total(), (after - before).total()
        expected = {
            "replacement": gone == new == 3,
            "insertion": (gone, new) == (0, 3),
            "swap": (gone, new) == (0, 0) and made != text,
            "deletion": new == 0,
        }
        assert expected[name], made


def test_alphas_of_their_own(tmp_path):
    only = dict.fromkeys(("replacement", "swap", "deletion"), 0.0)
    text = "the film is a good story of an odd actor"
    for alpha, more in ((None, 1), (0.5, 5), (1.0, 10)):
        change = Eda(**lexicons(tmp_path), **only, insertion=alpha).open(around())
        assert {len(made.split()) for (made,) in change(items([text] * 5))} == {10 + more}


def test_all_four_take_part_about_equally(tmp_path):
    text = "film story good bad odd actor " * 4
    before = Counter(text.split())
    seen = Counter()
    for (made,) in Eda(**lexicons(tmp_path)).open(around())(items([text] * 800)):
        after = Counter(made.split())
        gone, new = (before - after).total(), (after - before).total()
        seen[
            "swap"
            if not gone and not new
            else "insertion"
            if not gone
            else "deletion"
            if not new
            else "other"
        ] += 1
    # a replacement by a word that is there, too, counts as "other" all the same: it takes one and gives one
    assert abs(seen["insertion"] - 200) < 4 * (800 * 0.25 * 0.75) ** 0.5
    assert min(seen.values()) > 120


def test_no_operation_at_all_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="replacement=0.0: 0 for every operation"):
        Eda(**lexicons(tmp_path), **dict.fromkeys(OPERATIONS, 0.0))


@given(st.text(alphabet="ab .好看", max_size=20), st.integers(0, 5))
@settings(max_examples=60)
def test_any_text_survives_swap_and_deletion(text, seed):
    from whet.augmentation.words import of_pieces

    words = of_pieces(list(text))
    for made in (
        swapped(words, 2, np.random.default_rng(seed)),
        deleted(words, 0.7, np.random.default_rng(seed)),
    ):
        assert bool(made.text().strip()) == bool(text.strip())
