"""Words and settings of commands without a config."""

from __future__ import annotations

from typing import Literal

import pytest

from whet.cli.words import call, completions, help_text
from whet.errors import ConfigError
from whet.types import PositiveInt


def sample(
    *,
    words: list[str],
    columns: list[str] | None = None,
    n: PositiveInt = 3,
    way: Literal["up", "down"] = "up",
):
    """Say what was given.

    Args:
        columns: names, in this order
            or another.
        n: how many.

    Raises:
        ConfigError: never.
    """
    return words, columns, n, way


def bare(*, live: bool = False):
    """No words."""
    return live


def test_words_and_settings():
    assert call(sample, ["show", "a/b", "columns=[x,validation/accuracy]", "n=5", "way=down"]) == (
        ["show", "a/b"], ["x", "validation/accuracy"], 5, "down",
    )  # fmt: skip
    assert call(sample, []) == ([], None, 3, "up")
    assert call(bare, ["live=true"]) is True
    assert call(bare, ["live=true", "+debug=trace"]) is True, "which asks for tracebacks"


@pytest.mark.parametrize(
    ("function", "arguments", "told"),
    [
        (sample, ["colums=[a]"], "did you mean columns?"),
        (sample, ["n=0"], "n=0"),
        (sample, ["n=1", "n=2"], "given twice"),
        (sample, ["way=sideways"], "way=sideways"),
        (sample, ["words=[a]"], "words"),
        (sample, ["columns=[a"], "columns"),
        (bare, ["live"], "key=value"),
    ],
)
def test_wrong_input_is_named(function, arguments, told):
    with pytest.raises(ConfigError, match=r"(?s).*" + told.replace("?", r"\?")):
        call(function, arguments)


def test_a_list_of_strings_takes_any_sign():
    def given(text):
        return call(sample, [f"columns={text}"])[1]

    assert given("[optimizer.lr>1e-4,task.name!=x]") == ["optimizer.lr>1e-4", "task.name!=x"]
    assert given("peft=lora") == ["peft=lora"], "one needs no brackets"
    assert given("""['a,b', "c'd", name~=[x,y]{1,2}]""") == ["a,b", "c'd", "name~=[x,y]{1,2}"]
    assert given("[1,2]") == ["1", "2"]
    assert given("[]") == [] and given("null") is None
    for text in ("[a", "[a(]", "['a]", "[a]b"):
        with pytest.raises(ConfigError, match="isn't closed"):
            given(text)


def test_help_comes_from_the_signature():
    text = help_text(sample, "usage: whet sample", "whet sample n=4")
    assert "Say what was given." in text
    assert "columns=null  names, in this order or another." in text
    assert "n=3  how many." in text and "way=up" in text
    assert "words" not in text and "ConfigError" not in text
    assert text.endswith("  whet sample n=4")


def test_completions():
    assert completions(sample, "") == ["columns=", "n=", "way="]
    assert completions(sample, "w") == ["way="]
    assert completions(sample, "way=") == ["way=up ", "way=down "]
    assert completions(bare, "live=t") == ["live=true "]
    assert completions(bare, "dead=t") == []
