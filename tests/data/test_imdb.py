"""The standard halves of IMDB: the multiset difference, and the real thing."""

import pytest

from whet.data.imdb import ImdbHalves, check_half, difference
from whet.data.wheel import WheelFile
from whet.errors import DataError
from whet.paths import Paths


def test_difference_counts_repeats():
    whole = [("a", "p"), ("b", "n"), ("a", "p"), ("c", "n"), ("a", "p")]
    assert difference(whole, [("a", "p"), ("a", "p"), ("c", "n")]) == [("b", "n"), ("a", "p")]


def test_difference_refuses_rows_that_are_not_there():
    with pytest.raises(DataError, match="lacks 1 of the 2"):
        difference([("a", "p")], [("a", "p"), ("a", "n")])


def test_a_half_must_be_balanced_and_whole():
    check_half([("a", "negative"), ("b", "positive")] * 12_500, "test")
    for rows in ([("a", "negative")] * 25_000, [("a", "negative"), ("b", "positive")] * 12_499):
        with pytest.raises(DataError, match="12500 reviews of each class"):
            check_half(rows, "test")


@pytest.mark.network
def test_the_real_halves():
    from omegaconf import OmegaConf

    from whet.config import conf_dir

    data = OmegaConf.to_container(OmegaConf.load(conf_dir() / "task" / "imdb.yaml"))["data"]
    half, whole = ({k: v for k, v in data[name].items() if k != "_target_"} for name in ("half", "whole"))
    found = ImdbHalves(half=WheelFile(**half), whole=WheelFile(**whole)).read(Paths())
    for split in ("train", "test"):
        assert sorted(set(found[split]["label"])) == ["negative", "positive"]
        assert found[split]["label"][:].count("positive") == 12_500
        assert len(found[split]) == 25_000
    shared = set(found["train"]["text"]) & set(found["test"]["text"])
    assert len(shared) == 123, "the set's own repeats across its halves"
