"""The trunk cache changes how long a run takes and nothing else; where it would, it is off and says why."""

import json
import random
import re

import numpy as np
import pytest
import torch

from whet.cli.main import main
from whet.data.batching import Batching
from whet.engine.frozen import independent, smallest

EXACT = ["engine.precision=fp32", "engine.duration=2ep", "engine.patience=null"]
ON, OFF = "trunk cache on", "trunk cache off"


@pytest.fixture
def keys(workplace, quick, monkeypatch):
    """Overrides of a run whose cache is its own, on texts of many lengths."""
    rng = random.Random(5)
    rows = [
        f"{' '.join(rng.choices(['good', 'bad', 'fine film', 'x'], k=rng.randint(1, 16)))} {n},{5 if n % 3 else 1}"
        for n in range(90)
    ]
    (workplace / "own.csv").write_text("review,stars\n" + "\n".join(rows) + "\n", encoding="utf-8")
    monkeypatch.setenv("WHET_CACHE", str(workplace / "cache"))
    return [*quick, *EXACT]


def run(workplace, keys, name, *more):
    assert main(["train", *keys, *more, f"name={name}"]) == 0
    (folder,) = [path.parent for path in workplace.rglob("run.json") if name in path.parent.name]
    return folder


def end_of(folder):
    """All that a run comes to: weights, optimizer and random numbers (by their hashes), logits, metrics."""
    record = json.loads((folder / "run.json").read_text())
    logits = [np.load(path)["logits"].tobytes() for path in sorted((folder / "predictions").glob("*.npz"))]
    return record["hashes"]["final"], logits, record["metrics"]


def cache_of(folder):
    return json.loads((folder / "run.json").read_text())["frozen"]


