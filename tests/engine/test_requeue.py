"""Jobs that a scheduler requeues, and multiruns that were cut short: each goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from tests import forked

from whet.cli.main import main
from whet.engine.checkpoint import Checkpoints
from whet.engine.continuing import is_alive, is_requeued, scheduler_job
from whet.engine.step import Stepper
from whet.errors import WhetError
from whet.tracking.jsonl import read_metrics

TIMING = ("time", "train/tokens_per_second")


@pytest.fixture
def keys(quick):
    mine = [item for item in quick if not item.startswith(("engine.duration", "tracking"))]
    return [*mine, "tracking=local", "~tracking.sinks.tensorboard", "tracking.sinks.console.progress=off",
            "tracking.log_every=3", "engine.duration=12st", "engine.batching.size=4", "engine.accumulate=2",
            "engine.evaluate_every=4st", "engine.checkpoint_every=3st", "engine.precision=fp32"]  # fmt: skip


def train(*arguments: str) -> int:
    return main(["train", *arguments])


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def end_of(folder: Path) -> tuple:
    """What a finished run says: hashes of weights, optimizer and generators; figures; the log of every step."""
    record = record_of(folder)
    assert record["status"] == "finished"
    log = [
        {k: v for k, v in line.items() if k not in TIMING} for line in read_metrics(folder / "metrics.jsonl")
    ]
    return record["hashes"]["final"], record["metrics"], record["best"], log


def multiruns(workplace: Path) -> list[Path]:
    return sorted((workplace / "outputs" / "multirun").iterdir())


def jobs(multirun: Path) -> list[str]:
    return sorted(path.name for path in multirun.iterdir() if path.is_dir() and path.name[0] == "0")


def wait_for(condition, seconds: float = 90.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
    return found


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


@pytest.fixture
def at_update(monkeypatch):
    """Do something at one update of the job whose folder has this name, once."""

    def arm(folder: str, step: int, deed) -> None:
        whole = Stepper.update

        def update(self, update):
            if update.step == step and self.folder.name == folder:
                monkeypatch.setattr(Stepper, "update", whole)
                deed()
            return whole(self, update)

        monkeypatch.setattr(Stepper, "update", update)

    return arm


def die():
    raise Killed


# ------------------------------------------------------------------ jobs of a scheduler


def test_submitit_requeues_a_preempted_job_which_goes_on_in_its_folder(workplace, keys):
    """A real job of the local executor, preempted as submitit does it near a time limit."""
    pytest.importorskip("submitit")
    mine = [*keys, "engine.duration=90st", "engine.patience=null", "engine.evaluate_every=30st"]
    assert train(*mine, "name=whole") == 0
    launched = ["-m", *mine, "seed=1", "hydra/launcher=submitit_local"]
    process = forked.start("-m", "whet", "train", *launched)
    place = wait_for(lambda: list((workplace / "outputs").glob("multirun/*/0000/checkpoints/step-*")))[0]
    folder = place.parent.parent
    os.kill(record_of(folder)["pid"], signal.SIGUSR2)
    record = wait_for(lambda: (found := record_of(folder))["status"] != "running" and found)
    assert (record["status"], "interrupted after step" in record["reason"]) == ("interrupted", True)
    assert process.wait(120) == 0, process.err
    assert any(line.startswith("0000  finished") for line in process.out.splitlines())
    assert jobs(folder.parent) == ["0000"]
    assert (len(record_of(folder)["resumed"]), record_of(folder)["pid"] != record["pid"]) == (1, True)
    assert end_of(folder) == end_of(workplace / "outputs/runs/whole")


@pytest.fixture
def submitits_handlers(tmp_path):
    """The signal handlers that submitit installs in a job."""
    environment = pytest.importorskip("submitit.core.job_environment")
    utils = pytest.importorskip("submitit.core.utils")
    from submitit.local.local import LocalJobEnvironment

    numbers = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    submission = utils.DelayedSubmission(print)
    submission.set_timeout(60, 3)
    assert isinstance(LocalJobEnvironment(), environment.JobEnvironment)
    LocalJobEnvironment()._handle_signals(utils.JobPaths(tmp_path / "submitit", "7"), submission)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_submitit_lets_pass_saves_and_goes_on(
    workplace, keys, submitits_handlers, at_update, monkeypatch, told
):
    saved = []
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, step, write: saved.append(step) or save(self, step, write)
    )
    assert train(*keys, "name=whole") == 0
    usual, saved[:] = list(saved), []
    at_update("passed", 4, lambda: signal.raise_signal(signal.SIGTERM))
    assert train(*keys, "name=passed") == 0
    assert set(saved) - set(usual) == {5}
    assert any("SIGTERM: saving after this update" in line for line in told)
    runs = workplace / "outputs/runs"
    assert end_of(runs / "passed") == end_of(runs / "whole")


def test_only_a_preempted_job_is_handed_on_to_submitit(
    workplace, keys, submitits_handlers, at_update, monkeypatch
):
    """SIGINT ends the run as ever; USR2 ends the process in submitit's way, when all is saved."""
    at_update("int", 4, lambda: signal.raise_signal(signal.SIGINT))
    assert train(*keys, "name=int") == 130
    at_update("usr", 4, lambda: signal.raise_signal(signal.SIGUSR2))
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "7")
    with pytest.raises(SystemExit):
        train(*keys, "name=usr")
    record = record_of(workplace / "outputs/runs/usr")
    assert (record["status"], "after step 5" in record["reason"]) == ("interrupted", True)
    assert max(Checkpoints(workplace / "outputs/runs/usr/checkpoints").steps()) == 5


