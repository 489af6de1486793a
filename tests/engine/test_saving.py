"""`Save`: what stays, what is written behind the training's back, and what happens when it can't be."""

import json
import math
import os
import sys
import threading

import numpy as np
import pytest
import torch

from whet.cli.main import main
from whet.engine import resume
from whet.engine.callbacks import Best, State
from whet.engine.checkpoint import Checkpoints, damage
from whet.engine.resume import Images, parted
from whet.engine.saving import NICE, Save, Saved
from whet.engine.signals import StopRequest
from whet.engine.step import Stepper, StepResult
from whet.errors import Interrupted, WhetError
from whet.evaluation.predictions import Predictions

RESULT = StepResult(1.0, 1.0, 1.0, 1, 1)
PATIENCE = 60
"""Seconds until a test that waits for a thread gives up."""


def predictions(number):
    logits = np.full((1, 2), number, dtype=np.float32)
    return Predictions(np.array(["a"]), logits, np.array([0]), "validation")


def saver(tmp_path, take=lambda state: lambda folder: None, **more):
    return Save(take, Checkpoints(tmp_path / "checkpoints"), StopRequest(), **more)


def evaluate(save, values):
    """Evaluations at steps 10, 20, …; yields the state after each."""
    state = State()
    callbacks = [Saved(save), Best("score", True), save]
    for number, value in enumerate(values, 1):
        state.step = number * 10
        for callback in callbacks:
            callback.on_evaluation(state, {"score": value}, predictions(number))
        yield state


# ---------------------------------------------------------------- what stays


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (1, [[10], [20], [20, 30], [20, 40], [50], [50, 60]]),
        (2, [[10], [10, 20], [20, 30], [20, 30, 40], [20, 40, 50], [50, 60]]),  # 40 needs 20
    ],
)
def test_the_best_and_the_last_are_kept(tmp_path, keep, kept):
    def take(state):
        def fill(folder, step=state.step):
            (folder / "step").write_text(str(step))

        return fill

    save, found = saver(tmp_path, take, keep=keep), []
    for state in evaluate(save, [1, 3, 2, 0, 5, 5]):
        save.settle(state)
        found.append(save.checkpoints.steps())
    assert found == kept
    assert (save.checkpoints.at(60) / "step").read_text() == "60"
    assert all(damage(save.checkpoints.at(step)) is None for step in save.checkpoints.steps())


def test_a_resumed_run_keeps_what_its_checkpoints_need(tmp_path):
    save = saver(tmp_path, keep=2)
    list(evaluate(save, [5, 1, 1]))
    save.settle(State())
    assert save.checkpoints.steps() == [10, 20, 30]
    later = saver(tmp_path, keep=2, earlier=lambda: {10: 10, 20: 10, 30: 10})
    state = State(step=30, best_step=10, best_value=5.0)
    later.on_start(state)
    state.step, state.best_step, state.best_value = 40, 40, 9.0
    later.on_evaluation(state, {"score": 9.0}, predictions(4))
    later.settle(state)
    assert later.checkpoints.steps() == [10, 30, 40], "30 can be gone on from, too"


def test_further_steps_are_saved_beside_the_evaluations(tmp_path):
    save = saver(tmp_path, keep=9, further=frozenset({2, 5}))
    for step in range(1, 7):
        save.on_update(State(step=step), RESULT)
    save.on_end(State(step=6))
    assert save.checkpoints.steps() == [2, 5]


def test_no_step_of_a_run_is_written_twice(workplace, quick, monkeypatch):
    """A step that is evaluated is saved then, and not before."""
    saved, save = [], Checkpoints.save

    def noted(self, step, fill):
        saved.append(step)
        return save(self, step, fill)

    monkeypatch.setattr(Checkpoints, "save", noted)
    keys = ["engine.duration=7st", "engine.evaluate_every=4st", "engine.checkpoint_every=2st"]
    assert main(["train", *quick, *keys, "engine.batching.size=8"]) == 0
    assert saved == [2, 4, 6, 7]


def test_a_request_saves_and_stops(tmp_path):
    save, state = saver(tmp_path), State(step=5)
    save.on_update(state, RESULT)
    assert save.checkpoints.steps() == []
    save.request.number = 15
    with pytest.raises(Interrupted, match="after step 5") as caught:
        save.on_update(state, RESULT)
    assert (caught.value.exit_code, save.checkpoints.steps()) == (143, [5])


