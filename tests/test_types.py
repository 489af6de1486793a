"""A length of training carries its unit, and says what to write when it can't be read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from whet.types import Duration


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("3ep", 3, "ep"),
        ("0.5ep", 0.5, "ep"),
        (" 500st ", 500, "st"),
        ("500.0st", 500, "st"),
        ("0.06", 0.06, "share"),
        (0.06, 0.06, "share"),
        (1, 1, "share"),
        (0, 0, "share"),
    ],
)
def test_what_can_be_read(text, value, unit):
    assert Duration.parse(text) == Duration(value, unit)


@pytest.mark.parametrize(
    "text", ["3", "-1ep", "1.5", "ep", "3 epochs", "1e3st", "", None, True, [3], "nan", -0.1, "-0.1"]
)
def test_the_rest_says_what_to_write(text):
    with pytest.raises(ValueError, match="500st.*3ep.*share"):
        Duration.parse(text)


def test_half_a_step_is_none():
    with pytest.raises(ValueError, match="whole"):
        Duration.parse("1.5st")


@given(st.integers(0, 10**6), st.sampled_from(["ep", "st"]))
def test_writing_and_reading_agree(value, unit):
    duration = Duration(float(value), unit)
    if value < 10**5:  # beyond, %g rounds
        assert Duration.parse(str(duration)) == duration
    assert Duration.parse(duration) is duration


@pytest.mark.parametrize(
    ("text", "steps"), [("7st", 7), ("2ep", 20), ("0.25ep", 3), ("0.1", 4), ("0", 0), ("1", 40), ("0.01", 1)]
)
def test_steps_of_ten_an_epoch_and_forty_in_all(text, steps):
    assert Duration.parse(text).steps(10, 40) == steps


def test_a_share_of_nothing_known():
    with pytest.raises(ValueError, match="st or ep"):
        Duration.parse(0.5).steps(10)


def test_pydantic_reads_it_and_reports():
    adapter = TypeAdapter(Duration)
    assert adapter.validate_json('"3ep"', strict=True) == Duration(3, "ep")
    with pytest.raises(ValidationError, match="500st"):
        adapter.validate_json('"three"', strict=True)