@pytest.fixture
def local_job(monkeypatch):
    """As in a job of submitit's local executor."""

    def enter(number: int) -> None:
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
        monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", str(number))

    return enter


@pytest.mark.parametrize("moment", ["loading", "training"])
def test_a_requeued_job_of_a_multirun_is_known_by_its_scheduler(
    workplace, keys, local_job, at_update, moment, monkeypatch
):
    """The same command in the same job goes on in its folder; in another job it gets a folder of its own."""
    from whet.engine import train as story

    command = ["-m", *keys, "seed=1", f"hydra.sweep.dir={workplace / 'sweep'}"]
    local_job(7)
    ready = story.get_ready
    if moment == "training":
        at_update("0000", 7, die)
    else:
        monkeypatch.setattr(story, "get_ready", lambda parts: die())
    with pytest.raises(Killed):
        train(*command)
    monkeypatch.setattr(story, "get_ready", ready)
    assert record_of(workplace / "sweep/0000")["status"] != "finished"
    local_job(8)
    assert train(*command) == 1  # the job is done; another that has the same folder isn't
    assert jobs(workplace / "sweep") == ["0000", "0000-2"]
    local_job(7)
    assert train(*command) == 0
    assert jobs(workplace / "sweep") == ["0000", "0000-2"]
    assert len(record_of(workplace / "sweep/0000").get("resumed", [])) == (moment == "training")
    assert end_of(workplace / "sweep/0000") == end_of(workplace / "sweep/0000-2")


def test_a_single_run_requeued_by_slurm_goes_on_by_itself(workplace, keys, at_update, monkeypatch, capsys):
    runs = workplace / "outputs" / "runs"
    assert train(*keys, "name=whole") == 0
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    at_update("job", 7, die)
    with pytest.raises(Killed):
        train(*keys, "name=job")
    assert train(*keys, "name=beside") == 0  # the same command again, in a shell within the same allocation
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    os.rename(runs / "beside", workplace / "beside")
    assert train(*keys, "name=job") == 0
    assert end_of(runs / "job") == end_of(runs / "whole")
    kept = (runs / "job/run.json").read_bytes()
    capsys.readouterr()
    assert train(*keys, "name=job") == 0
    assert "finished before" in capsys.readouterr().out
    assert (runs / "job/run.json").read_bytes() == kept
    assert sorted(path.name for path in runs.iterdir()) == ["job", "whole"]


def test_names_of_jobs():
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"}
    local = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "77"}
    assert [scheduler_job(env) for env in ({}, {"SLURM_JOB_ID": "9"}, array, local)] == [
        None, "slurm-9", "slurm-8_3", "local-77",
    ]  # fmt: skip
    assert is_requeued({"job": "slurm-8_3"}, {**array, "SLURM_RESTART_COUNT": "1"})
    assert not is_requeued({"job": "slurm-8_3"}, array)
    assert not is_requeued({"job": "slurm-8_2"}, {**array, "SLURM_RESTART_COUNT": "1"})
    assert not is_requeued({}, {})


def test_a_process_that_only_has_the_number_is_not_the_run():
    parent = psutil.Process(os.getppid())
    record = {"status": "running", "pid": parent.pid, "hardware": {"host": os.uname().nodename}}
    born = parent.create_time()
    for seconds, alive in ((-3600, False), (60, True)):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(born + seconds))
        assert is_alive({**record, "started": stamp}) is alive
        assert is_alive({**record, "started": "2001-01-01T00:00:00+00:00", "resumed": [stamp]}) is alive


# ------------------------------------------------------------------ multiruns that were cut short