def test_a_notice_is_answered_with_a_checkpoint_on_the_disk(tmp_path):
    save = saver(tmp_path)
    save.request.noticed = True
    save.on_update(State(step=5), RESULT)
    assert save.checkpoints.steps() == [5] and save.saved == 5


# ---------------------------------------------------------------- in the background


class Gate:
    """A disk that writes when it is told to."""

    def __init__(self):
        self.open = threading.Event()
        self.priorities = []

    def take(self, state):
        def fill(folder):
            self.priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            assert self.open.wait(PATIENCE)

        return fill


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path):
    gate = Gate()
    save = saver(tmp_path, gate.take, further=frozenset({1}))
    for step in (1, 2, 3):
        save.on_update(State(step=step), RESULT)  # the disk doesn't move, and still this returns
    assert (save.saved, save.checkpoints.steps()) == (-1, [])
    gate.open.set()
    save.on_end(State(step=3))
    assert (save.saved, save.checkpoints.steps()) == (1, [1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads have no priority of their own")
def test_writing_gives_way_to_training(tmp_path):
    gate = Gate()
    gate.open.set()
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    save = saver(tmp_path, gate.take)
    *_, state = evaluate(save, [1])
    save.settle(state)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
    assert gate.priorities in ([NICE], [max(NICE, before)])


def test_the_next_checkpoint_waits_for_the_last(tmp_path):
    gate = Gate()
    save = saver(tmp_path, gate.take, further=frozenset({1, 2}))
    save.on_update(State(step=1), RESULT)
    threading.Timer(0.2, gate.open.set).start()
    save.on_update(State(step=2), RESULT)
    assert gate.open.is_set() and save.saved == 1


@pytest.mark.parametrize(
    ("error", "waits"), [(None, True), (ValueError(), True), (KeyboardInterrupt(), False)]
)
def test_the_end_waits_for_the_disk_unless_the_user_does_not(tmp_path, error, waits):
    gate = Gate()
    save = saver(tmp_path, gate.take, further=frozenset({1}))
    save.on_update(State(step=1), RESULT)
    timer = threading.Timer(0.2, gate.open.set)
    if waits:
        timer.start()
    save.close(error)
    assert (save.checkpoints.steps() == [1]) == waits
    gate.open.set()


def test_a_run_is_saved_as_it_was_when_the_saving_began(workplace, quick, monkeypatch):
    """A disk that always is two updates late keeps the same bits as one that is at once there."""
    keys = [*quick, "engine.duration=9st", "engine.checkpoint_every=3st", "engine.evaluate_every=9st",
            "engine.keep=9", "engine.batching.size=8", "tracking.log_every=1"]  # fmt: skip
    save, update, finished = Checkpoints.save, Stepper.update, threading.Condition()
    steps = [0]

    def counted(self, plan):
        found = update(self, plan)
        with finished:
            steps[0] = plan.step + 1
            finished.notify_all()
        return found

    def late(self, step, fill):
        with finished:
            assert step == 9 or finished.wait_for(lambda: steps[0] >= step + 2, PATIENCE)
        return save(self, step, fill)

    def hashes(name):
        monkeypatch.setattr(Checkpoints, "finish", lambda *_: None)
        assert main(["train", *keys, f"name={name}"]) == 0
        checkpoints = Checkpoints(workplace / "outputs" / "runs" / name / "checkpoints")
        names = ("model.safetensors", "training.safetensors")
        return {step: [checkpoints.hashes(step)[name] for name in names] for step in checkpoints.steps()}

    prompt = hashes("prompt")
    monkeypatch.setattr(Stepper, "update", counted)
    monkeypatch.setattr(Checkpoints, "save", late)
    assert hashes("late") == prompt
    assert set(prompt) == {3, 6, 9} and len({json.dumps(found) for found in prompt.values()}) == 3


def test_memory_is_used_again_where_it_fits():
    images, first = Images(), torch.arange(6.0).reshape(2, 3)
    image = images.fill("a", {"x": first})
    assert images.fill("a", {"x": first + 1}) is image
    assert images.fill("b", {"x": first}) is not image
    assert images.fill("a", {"x": first.T}) is not image
    assert images.fill("a", {"y": first.T}) is not image
    assert images.fill("a", {"y": first.T.half()}) is not image


# ---------------------------------------------------------------- when it can't be written


def full_at(steps):
    def take(state):
        def fill(folder, step=state.step):
            if step in steps:
                raise OSError(28, "No space left on device")

        return fill

    return take


def test_a_best_that_could_not_be_saved_is_not_the_best(tmp_path, caplog):
    """Only what is in a checkpoint can be exported; what comes after is compared with that."""
    save = saver(tmp_path, full_at({20}))
    found = [(state.best_step, state.best_value) for state in evaluate(save, [1.0, 2.0, 1.5])]
    assert found == [(10, 1.0), (20, 2.0), (30, 1.5)]
    told = "the checkpoint of step 20 can't be written ([Errno 28] No space left on device); step 10 is kept"
    assert f"{told}; going on" in caplog.text


def test_a_best_that_could_not_be_saved_falls_back_at_the_end(tmp_path):
    save = saver(tmp_path, full_at({20, 30}))
    *_, state = evaluate(save, [1.0, 2.0, 3.0])
    save.on_end(state)
    assert (state.best_step, state.best_value, save.saved) == (10, 1.0, 10)


def full_behind(gate):
    """A disk that is full, as is seen once the gate is open."""

    def fill(folder):
        gate.wait(PATIENCE)
        raise OSError(28, "No space left on device")

    return lambda state: fill


def test_a_run_that_is_to_stop_does_so_at_the_next_update(tmp_path):
    gate = threading.Event()
    save = saver(tmp_path, full_behind(gate), further=frozenset({1}), on_error="stop")
    save.on_update(State(step=1), RESULT)
    gate.set()
    save._writing.task.exception(PATIENCE)  # until it is done
    with pytest.raises(WhetError, match=r"step 1 can't be written .*; there is none yet"):
        save.on_update(State(step=2), RESULT)


def test_a_failure_is_told_when_training_has_failed_too(tmp_path, caplog):
    gate = threading.Event()
    save = saver(tmp_path, full_behind(gate), further=frozenset({1}), on_error="stop")
    save.on_update(State(step=1), RESULT)
    gate.set()
    save.close(ValueError())
    assert "the checkpoint of step 1 can't be written" in caplog.text


def test_a_defect_is_not_taken_for_a_full_disk(tmp_path):
    def take(state):
        return lambda folder: {}["nothing"]

    save = saver(tmp_path, take)
    *_, state = evaluate(save, [math.nan])
    with pytest.raises(KeyError, match="nothing"):
        save.on_end(state)


# ---------------------------------------------------------------- files of unequal size


@pytest.mark.parametrize(
    ("sizes", "files"),
    [
        ([], [0]),
        ([1, 2], [2]),
        ([40, 40, 40], [1, 1, 1]),
        ([15, 15, 15, 15, 45, 1], [2, 2, 1, 1]),  # MiB; a tensor is never cut
        ([100] * 16, [2] * 8),  # of 1.6 GiB: no more than about eight files
    ],
)
def test_large_states_are_shared_out(sizes, files):
    with torch.device("meta"):
        tensors = {f"t{n}": torch.empty(size << 18) for n, size in enumerate(sizes)}
    found = parted(tensors)
    assert [len(held) for held in found.values()] == files
    assert list(found)[:2] == ["training.safetensors", "training-2.safetensors"][: len(files)]
    assert {name: held[name] for held in found.values() for name in held} == tensors


def test_a_state_in_several_files_goes_on_the_same(workplace, quick, monkeypatch):
    keys = [*quick, "engine.duration=6st", "engine.evaluate_every=3st", "engine.batching.size=8"]
    monkeypatch.setattr(resume, "PART", 4096)

    def end(name):
        record = json.loads((workplace / "outputs/runs" / name / "run.json").read_text(encoding="utf-8"))
        return record["hashes"]["final"]

    assert main(["train", *keys, "name=whole"]) == 0
    update = Stepper.update

    def interrupted(self, plan):
        if plan.step == 4:
            raise KeyboardInterrupt
        return update(self, plan)

    monkeypatch.setattr(Stepper, "update", interrupted)
    assert main(["train", *keys, "name=broken", "engine.checkpoint_every=4st"]) == 130
    monkeypatch.setattr(Stepper, "update", update)
    assert main(["train", "resume=outputs/runs/broken"]) == 0
    assert end("broken") == end("whole") and "training-2.safetensors" in end("whole")
    left = workplace / "outputs/runs/whole/checkpoints"
    assert not list(left.glob("*/training*")), "a finished run needs them no more"
