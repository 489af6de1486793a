"""Two processes that torchrun started make the run that one process makes, and end together whatever happens."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests import forked
from tests.conftest import QUICK, TASK, WORDS
from tests.engine.distributed_checks import CUT, LONELY, OBJECTIVES, trained

from whet.cli.main import main
from whet.engine.distributed import ALONE, own_seed, share
from whet.engine.engine import Engine
from whet.engine.reduction import buckets
from whet.errors import ConfigError, RunError
from whet.evaluation.predictions import Predictions
from whet.ranks import Ranks, here
from whet.tracking.jsonl import read_metrics

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5
TIMING = ("time", "train/tokens_per_second")

# ---------------------------------------------------------------- pure parts


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_row_has_one_holder_and_all_have_equal_parts(size):
    rng = np.random.default_rng(size)
    for _ in range(200):
        lengths = rng.integers(1, 300, 60)
        rows = rng.permutation(60)[: rng.integers(1, 60)]
        parts = [share(rows, lengths, rank, size) for rank in range(size)]
        assert sorted(np.concatenate(parts)) == sorted(rows)
        counts, tokens = [len(part) for part in parts], [int(lengths[part].sum()) for part in parts]
        assert max(counts) - min(counts) <= 1
        assert max(tokens) - min(tokens) <= lengths[rows].max()
        assert all((np.diff(lengths[part]) >= 0).all() for part in parts)


def test_the_order_of_an_update_does_not_decide_who_holds_a_row():
    lengths, rows = np.arange(1, 21), np.arange(20)
    mixed = np.random.default_rng(0).permutation(rows)
    assert [share(rows, lengths, r, 3).tolist() for r in range(3)] == [
        share(mixed, lengths, r, 3).tolist() for r in range(3)
    ]


def test_seeds_differ_and_the_first_is_the_runs_own():
    seeds = [own_seed(seed, rank) for seed in range(20) for rank in range(20)]
    assert len(set(seeds)) == 400
    assert [own_seed(5, 0), own_seed(5, 3)] == [5, own_seed(5, 3)]
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([3], [[0]]),
        ([99], [[0]]),
        ([4, 6, 1], [[0, 1], [2]]),
        ([99, 1, 99], [[0], [1], [2]]),
        ([1] * 21, [[*range(10)], [*range(10, 20)], [20]]),
    ],
)
def test_buckets(sizes, expected):
    assert [list(places) for places in buckets(sizes, 10)] == expected


def test_here_reads_what_torchrun_says():
    told = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"}
    assert here(told) == Ranks() and here(told).first
    assert here({**told, "MASTER_PORT": "1"}) == Ranks(5, 8, 1, 4, launched=True)


@pytest.mark.parametrize(
    ("cores", "processes", "wanted", "threads"),
    [(8, 2, None, 4), (8, 2, "1", 4), (8, 2, "3", 3), (2, 8, None, 1), (9, 2, "", 4)],
)
def test_processes_of_a_machine_share_its_cores(cores, processes, wanted, threads):
    assert Ranks(local_size=processes).threads(cores, wanted) == threads


def test_fsdp_needs_processes(workplace, quick, capsys):
    assert main(["train", *quick, "engine.parallel=fsdp"]) == 2
    assert "engine.parallel=fsdp: shares a model among processes" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="fp32"):
        Engine(parallel="fsdp", precision="fp16", device="cpu").amp(Ranks(launched=True))


# ---------------------------------------------------------------- two processes, one object at a time


def torchrun(*arguments: str, cwd: Path, restarts: int = 0, real: bool = False) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `torchrun --nproc-per-node=2 -m …` on this machine.

    Torchrun and the processes that it starts are forks, with `real` started as a user starts them.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "-m", *arguments]
    if real:
        done = subprocess.run(
            [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
    else:
        done = forked.run(*command, cwd=cwd, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checks")
    code, _, err = torchrun("tests.engine.distributed_checks", str(folder), cwd=ROOT)
    assert code == 0, err
    return json.loads((folder / "found.json").read_text())


def test_processes_agree(found):
    told = found["agreement"]
    assert (told["most"], told["size"]) == (10, 2)
    assert told["gather"] == ["from 0", "from 1"]
    assert told["told"] == [told["first"]] * 2
    assert told["seeds"] == [7, own_seed(7, 1)]


def test_the_second_finds_what_the_first_prepared(found):
    assert found["preparing"] == [False, True]


def test_a_signal_to_one_stops_all_after_the_same_update(found):
    """Before any; before it is agreed on; then SIGTERM for both; and a notice, once."""
    heard_by_all = [False, False, int(signal.SIGTERM), True, False]
    assert found["signals"] == [heard_by_all, heard_by_all]


def test_gradients_are_summed_whoever_has_them(found):
    for mine in found["sums"]:
        for turn in mine.values():
            assert turn["ready"] == [False, True] and turn["untouched"]
            assert turn["nowhere"] and turn["cleared"]
            assert max(turn["worst"]) < 1e-6
        assert [mine[turn]["rows"] for turn in mine] == [[1, 2], [2, 3, 30, 31]]
        assert [mine[turn]["late"] for turn in mine] == [[3, 4], []]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(("name", "cut"), [("cut", CUT), ("lonely", LONELY)])
def test_updates_are_those_of_one_process(found, parallel, name, cut):
    one, two = trained(ALONE, cut), found["updates"][f"{parallel} {name}"]
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-6)
    assert two["norms"] == pytest.approx(one["norms"], abs=1e-6)
    assert (two["rows"], two["tokens"]) == (one["rows"], one["tokens"])
    assert two["weights"][0] == two["weights"][1]
    assert two["weights"][0] == pytest.approx(one["weights"][0], abs=1e-6)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_those_of_one_process(found, parallel, name):
    one, two = (
        trained(ALONE, CUT, objective=replace(OBJECTIVES[name])),
        found["objectives"][f"{parallel} {name}"],
    )
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["weights"][0] == two["weights"][1]
    assert two["weights"][0] == pytest.approx(one["weights"][0], abs=1e-5)
    assert one["weights"] != trained(ALONE, CUT)["weights"]


def test_a_loss_that_is_not_finite_anywhere_is_left_out_everywhere(found):
    told = found["not_finite"]
    left_out = [place for place, loss in enumerate(told["losses"]) if math.isnan(loss)]
    assert len(left_out) == 2  # once an epoch
    assert [facts["step"] - 1 for facts in told["facts"]] == left_out
    for facts in told["facts"]:
        assert "id-11" in facts["ids"] and len(facts["ids"]) < 8
    assert told["weights"][0] == told["weights"][1]
    assert all(map(math.isfinite, told["weights"][0]))


def test_memory_that_runs_out_in_one_process_halves_the_batches_of_all(found):
    one, two = trained(ALONE, CUT), found["memory"]
    assert (one["pieces"], two["pieces"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-6)
    assert two["weights"][0] == two["weights"][1] == pytest.approx(one["weights"][0], abs=1e-6)


def test_evaluation_gathers_every_row_once_in_order(found):
    for mine in found["evaluation"]:
        for same, shape, kind, _ in mine.values():
            assert (same, shape, kind) == (True, [57, 3], "BertForSequenceClassification")


def test_fsdp_shares_out_the_model(found):
    shares = {name: [mine[name][-1] for mine in found["evaluation"]] for name in ("ddp", "fsdp")}
    assert shares["ddp"] == [1, 1]
    assert sum(shares["fsdp"]) == pytest.approx(1) and max(shares["fsdp"]) < 0.6


def test_a_checkpoint_brings_back_each_process_and_its_random_numbers(found):
    first, second = found["resumed"]
    for parallel in ("ddp", "fsdp"):
        assert first[parallel]["same"] and second[parallel]["same"]
        assert first[parallel]["draw"] != second[parallel]["draw"]
        assert not any("module." in name or "_fsdp" in name for name in first[parallel]["names"])


# ---------------------------------------------------------------- whole runs


KEYS = [
    *[item for item in QUICK if not item.startswith(("engine.duration", "tracking"))],
    "tracking=local", "~tracking.sinks.tensorboard", "tracking.log_every=1", "engine.precision=fp32",
    "engine.batching.size=4", "engine.accumulate=2", "engine.patience=null", "engine.duration=3ep",
    "engine.checkpoint_every=4st", "optimizer.lr=3e-3", "model.dropout=0.0", "model.head_dropout=0.0",
    "+model.weights.options.vocab_size=33000",
]  # fmt: skip
"""Without dropout, the one thing that the number of processes changes; a table of more than 2^20 elements, whose
gradient goes by rows."""


@pytest.fixture(scope="module")
def place(tmp_path_factory, cache):
    """A user's folder; the whole runs of this file share it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "conf" / "task").mkdir(parents=True)
    rng, lines = np.random.default_rng(3), ["review,stars"]
    for number in range(90):
        label = "positive" if number % 2 else "negative"
        words = rng.choice(WORDS[label], rng.integers(1, 12))
        lines.append(f"a {' '.join(words)} film {number},{5 if number % 2 else 1}")
    (folder / "own.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "conf" / "task" / "mine.yaml").write_text(
        TASK.format(path=folder / "own.csv"), encoding="utf-8"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WHET_CACHE", str(cache))
        yield folder


def folder_of(place: Path, name: str) -> Path:
    return place / "outputs" / "runs" / name


def record_of(place: Path, name: str) -> dict:
    return json.loads((folder_of(place, name) / "run.json").read_text())


def log_of(place: Path, name: str) -> list[dict]:
    lines = read_metrics(folder_of(place, name) / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def spoken(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("whet: ")]


def train(place: Path, *arguments: str) -> tuple[int, str, str]:
    return torchrun("whet", "train", *KEYS, *arguments, cwd=place)


def troubled(place: Path, kind: str, *arguments: str, **settings) -> tuple[int, str, str]:
    return torchrun("tests.engine.distributed_trouble", kind, *KEYS, *arguments, cwd=place, **settings)


@pytest.fixture(scope="module")
def alone(place):
    assert main(["train", *KEYS, "name=alone"]) == 0
    return "alone"


@pytest.fixture(scope="module")
def together(place):
    """A crash in native code was seen once in hundreds of such runs: it is told with its stack, and tried again."""
    found = {}
    for name in ("ddp", "fsdp"):
        found[name] = train(place, f"name={name}", f"engine.parallel={name}")
        if "(SIGSEGV)" in found[name][2]:
            warnings.warn(f"a process crashed:\n{found[name][2]}", stacklevel=1)
            shutil.rmtree(folder_of(place, name))
            found[name] = train(place, f"name={name}", f"engine.parallel={name}")
    return found


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_make_the_run_of_one(place, alone, together, parallel):
    code, _, err = together[parallel]
    assert code == 0, err
    one, two = log_of(place, alone), log_of(place, parallel)
    assert len([line for line in one if "train/loss" in line]) == 27
    assert [list(line) for line in one] == [list(line) for line in two]
    for before, after in zip(one, two, strict=True):
        assert after == pytest.approx(before, abs=TOLERANCE), before["step"]
    for split in ("validation", "test"):
        pair = [
            Predictions.load(folder_of(place, n) / "predictions" / f"{split}.npz") for n in (alone, parallel)
        ]
        assert pair[0].ids.tolist() == pair[1].ids.tolist()
        np.testing.assert_allclose(pair[0].logits, pair[1].logits, atol=TOLERANCE)
    assert record_of(place, parallel)["processes"] == 2


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_only_the_first_process_writes(place, alone, together, parallel):
    """The same files, lines and words as of one process."""
    _, out, err = together[parallel]
    runs = [folder_of(place, name) for name in (alone, parallel)]
    files = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in runs]
    assert {name.partition("step-")[0] for name in files[0]} == {
        name.partition("step-")[0] for name in files[1]
    }
    assert not folder_of(place, f"{parallel}-2").exists()
    assert out.count("run folder") == 1 and out.count("true\\predicted") == 1
    lines = Counter(line for line in err.splitlines() if line.startswith(("data:", "audit:", parallel)))
    assert set(lines.values()) == {1} and len(lines) >= 3
    config = json.loads((runs[1] / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]


# ---------------------------------------------------------------- ends


@pytest.fixture(scope="module")
def killed(place):
    """A run that loses a process after 7 updates; and what its record says then."""
    return *troubled(place, "kill", "name=chaos", real=True), record_of(place, "chaos")


@pytest.fixture(scope="module")
def completed(place, killed, together):
    """It goes on, one process is told to stop in the 20th update, and torchrun starts them again."""
    return troubled(place, "stop", "name=chaos", "resume=auto", restarts=1)


def test_a_killed_process_ends_the_job_with_one_message(killed):
    code, _, err, record = killed
    assert code != 0
    (line,) = spoken(err)
    assert line.startswith("whet: rank 1 (process ") and "resume=auto" in line
    assert err.count("Traceback") == 1  # torchrun's own
    assert record["status"] == "failed" and "rank 1" in record["reason"]


def test_sigterm_to_one_process_saves_once_and_stops_all(completed):
    _, _, err = completed
    (line,) = spoken(err)
    assert "interrupted after step 20;" in line and err.count("SIGTERM: stopping") == 1
    assert "to go on: torchrun --nproc-per-node=2 -m whet train resume=" in err
    assert [text for text in err.splitlines() if text.startswith("resuming")] == [
        "resuming after step 4 of 27", "resuming after step 20 of 27",
    ]  # fmt: skip


def test_a_run_that_lost_a_process_ends_like_the_one_left_in_peace(completed, place):
    code, _, err = completed
    assert code == 0, err
    whole, resumed = record_of(place, "ddp"), record_of(place, "chaos")
    assert resumed["status"] == "finished"
    assert resumed["hashes"]["final"] == whole["hashes"]["final"]
    assert resumed["metrics"] == whole["metrics"]
    assert log_of(place, "chaos") == log_of(place, "ddp")


def test_another_number_of_processes_is_refused(killed, place, capsys):
    record = {**killed[-1], "name": "other"}
    shutil.copytree(folder_of(place, "chaos"), folder_of(place, "other"))
    (folder_of(place, "other") / "run.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["train", f"resume={folder_of(place, 'other')}"]) == 2
    told = capsys.readouterr().err
    assert "was trained by 2 processes; this job has 1" in told
    assert "start it with torchrun --nproc-per-node=2 -m whet train" in told
    assert record_of(place, "other") == record


def test_an_error_of_one_process_is_told_once(place):
    """A defect keeps its traceback: that of the process that met it, not those of who waited for it."""
    code, _, err = troubled(place, "error", "name=error")
    assert code != 0
    assert spoken(err) == []
    assert err.count("ValueError: only here") == 2  # the traceback, and torchrun's summary of it
    assert err.count("Traceback") == 2  # the other is torchrun's own
    assert "rank 1: ValueError: only here" in record_of(place, "error")["reason"]


@pytest.mark.parametrize("arguments", [["train", "-m", "seed=1,2"], ["predict", "run=x"]])
def test_torchrun_is_for_one_training(monkeypatch, capsys, arguments):
    from whet.cli.main import _dispatch

    told = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "x"}
    for name, value in {**told, "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match="torchrun is for one run of whet train"):
        _dispatch(arguments[0], arguments[1:])