METHODS = {
    "probe": ["peft=linear_probe"],
    "top": ["peft=top_layers", "peft.layers=1", "engine.frozen=eval"],
    "no dropout": ["peft=top_layers", "peft.layers=1", "model.dropout=0"],
    "adapters on top": ["peft=lora", "peft.targets=[bert.encoder.layer.1.*]", "model.dropout=0"],
    "two batches an update": ["peft=linear_probe", "engine.accumulate=2", "engine.batching.size=7"],
    "eager": ["peft=linear_probe", "model.attention=eager"],
    "padded": ["peft=top_layers", "peft.layers=1", "engine.frozen=eval", "engine.batching.pad_to=90"],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_the_cache_is_the_same_run(workplace, keys, method, told):
    keys = [*keys, *METHODS[method]]
    plain = run(workplace, keys, "plain", "engine.trunk_cache=off")
    assert any(f"{OFF}: engine.trunk_cache=off" in line for line in told)
    cached = run(workplace, keys, "cached")
    assert cache_of(cached)["cache"] == "on" and any(ON in line for line in told)
    assert end_of(cached) == end_of(plain)


def test_later_runs_find_it(workplace, keys):
    """Another learning rate, batch size and seed: the states are the same."""
    keys = [*keys, "peft=linear_probe"]
    first = run(workplace, keys, "first")
    made = {path: path.stat().st_mtime_ns for path in (workplace / "cache" / "trunk").rglob("states.bin")}
    second = run(workplace, keys, "second", "optimizer.lr=1e-2", "engine.batching.pool=1", "seed=2")
    assert cache_of(second)["cache"] == "on" and end_of(first) != end_of(second)
    assert len(made) == 2, "training and validation rows"
    assert made == {
        path: path.stat().st_mtime_ns for path in (workplace / "cache" / "trunk").rglob("states.bin")
    }


@pytest.fixture
def two_threads():
    yield 2
    torch.set_num_threads(1)


def test_two_threads_change_nothing(workplace, keys, two_threads):
    keys = [*keys, "peft=linear_probe", f"engine.threads={two_threads}"]
    plain = run(workplace, keys, "plain", "engine.trunk_cache=off")
    cached = run(workplace, keys, "cached")
    assert cache_of(cached)["cache"] == "on" and end_of(cached) == end_of(plain)


def test_16_bit_runs_come_close(workplace, keys):
    keys = [*keys, "peft=linear_probe", "engine.precision=bf16"]
    plain, cached = run(workplace, keys, "plain", "engine.trunk_cache=off"), run(workplace, keys, "cached")
    assert cache_of(cached)["cache"] == "on"
    logits = [np.load(folder / "predictions" / "test.npz")["logits"] for folder in (plain, cached)]
    assert np.abs(logits[0] - logits[1]).max() < 0.02 * np.abs(logits[0]).max()


def test_a_damaged_entry_is_made_anew(workplace, keys):
    keys = [*keys, "peft=linear_probe"]
    first = run(workplace, keys, "first")
    for path in (workplace / "cache" / "trunk").rglob("states.bin"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + b"abc")
    second = run(workplace, keys, "second")
    assert end_of(second) == end_of(first)
    assert path.read_bytes() == whole


OFF_BECAUSE = {
    "dropout": (
        ["peft=top_layers", "peft.layers=1"],
        r"random numbers .*embeddings\.dropout, p=0\.1.*frozen=eval",
    ),
    "probe with dropout": (
        ["peft=linear_probe", "engine.frozen=train"],
        "random numbers .*engine.frozen=eval",
    ),
    "too large": (
        ["peft=linear_probe", "engine.trunk_cache_limit=1e-6"],
        "engine.trunk_cache_limit is 1e-06",
    ),
    "too short": (["peft=linear_probe", "engine.duration=1st"], "the run is shorter than an epoch"),
}


@pytest.mark.parametrize("case", OFF_BECAUSE)
def test_off_with_a_reason(workplace, keys, case, told):
    more, reason = OFF_BECAUSE[case]
    folder = run(workplace, keys, "run", *more)
    (line,) = [line for line in told if "frozen layers:" in line]
    assert OFF in line
    assert re.search(reason, line) and re.search(reason, cache_of(folder)["because"])
    assert not list((workplace / "cache" / "trunk").rglob("states.bin"))


def test_where_all_trains_nothing_is_said(workplace, keys, told):
    folder = run(workplace, keys, "run", "peft=none")
    assert not [line for line in told if "frozen layers" in line] and cache_of(folder) == {}


def test_rest_changes_the_outcome_where_there_is_dropout(workplace, keys):
    keys = [*keys, "peft=top_layers", "peft.layers=1"]
    ends = [end_of(run(workplace, keys, way, f"engine.frozen={way}"))[0] for way in ("train", "eval", "auto")]
    assert ends[0] != ends[1] and ends[2] == ends[0]


def test_a_probe_reads_features_without_dropout(workplace, keys):
    keys = [*keys, "peft=linear_probe"]
    ends = [end_of(run(workplace, keys, way, f"engine.frozen={way}"))[0] for way in ("train", "eval", "auto")]
    assert ends[0] != ends[1] and ends[2] == ends[1]


# ---------------------------------------------------------------- numbers


LENGTHS = np.array([3, 9, 12, 30, 31, 60, 61])


def sums(rows, width, depends):
    """Numbers of each row; `depends` adds what they may not depend on."""
    return [np.arange(LENGTHS[row]) * 0.1 + depends(len(rows), width, LENGTHS[row]) for row in rows]


@pytest.mark.parametrize(
    ("depends", "expected"),
    [
        (lambda count, width, length: 0.0, True),
        (lambda count, width, length: width % 16, False),
        (lambda count, width, length: float(width > 32), False),
        (lambda count, width, length: float(count * width < 150), False),
        (lambda count, width, length: float(count * width < 120), True),  # such batches don't occur
    ],
    ids=["never", "width", "wide", "small batches", "smaller than the smallest"],
)
def test_dependence_on_other_texts_is_found(depends, expected):
    def compute(rows, width):
        return sums(rows, width, depends)

    assert independent(compute, Batching(), LENGTHS, least=130) is expected


def test_the_fullest_texts_of_every_width_are_tried():
    """Where texts are padded to 40 and rows beyond 37 tokens differ in wider batches, few rows tell."""
    lengths = np.array([*range(1, 36), 39, 60])

    def compute(rows, width):
        return [np.full(lengths[row], float(lengths[row] > 37 and width > 40)) for row in rows]

    assert not independent(compute, Batching(pad_to=40), lengths, least=1)
    assert independent(compute, Batching(pad_to=60), lengths, least=1)


def test_wide_sums_are_split_in_small_batches_only():
    """The rule was measured with MKL's threads; here it is measured again, where it counts."""
    torch.manual_seed(0)
    rows, weight = torch.randn(2048, 1536), torch.randn(384, 1536)
    whole = torch.nn.functional.linear(rows, weight)
    least = smallest(1536)
    assert least == 193
    for count in (least, 256, 300, 512, 1000):
        assert torch.equal(torch.nn.functional.linear(rows[:count], weight), whole[:count])
