"""Synonyms against the files they come from."""

import pytest
from tests.conftest import WORDS

from whet.config import compose, part
from whet.errors import DataError
from whet.lexicon.base import Lexicon, grouped
from whet.lexicon.cilin import of_one_subject
from whet.lexicon.omw import meanings
from whet.lexicon.own import Own
from whet.lexicon.wordnet import exceptions, form_of, inflect, tagged_uses
from whet.paths import Paths

CILIN = ["Aa01A01= 人 士 人物", "Aa01A02# 手 口", "Ba01A01= 物 东西", "Ed01A01= 好 士", "Ee01A01@ 独"]
TABLE = [
    "# Chinese Open Wordnet\tcmn",
    "00000001-n\tcmn:lemma\t电影",
    "00000001-n\tcmn:lemma\t影+片",
    "00000002-a\tcmn:lemma\t好",
    "00000003-s\tcmn:lemma\t好",
    "00000002-a\tcmn:lemma\t良",
    "00000004-v\tcmn:lemma\t喜欢",
    "00000005-n\tcmn:lemma\t喜欢",
    "00000004-v\tcmn:lemma\t爱",
    "00000001-n\tcmn:def\t不是词",
]


def test_a_word_of_several_groups_has_the_synonyms_of_all():
    look = grouped([["a", "b"], ["b", "c"], ["d"]])
    assert [look(word) for word in "abcdx"] == [("b",), ("a", "c"), ("b",), (), ()]


def test_cilin_takes_equal_meanings_of_words_of_one_subject():
    assert list(of_one_subject(CILIN)) == [["人", "人物"], ["物", "东西"], ["好"]]


def test_omw_takes_words_of_one_part_of_speech():
    assert list(meanings(TABLE)) == [["电影", "影片"], ["好", "良"], ["好"], ["爱"], []]


def test_a_file_of_your_own(tmp_path):
    (tmp_path / "mine.txt").write_text(
        "# films\nFilm movie  flick\n\ngood fine # adjectives\n", encoding="utf-8"
    )
    (tmp_path / "stop.txt").write_text("The\n a \n", encoding="utf-8")
    paths = Paths(cache=str(tmp_path))
    own = Own(path=str(tmp_path / "mine.txt"), stop=str(tmp_path / "stop.txt")).open(paths)
    assert own.synonyms("film") == ("flick", "movie")
    assert own.synonyms("adjectives") == ()
    assert own.stop >= {"the", "a"}
    assert Own(path=str(tmp_path / "mine.txt")).open(paths).stop == frozenset()
    with pytest.raises(DataError, match="path=nowhere"):
        Own(path="nowhere").open(paths)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 coffee")
    with pytest.raises(DataError, match="is not UTF-8"):
        Own(path=str(tmp_path / "latin.txt")).open(paths)


VERBS = {
    "give": ["gave", "given"],
    "have": ["had", "has", "having"],
    "stop": ["stopped", "stopping"],
    "make": ["made"],
}


@pytest.mark.parametrize(
    ("word", "base", "form"),
    [
        ("stopping", "stop", "ing"),
        ("stopped", "stop", "ed"),
        ("stops", "stop", "s"),
        ("stop", "stop", "base"),
        ("made", "make", "ed"),
        ("gave", "give", None),
        ("giving", "give", "ing"),
        ("had", "have", "ed"),
        ("has", "have", "s"),
        ("watched", "watch", "ed"),
    ],
)
def test_forms_of_verbs(word, base, form):
    assert form_of(word, base, "v", VERBS) == form


@pytest.mark.parametrize(
    ("lemma", "form", "made"),
    [
        ("watch", "s", "watches"),
        ("try", "s", "tries"),
        ("play", "s", "plays"),
        ("try", "ed", "tried"),
        ("love", "ed", "loved"),
        ("love", "ing", "loving"),
        ("see", "ing", "seeing"),
        ("stop", "ing", "stopping"),
        ("stop", "ed", "stopped"),
        ("have", "s", "has"),
        ("make", "ed", "made"),
        ("give", "ed", None),
        ("give", "s", "gives"),
        ("walk", "base", "walk"),
    ],
)
def test_forms_that_are_made(lemma, form, made):
    assert inflect(lemma, form, "v", VERBS) == made


