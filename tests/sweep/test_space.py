"""Ranges as Hydra's grammar writes them become the distributions that Optuna means by them."""

import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution as Choice
from optuna.distributions import FloatDistribution as Float
from optuna.distributions import IntDistribution as Int

from whet.errors import ConfigError
from whet.sweep.space import as_text, grid, key_of, overrides_of, own_ranges, read_space


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("interval(0, 1)", Float(0, 1)),
        ("int(interval(0, 9))", Int(0, 9)),
        ("interval(0.0, 1)", Float(0, 1)),
        ("interval(1e-5, 1e-3)", Float(1e-5, 1e-3)),
        ("tag(log, interval(1e-5, 1e-3))", Float(1e-5, 1e-3, log=True)),
        ("tag(log, int(interval(1, 64)))", Int(1, 64, log=True)),
        ("int(interval(1.0, 64.0))", Int(1, 64)),
        ("range(1, 9)", Int(1, 9)),
        ("range(2, 10, step=4)", Int(2, 10, step=4)),
        ("range(-5.5, 5.5, step=0.5)", Float(-5.5, 5.5, step=0.5)),
        ("tag(log, range(1, 8))", Int(1, 8, log=True)),
        ("choice(-5, 0, 5)", Choice([-5, 0, 5])),
        ("choice(a, true, 1.5)", Choice(["a", True, 1.5])),
        ("a,b", Choice(["a", "b"])),
    ],
)
@pytest.mark.parametrize("where", ["command line", "config"])
def test_ranges(written, expected, where):
    if where == "config" and written == "a,b":
        written = ["a", "b"]
    space = read_space({"x": written}, []) if where == "config" else read_space({}, [f"x={written}"])
    assert space.searched == {"x": expected}
    assert space.fixed == ()


def test_shuffled_range_is_a_choice_of_its_values():
    (found,) = read_space({}, ["x=shuffle(range(1, 4))"]).searched.values()
    assert sorted(found.choices) == [1, 2, 3]


def test_the_command_line_has_the_last_word():
    space = read_space(
        {"x": "interval(0.0, 1.0)", "y": "choice(1, 2)", "+z": "interval(0, 3)"},
        ["x=0.5", "y=interval(0.0,2.0)", "model=tiny", "~gone", "++new.key='a b'"],
    )
    assert space.searched == {"y": Float(0, 2), "+z": Float(0, 3)}
    assert space.fixed == ("x=0.5", "model=tiny", "~gone", "++new.key='a b'")
    assert space.written == {"y": "interval(0.0,2.0)", "+z": "interval(0, 3)"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("x=interval(1, 0)", "x=interval"),
        ("x=interval(0, 1", "not a range"),
        ("x=tag(lgo, interval(1, 9))", "unknown tag lgo"),
        ("x=tag(log, interval(0.0, 1.0))", "x=tag(log"),
        ("x=tag(log, range(1, 9, step=2))", "no step"),
    ],
)
def test_bad_ranges_are_one_clear_error(line, told):
    with pytest.raises(ConfigError, match="^x") as caught:
        read_space({}, [line])
    assert told in str(caught.value)


def test_a_grid_is_every_combination():
    space = read_space({}, ["a=choice(x,y)", "b=range(1,5,step=2)", "c=range(0.0,1.0,step=0.5)"]).searched
    expected = [{"a": a, "b": b, "c": c} for a in "xy" for b in (1, 3, 5) for c in (0.0, 0.5, 1.0)]
    assert grid(space) == expected
    with pytest.raises(ConfigError, match="a grid needs choices"):
        grid(read_space({}, ["x=interval(0.0,1.0)"]).searched)
    with pytest.raises(ConfigError, match="at most 100,000"):
        grid(read_space({}, [f"{name}=range(1,999)" for name in "abc"]).searched)


def test_values_as_overrides():
    """What is written is what Hydra reads back."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for value in (None, True, False, 3, -2.5, 1e-05, "text", "'a b'"):
        override = OverridesParser.create().parse_override(f"x={as_text(value)}")
        assert override.value() == (value if value != "'a b'" else override.value())
    assert overrides_of({"optimizer.lr": 1e-05, "lora:peft.r": 8}) == ["optimizer.lr=1e-05", "peft.r=8"]
    assert key_of("lora:peft.r") == "peft.r"
    assert key_of("+x") == "+x"


def test_ranges_that_a_choice_brings():
    config = OmegaConf.create(
        {"peft": {"_space_": {"r": "choice(4, 8)", "/optimizer.lr": "interval(0.0, 1.0)"}}}
    )
    choices = {"peft": "lora", "model": "tiny"}
    assert own_ranges(config, ["peft"], choices) == {
        "lora:peft.r": ("peft.r", "choice(4, 8)"),
        "lora:optimizer.lr": ("optimizer.lr", "interval(0.0, 1.0)"),
    }
    assert own_ranges(config, [], choices) == {}
    assert own_ranges(OmegaConf.create({"peft": {}}), ["peft"], choices) == {}
    with pytest.raises(ConfigError, match="did you mean peft"):
        own_ranges(config, ["pefd"], choices)