def test_a_killed_multirun_is_completed(workplace, keys, capsys):
    """kill -9 in the second of three jobs: the first isn't trained again, the second goes on, the third runs."""
    command = ["-m", *keys, "engine.duration=60st", "engine.evaluate_every=20st", "peft=none,lora,bitfit"]
    assert train(*command) == 0
    whole = multiruns(workplace)[0]
    process = forked.start("-m", "whet", "train", *command)
    place = wait_for(lambda: multiruns(workplace)[1:])[0]
    wait_for(lambda: list(place.glob("0001/checkpoints/step-*")))
    process.kill()
    process.wait()
    assert [record_of(place / job)["status"] for job in jobs(place)] == ["finished", "running"]
    kept = (place / "0000" / "run.json").read_bytes()
    capsys.readouterr()
    assert train(*command, "resume=auto") == 0
    assert multiruns(workplace) == [whole, place]
    assert (place / "0000" / "run.json").read_bytes() == kept
    assert [len(record_of(place / job).get("resumed", [])) for job in jobs(place)] == [0, 1, 0]
    assert [end_of(place / job) for job in jobs(place)] == [end_of(whole / job) for job in jobs(whole)]
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("000")]
    assert [line.split()[:2] for line in shown] == [[f"000{n}", "finished"] for n in range(3)]
    assert all("resume" not in line for line in shown)


def test_a_signal_ends_the_whole_multirun(workplace, keys, at_update, capsys):
    command = ["-m", *keys, "seed=1,2"]
    at_update("0000", 4, lambda: signal.raise_signal(signal.SIGTERM))
    assert train(*command) == 143
    told = capsys.readouterr().err
    assert "the same command with resume=auto" in told
    (place,) = multiruns(workplace)
    assert (jobs(place), record_of(place / "0000")["status"]) == (["0000"], "interrupted")
    assert train(*command, "resume=auto") == 0
    assert multiruns(workplace) == [place]
    assert [record_of(place / job)["status"] for job in jobs(place)] == ["finished"] * 2
    assert len(record_of(place / "0000")["resumed"]) == 1


def test_a_signal_in_a_job_that_fails_ends_the_whole_multirun(workplace, keys, at_update):
    def deed():
        signal.raise_signal(signal.SIGTERM)
        raise WhetError("nothing left to do it with")

    at_update("0000", 4, deed)
    assert train("-m", *keys, "seed=1,2") == 143
    (place,) = multiruns(workplace)
    assert (jobs(place), record_of(place / "0000")["status"]) == (["0000"], "failed")


def test_a_multirun_goes_on_only_with_its_own_unfinished_one(workplace, keys, at_update):
    command = ["-m", *keys, "engine.duration=6st", "seed=1"]
    assert train(*command, "resume=auto") == 0  # nothing to go on with
    assert train(*command, "resume=auto") == 0  # what there is is finished
    at_update("0000", 4, die)
    with pytest.raises(Killed):
        train(*command)
    assert train(*command[:-1], "seed=2", "resume=auto") == 0  # another command
    unfinished = multiruns(workplace)[2]
    note = json.loads((unfinished / "multirun.json").read_text())
    parent = psutil.Process(os.getppid())
    (unfinished / "multirun.json").write_text(json.dumps({**note, "pid": parent.pid}))
    assert train(*command, "resume=auto") == 0  # somebody works on it
    (unfinished / "multirun.json").write_text(json.dumps(note))
    assert len(multiruns(workplace)) == 5
    assert record_of(unfinished / "0000")["status"] == "failed"
    assert train(*command, "resume=auto") == 0
    assert len(multiruns(workplace)) == 5
    assert end_of(unfinished / "0000") == end_of(multiruns(workplace)[0] / "0000")


def test_a_job_that_failed_its_checks_is_tried_again(workplace, keys):
    command = ["-m", *keys, "task.data.path=own.csv,later.csv"]
    assert train(*command) == 2
    (place,) = multiruns(workplace)
    assert record_of(place / "0001")["status"] == "failed"
    os.link(workplace / "own.csv", workplace / "later.csv")
    assert train(*command, "resume=auto") == 0
    assert multiruns(workplace) == [place]
    assert end_of(place / "0001") == end_of(place / "0000")


def test_a_finished_job_tells_the_sweeper_the_same(workplace, keys, at_update, monkeypatch):
    """What a job returned is what sweepers read."""
    from hydra.core.utils import JobReturn

    seen = []
    value = JobReturn.return_value
    monkeypatch.setattr(
        JobReturn,
        "return_value",
        property(lambda self: seen.append(value.fget(self)) or seen[-1], value.fset),
    )
    command = ["-m", *keys, "engine.duration=6st", "seed=1,2"]
    assert train(*command) == 0
    straight, seen[:] = list(seen), []
    at_update("0001", 4, die)
    with pytest.raises(Killed):
        train(*command)
    seen.clear()
    assert train(*command, "resume=auto") == 0
    assert seen == straight
    assert all(isinstance(item, float) for item in seen)