def test_plurals(tmp_path):
    (tmp_path / "noun.exc").write_text("children child\nmen man\naxes ax axe\n", encoding="utf-8")
    nouns = exceptions(tmp_path / "noun.exc")
    assert nouns["axe"] == ["axes"]
    assert [inflect(word, "s", "n", nouns) for word in ("child", "kid", "story", "box")] == [
        "children", "kids", "stories", "boxes",
    ]  # fmt: skip
    assert form_of("children", "child", "n", nouns) == "s"
    assert form_of("better", "good", "a", {}) is None


def test_uses_of_all_meanings_and_of_adjectives_around_others_count(tmp_path):
    lines = [
        "any%5:00:00:some(a):00 1 53",
        "any%4:02:00:: 1 4",
        "blue%3:00:01:: 1 60",
        "blue%5:00:00:sad:00 2 13",
    ]
    (tmp_path / "cntlist.rev").write_text("\n".join(lines) + "\n", encoding="utf-8")
    counted = {("any", "a"): 53, ("any", "r"): 4, ("blue", "a"): 73}
    assert tagged_uses(tmp_path / "cntlist.rev") == counted


# ---------------------------------------------------------------- the real ones


def opened(name, downloads):
    config = compose("train", ["augmentation=synonym", f"lexicon@augmentation.chinese={name}"])
    lexicon = part(config["augmentation"]["chinese"], Lexicon, "augmentation.chinese")
    return lexicon, lexicon.open(Paths(cache=str(downloads)))


@pytest.mark.network
def test_wordnet(downloads):
    lexicon, known = opened("wordnet", downloads)
    reader, senses = known.synonyms.reader, known.synonyms.senses
    assert (senses, lexicon.agreement) == (1, 0.75)
    words = [
        "film",
        "films",
        "movie",
        "story",
        "actors",
        "dreadful",
        "terribly",
        "loved",
        "children",
        "begins",
        "quickly",
        "boredom",
    ]
    shown = {word: known.synonyms(word) for word in [*words, *WORDS["positive"], *WORDS["negative"]]}
    assert sum(map(bool, shown.values())) > 12
    for word, others in shown.items():
        for other in others:  # some sense has both, by NLTK's own look-up of forms
            both = set(reader.synsets(word)) & set(reader.synsets(other))
            assert both, (word, other)
            assert {s.pos().replace("s", "a") for s in both} & {
                s.pos().replace("s", "a") for s in reader.synsets(word)
            }
    assert set(known.synonyms("films")) >= {"movies", "pictures"}
    assert "gave" not in known.synonyms("gives")
    assert {"boring", "left", "bigger", "gave", "qwxyz"} & {
        w for w in ("boring", "left", "bigger", "gave", "qwxyz") if known.synonyms(w)
    } == set()
    assert {"not", "the", "no"} <= known.stop
    assert known.synonyms("story") != () == known.synonyms("watch")
    lexicon.agreement, lexicon.senses = 0.3, 3
    wider = lexicon.open(Paths(cache=str(downloads)))
    assert "acoustic" not in wider.synonyms("acoustics"), "that is another word's meaning"
    assert set(wider.synonyms("film")) > set(known.synonyms("film"))
    assert "enjoy" in wider.synonyms("love")


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "word", "other"), [("cilin", "电影", "影视"), ("omw", "电影", "影片"), ("cilin", "美丽", "漂亮")]
)
def test_chinese(downloads, name, word, other):
    _, known = opened(name, downloads)
    assert other in known.synonyms(word)
    assert word in known.synonyms(other)
    assert word not in known.synonyms(word)
    assert ("的" in known.stop) == (name == "cilin")
