"""A run that was stopped anywhere goes on to exactly the same end: weights, optimizer, log."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from tests import forked
from tests.conftest import QUICK, at_work

from whet.cli.main import main
from whet.engine.checkpoint import Checkpoints, damage
from whet.engine.saving import Save
from whet.evaluation.predictions import Predictions
from whet.tracking.jsonl import read_metrics

TIMING = ("time", "train/tokens_per_second")


KEYS = [
    *[item for item in QUICK if not item.startswith(("engine.duration", "tracking"))],
    "tracking=local", "~tracking.sinks.tensorboard", "tracking.sinks.console.progress=off", "tracking.log_every=3",
    "engine.duration=5ep",
    "engine.batching.size=4", "engine.accumulate=2", "engine.evaluate_every=4st", "engine.patience=4",
    "engine.checkpoint_every=3st", "engine.precision=fp32", "optimizer.lr=3e-3",
]  # fmt: skip
"""Two accumulated micro-batches an update, dropout on, a schedule that falls, a log line each update."""


@pytest.fixture
def keys():
    return list(KEYS)


def folder_of(workplace: Path, name: str) -> Path:
    return workplace / "outputs" / "runs" / name


def log_of(folder: Path) -> list[dict]:
    """metrics.jsonl without what a clock says."""
    return [
        {k: v for k, v in line.items() if k not in TIMING} for line in read_metrics(folder / "metrics.jsonl")
    ]


def end_of(folder: Path) -> tuple:
    """All that a finished run says: weights, logits, log, figures."""
    weights = next((folder / "model").glob("*.safetensors"))
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    return (
        hashlib.sha256(weights.read_bytes()).hexdigest(),
        Predictions.load(folder / "predictions" / "test.npz").logits.tobytes(),
        Predictions.load(folder / "predictions" / "validation.npz").logits.tobytes(),
        log_of(folder), record["metrics"], record["best"], record["steps"], record["hashes"]["final"],
    )  # fmt: skip


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


@pytest.fixture
def kill_at(monkeypatch):
    """Make the run die after so many updates (no handler, no farewell), once."""
    from whet.engine.step import Stepper

    def arm(step: int) -> None:
        whole = Stepper.update

        def update(self, update):
            if update.step == step:
                monkeypatch.setattr(Stepper, "update", whole)
                raise Killed
            return whole(self, update)

        monkeypatch.setattr(Stepper, "update", update)

    return arm


def train(*arguments: str) -> int:
    return main(["train", *arguments])


def killed_run(workplace: Path, keys: list[str], name: str, kill_at, step: int, *more: str) -> Path:
    kill_at(step)
    with pytest.raises(Killed):
        train(*keys, f"name={name}", *more)
    return folder_of(workplace, name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """How the uninterrupted run ends."""
    with at_work(tmp_path_factory.mktemp("whole"), cache) as place:
        assert train(*KEYS, "name=whole") == 0
    return end_of(folder_of(place, "whole"))


def test_stopped_anywhere_ends_the_same(workplace, keys, whole, kill_at):
    """Before the first checkpoint, on and between checkpoints and evaluations, at epoch ends, at the end."""
    for step in (1, 4, 5, 9, 13):
        folder = killed_run(workplace, keys, f"k{step}", kill_at, step)
        assert train(f"resume={folder}") == 0
        assert end_of(folder) == whole, step


def test_stopped_while_concluding_ends_the_same(workplace, keys, whole, monkeypatch):
    """Again and again after the last update, each time later: the report is written once, however often it was begun."""
    from whet.engine import train as story

    folder = folder_of(workplace, "late")
    command = [*keys, "engine.pictures=true", "name=late"]
    for owner, part in (
        (story.artifact, "export"), (story, "compare_reloaded"), (story, "_judge"), (story, "_curves"),
    ):  # fmt: skip
        inner, began = getattr(owner, part), []

        def dying(*arguments, inner=inner, began=began):
            inner(*arguments)
            began.append(True)
            raise Killed

        monkeypatch.setattr(owner, part, dying)
        with pytest.raises(Killed):
            train(*command)
        assert began, part
        monkeypatch.setattr(owner, part, inner)
        command = [f"resume={folder}"]
    assert train(*command) == 0
    assert end_of(folder) == whole


def test_stopped_in_the_evaluation_that_follows_an_interruption(workplace, keys, whole, monkeypatch):
    """The checkpoint is older than what was logged of its own update, which is told once all the same."""
    from whet.engine.step import Stepper

    inner = Stepper.update

    def update(self, update):
        result = inner(self, update)
        if update.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(Stepper, "update", update)
    assert train(*keys, "name=stopped") == 143
    monkeypatch.setattr(Stepper, "update", inner)
    folder = folder_of(workplace, "stopped")
    assert [sorted(line) for line in log_of(folder) if line["step"] == 4] == []
    save = Save.on_evaluation

    def dying(self, state, metrics, predictions):
        raise Killed

    for _ in range(2):
        monkeypatch.setattr(Save, "on_evaluation", dying)
        with pytest.raises(Killed):
            train(f"resume={folder}")
        assert len([line for line in log_of(folder) if line["step"] == 4]) == 2
    monkeypatch.setattr(Save, "on_evaluation", save)
    assert train(f"resume={folder}") == 0
    assert end_of(folder) == whole


def test_stopped_again_and_again(workplace, keys, whole, kill_at):
    folder = killed_run(workplace, keys, "again", kill_at, 4)
    for step in (5, 7, 10):
        kill_at(step)
        with pytest.raises(Killed):
            train(f"resume={folder}")
    assert train(f"resume={folder}") == 0
    assert end_of(folder) == whole
    assert len(json.loads((folder / "run.json").read_text())["resumed"]) == 4


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adafactor"])
def test_every_optimizer(workplace, keys, kill_at, optimizer):
    mine = [*[item for item in keys if not item.startswith("optimizer")], f"optimizer={optimizer}"]
    assert train(*mine, "name=whole") == 0
    folder = killed_run(workplace, mine, "killed", kill_at, 7)
    assert train(f"resume={folder}") == 0
    assert end_of(folder) == end_of(folder_of(workplace, "whole"))


def test_auto_starts_anew_where_nothing_fits(workplace, keys, kill_at):
    folder = killed_run(workplace, keys, "killed", kill_at, 7)
    assert train(*keys, "seed=2", "resume=auto", "name=other") == 0
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert json.loads((folder_of(workplace, "other") / "run.json").read_text())["seed"] == 2


def test_auto_goes_on_whatever_changes_no_number(workplace, keys, whole, kill_at):
    folder = killed_run(workplace, keys, "killed", kill_at, 7, "engine.on_save_error=stop")
    assert train(*keys, "resume=auto", "engine.keep=1", "name=killed", "tags=[again]") == 0
    assert end_of(folder) == whole
    assert [path.name for path in folder.parent.iterdir()] == ["killed"]


def test_auto_takes_the_newest_by_time_not_by_name(workplace, keys, kill_at):
    older, newer = (killed_run(workplace, keys, name, kill_at, 7) for name in ("zebra", "ant"))
    record = json.loads((older / "run.json").read_text())
    (older / "run.json").write_text(json.dumps({**record, "started": "2001-01-01T00:00:00+00:00"}))
    assert train(*keys, "resume=auto") == 0
    assert json.loads((newer / "run.json").read_text())["status"] == "finished"
    assert json.loads((older / "run.json").read_text())["status"] == "failed"


# ------------------------------------------------------------------ damage


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place // 8 % len(data)] ^= 1 << (place % 8)
    path.write_bytes(data)


def wound(path: Path, how: str, rng: random.Random) -> None:
    if how == "flip":
        flip(path, rng.randrange(path.stat().st_size * 8))
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    else:
        path.unlink()


def test_damage_is_named_and_the_previous_checkpoint_used(workplace, keys, whole, kill_at, told):
    """Every file, the kinds of damage in turn; `make chaos` tries all."""
    folder = killed_run(workplace, keys, "killed", kill_at, 10)
    newest = Checkpoints(folder / "checkpoints").at(9)
    files = sorted(path.name for path in newest.iterdir())
    assert len(files) == 5
    rng = random.Random(0)
    for name, how in zip(files, itertools.cycle(("flip", "cut", "delete"))):
        copy = folder_of(workplace, f"{how}-{name}")
        shutil.copytree(folder, copy)
        wound(copy / "checkpoints" / newest.name / name, how, rng)
        told.clear()
        assert train(f"resume={copy}") == 0
        assert any("step-0000009 is not used" in line for line in told)
        assert end_of(copy) == whole, name


def test_every_flipped_bit_is_found(workplace, keys, kill_at):
    folder = killed_run(workplace, keys, "killed", kill_at, 4)
    place = Checkpoints(folder / "checkpoints").at(3)
    rng = random.Random(1)
    assert damage(place) is None
    for path in sorted(place.iterdir()):
        kept = path.read_bytes()
        for _ in range(12):
            flip(path, rng.randrange(len(kept) * 8))
            assert damage(place) is not None, path.name
            path.write_bytes(kept)
    assert damage(place) is None


def test_all_checkpoints_damaged_starts_from_the_beginning(workplace, keys, whole, kill_at):
    folder = killed_run(workplace, keys, "killed", kill_at, 10)
    for path in (folder / "checkpoints").glob("step-*/state.json"):
        path.unlink()
    assert train(f"resume={folder}") == 0
    assert end_of(folder) == whole


def test_half_written_checkpoints_are_never_seen(workplace, keys, whole, kill_at, monkeypatch):
    """Die within a save; `make chaos` tries every file boundary."""
    from whet.engine import checkpoint

    sync = checkpoint._sync
    for boundary in (0, 7):
        calls = iter(range(10_000))

        def fail(path, calls=calls, boundary=boundary):
            if next(calls) == 7 + boundary:  # within the second save
                raise Killed
            sync(path)

        monkeypatch.setattr(checkpoint, "_sync", fail)
        with pytest.raises(Killed):
            train(*keys, f"name=b{boundary}")
        monkeypatch.setattr(checkpoint, "_sync", sync)
        folder = folder_of(workplace, f"b{boundary}")
        assert train(f"resume={folder}") == 0
        assert end_of(folder) == whole, boundary


def test_a_full_disk_keeps_the_last_good_checkpoint(workplace, keys, monkeypatch, told):
    save = Checkpoints.save

    def full(self, step, write):
        if step in (6, 8, 9):
            raise OSError(28, "No space left on device")
        return save(self, step, write)

    monkeypatch.setattr(Checkpoints, "save", full)
    assert train(*keys, "name=on") == 0
    told = [line for line in told if "can't be written" in line]
    assert [line.split("step ")[1].split()[0] for line in told] == ["6", "8", "9"]
    assert json.loads((folder_of(workplace, "on") / "run.json").read_text())["best"]["step"] not in (6, 8, 9)
    assert train(*keys, "name=off", "engine.on_save_error=stop") == 1
    record = json.loads((folder_of(workplace, "off") / "run.json").read_text())
    assert (record["status"], "step 6" in record["reason"]) == ("failed", True)


def test_keep_limits_the_checkpoints(workplace, keys, kill_at):
    for keep in (1, 3):
        folder = killed_run(workplace, keys, f"keep{keep}", kill_at, 11, f"engine.keep={keep}")
        found = Checkpoints(folder / "checkpoints")
        states = json.loads((found.at(found.steps()[-1]) / "state.json").read_text())["state"]
        assert set(found.steps()) == {*[3, 4, 6, 8, 9][-keep:], states["best_step"]}


# ------------------------------------------------------------------ what may differ


def test_overrides_that_change_the_run_are_refused(workplace, keys, kill_at, capsys):
    folder = killed_run(workplace, keys, "killed", kill_at, 4)
    for override, told in (
        ("optimizer.lr=1e-5", "optimizer.lr=1e-05: would change the run, which has 0.003"),
        ("seed=5", "seed=5: would change the run"),
        ("peft=lora", "peft._target_=whet.peft.lora.lora: would change the run"),
        ("engine.duration=9ep", "engine.duration=9ep: would change the run"),
    ):
        assert train(f"resume={folder}", override) == 2
        assert told in capsys.readouterr().err


def test_trackers_may_differ(workplace, keys, kill_at):
    folder = killed_run(workplace, keys, "killed", kill_at, 4)
    assert train(f"resume={folder}", "tracking=none") == 0


def test_what_may_differ_takes_effect(workplace, keys, kill_at, tmp_path):
    """An override that is accepted is not ignored."""
    folder = killed_run(workplace, keys, "killed", kill_at, 4)
    kill_at(11)
    cache = tmp_path / "another-cache"
    with pytest.raises(Killed):
        train(
            f"resume={folder}",
            "engine.keep=1",
            "engine.checkpoint_every=5st",
            f"paths.cache={cache}",
            "tracking=none",
        )
    found = Checkpoints(folder / "checkpoints")
    states = json.loads((found.at(found.steps()[-1]) / "state.json").read_text())["state"]
    assert set(found.steps()) == {10, states["best_step"]}
    assert any(cache.iterdir())
    assert max(line["step"] for line in read_metrics(folder / "metrics.jsonl")) == 4


def test_stopped_while_tidying_up_is_finished(workplace, keys, whole, monkeypatch):
    """The training state goes only when the run is on record as finished."""

    def dying(self, *arguments):
        raise Killed

    monkeypatch.setattr(Checkpoints, "finish", dying)
    with pytest.raises(Killed):
        train(*keys, "name=tidy")
    assert end_of(folder_of(workplace, "tidy")) == whole
    assert train(f"resume={folder_of(workplace, 'tidy')}") == 2


def test_changed_data_is_refused(workplace, keys, kill_at, capsys):
    folder = killed_run(workplace, keys, "killed", kill_at, 4)
    text = (workplace / "own.csv").read_text()
    (workplace / "own.csv").write_text(text.replace("film 10,", "movie 10,"))
    assert train(f"resume={folder}") == 2
    assert "rows aren't those of the run any more" in capsys.readouterr().err


def test_what_can_not_go_on(workplace, keys, capsys):
    assert train("resume=outputs/runs/nothing") == 2
    assert train(*keys, "engine.duration=1st", "name=done") == 0
    assert train(f"resume={folder_of(workplace, 'done')}") == 2
    assert "is finished" in capsys.readouterr().err
    assert train("-m", f"resume={folder_of(workplace, 'done')}", "seed=1,2") == 2


def test_a_finished_run_keeps_no_training_state(workplace, keys):
    assert train(*keys, "name=done") == 0
    found = Checkpoints(folder_of(workplace, "done") / "checkpoints")
    assert len(found.steps()) == 1
    place = found.at(found.steps()[0])
    assert damage(place) is None
    assert not (place / "training.safetensors").exists()


# ------------------------------------------------------------------ signals and real processes


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


LONG = [*KEYS, "engine.duration=100st", "engine.patience=null", "engine.evaluate_every=50st"]


@pytest.fixture(scope="module")
def long(tmp_path_factory, cache):
    """How a run ends that goes on for long enough to be hit."""
    with at_work(tmp_path_factory.mktemp("long"), cache) as place:
        assert train(*LONG, "name=whole") == 0
    return end_of(folder_of(place, "whole"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_stop_between_updates(workplace, long, number, code):
    process = forked.start("-m", "whet", "train", *LONG, "name=sig")
    folder = folder_of(workplace, "sig")
    wait_for(lambda: (folder / "checkpoints").is_dir() and Checkpoints(folder / "checkpoints").steps())
    process.send_signal(number)
    assert process.wait(60) == code, process.err
    assert f"whet train resume={folder}" in process.err
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert train(f"resume={folder}") == 0
    assert end_of(folder) == long


def test_chaos_in_short(tmp_path):
    """A few runs of every kind of `make chaos`, each killed or damaged for real."""
    script = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
    output = tmp_path / "chaos.json"
    done = forked.run(str(script), "--scale", "0.03", "--jobs", "1", "--output", str(output))
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    ends = {name: value for name, value in found.items() if "same end" in name}
    assert len(ends) == 8
    assert all(value.split("/")[0] == value.split("/")[1] != "0" for value in ends.values())
    assert found["file boundaries inside a save"] > 20


def test_save_is_the_last_callback(workplace, keys, monkeypatch):
    """A checkpoint must not be older than the log: what it holds has been logged."""
    from whet.engine import train as story

    seen = []
    inner = story._callbacks
    monkeypatch.setattr(story, "_callbacks", lambda *a: seen.append(inner(*a)) or seen[-1])
    assert train(*keys, "name=order") == 0
    assert isinstance(seen[0][-1], Save)
    assert np.sum([isinstance(item, Save) for item in seen[0]]) == 1
