"""W&B: the offline record read back from disk, and every way in which W&B can go wrong."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from whet.errors import WhetError
from whet.evaluation.predictions import Predictions
from whet.tracking.base import RunInfo
from whet.tracking.wandb import Wandb, choose_mode, logged_in, run_id

CONFIG = {
    "seed": 1,
    "optimizer": {"lr": 0.5},
    "tags": ["a"],
    "token": "hunter22",
    "url": "https://u:pw123456@h/x",
}


def info(folder, **more):
    given = {"tags": ("first", "x" * 80), "group": "sweep-1", "job_type": "sweep"}
    given |= {"directions": {"accuracy": "maximize", "validation/loss": "minimize"}}
    return RunInfo(folder, "my-run", CONFIG, **(given | more))


def predictions(split="test"):
    labels = np.arange(30) % 3
    return Predictions(
        np.arange(30).astype(str), np.eye(3, dtype=np.float32)[labels], labels, split, ("a", "b", "c")
    )


def records(folder, seconds=10.0):
    """Every record of a finished offline run; W&B's own process may write its last ones a moment later."""
    end = time.monotonic() + seconds
    while True:
        path, found = read_records(folder)
        if of_kind(found, "exit") or time.monotonic() > end:
            return path, found
        time.sleep(0.1)


def read_records(folder):
    """Every record of an offline run: LevelDB's log format with W&B's 7 bytes of header."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content, place, whole, found = path.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, last
            found.append(Record.FromString(whole))
            whole = b""
    return path, found


def of_kind(found, kind):
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def items(update):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in update}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    sink = Wandb(mode="offline", project="mine", entity="team")
    sink.start(info(folder))
    for step in (10, 20):
        sink.log({"train/loss": 1 / step, "validation/accuracy": step / 100}, step)
    sink.log({"train/loss": math.nan}, 30)
    sink.report(predictions(), None, {"accuracy": 1.0})
    sink.finish("finished", {"test/accuracy": 1.0, "best_step": 20, "secret": "hunter22"})
    return (folder, *records(folder))


# ---------------------------------------------------------------- what is recorded


def test_the_run_is_named_and_placed(recorded):
    folder, _, found = recorded
    (run,) = of_kind(found, "run")
    assert (run.display_name, run.run_group, run.job_type) == ("my-run", "sweep-1", "sweep")
    assert (run.project, run.entity, list(run.tags)) == ("mine", "team", ["first", "x" * 64])
    assert run.run_id == run_id(folder)


def test_the_config_is_flat_and_holds_no_secret(recorded):
    _, path, found = recorded
    config = items(of_kind(found, "run")[0].config.update)
    assert config["optimizer.lr"] == 0.5 and config["seed"] == 1 and config["tags"] == ["a"]
    assert config["token"] == "***" and config["url"] == "https://u:***@h/x"
    for written in path.parent.rglob("*"):
        if written.is_file():
            assert b"hunter22" not in written.read_bytes() and b"pw123456" not in written.read_bytes()


def test_history_is_whole(recorded):
    rows = [items(history.item) for history in of_kind(recorded[2], "history")]
    kept = [{key: value for key, value in row.items() if key[0] != "_"} for row in rows]
    assert kept[0] == {"train/loss": 0.1, "validation/accuracy": 0.1, "step": 10}
    assert kept[1] == {"train/loss": 0.05, "validation/accuracy": 0.2, "step": 20}
    assert math.isnan(float(kept[2]["train/loss"])) and kept[3]["test/accuracy"] == 1.0


def test_charts_are_recorded(recorded):
    rows = [items(history.item) for history in of_kind(recorded[2], "history")]
    assert {"test/confusion_table", "test/precision_recall_table"} <= {
        key.rpartition("/")[0] for key in rows[3]
    }
    tables = list(recorded[0].rglob("*.table.json"))
    confusion = [json.loads(path.read_text()) for path in tables if "confusion" in path.name]
    assert ["a", "a", 10] in confusion[0]["data"] and ["a", "b", 0] in confusion[0]["data"]


def test_metrics_have_their_axis_and_direction(recorded):
    metrics = {metric.name or metric.glob_name: metric for metric in of_kind(recorded[2], "metric")}
    assert metrics["*"].step_metric == "step"
    assert metrics["validation/accuracy"].summary.max and metrics["test/accuracy"].summary.max
    assert metrics["validation/loss"].summary.min and not metrics["validation/loss"].summary.max


def test_summary_and_exit_code(recorded):
    summary = {}
    for update in of_kind(recorded[2], "summary"):
        summary |= items(update.update)
    assert summary["best_step"] == 20 and summary["status"] == "finished" and summary["secret"] == "***"
    assert [record.exit_code for record in of_kind(recorded[2], "exit")] == [0]


@pytest.mark.parametrize(("status", "code"), [("failed", 1), ("interrupted", 255), ("pruned", 0)])
def test_other_endings(tmp_path, status, code):
    sink = Wandb(mode="offline")
    sink.start(info(tmp_path, group=None))
    sink.finish(status, {})
    found = records(tmp_path)[1]
    assert [record.exit_code for record in of_kind(found, "exit")] == [code]
    assert of_kind(found, "run")[0].project == "whet"


def test_a_resumed_run_keeps_its_id(tmp_path):
    assert run_id(tmp_path) == run_id(tmp_path) != run_id(tmp_path / "other")


def alone():
    """The environment of a process that doesn't share W&B's service process with this one."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


KILLED = """
import os, signal, sys, time
from pathlib import Path
from whet.tracking.base import RunInfo
from whet.tracking.wandb import Wandb
sink = Wandb(mode="offline")
sink.start(RunInfo(Path(sys.argv[1]), "run", {}))
for step in range(1, 7):
    sink.log({"train/loss": 1 / step}, step)
    if step % 2 == 0:
        sink.log({"validation/accuracy": step / 10}, step)
while not sink._place:
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_goes_on_without_a_gap_or_a_repeat(tmp_path):
    """W&B never wrote down most of what was logged before the kill; four updates were in a checkpoint."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=alone(), check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    sink = Wandb(mode="offline")
    sink.start(info(tmp_path, resumed_after=4))
    for step in range(4, 9):
        sink.log({"train/loss": 1 / step}, step)
        if step % 2 == 0:
            sink.log({"validation/accuracy": step / 10}, step)
    sink.report(predictions(), None, {"accuracy": 1.0})
    sink.finish("finished", {})
    found = records(tmp_path)[1]
    assert of_kind(found, "run")[0].run_id == run_id(tmp_path)
    rows = [items(history.item) for history in of_kind(found, "history")]
    shown = [(row["step"], name) for row in rows for name in row if name[0] != "_" and "/" in name]
    wanted = [
        (n, m)
        for n in range(1, 9)
        for m in ("train/loss", "validation/accuracy")
        if m[0] == "t" or n % 2 == 0
    ]
    assert [pair for pair in shown if not pair[1].startswith("test/")] == wanted
    assert [pair for pair in shown if pair[1] == "test/accuracy"] == [(8, "test/accuracy")]
    numbers, times = ([row[key] for row in rows] for key in ("_step", "_timestamp"))
    assert numbers == sorted(set(numbers)) and times == sorted(times)
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [1 / n for n in range(1, 9)]
    assert len(list(tmp_path.glob("wandb/superseded/offline-run-*"))) == 1


def test_a_row_has_the_same_number_whenever_it_is_told(tmp_path, monkeypatch):
    """So that W&B, online, takes no row twice."""
    told = []

    class Listening(Broken):
        def log(self, values, step, commit):
            told.append((step, values["step"], sorted(values)))

    monkeypatch.setattr(wandb, "init", lambda **given: Listening())
    for resumed in (None, 1, 2):
        sink = Wandb(mode="offline")
        sink.start(info(tmp_path, resumed_after=resumed))
        for step in range((resumed or 0) + 1, 4):
            sink.log({"train/loss": 1.0}, step)
            sink.log({"validation/accuracy": 1.0}, step)
        sink.report(predictions("validation"), None, {"accuracy": 1.0})
        sink.finish("interrupted", {})
    first = told[: len(told) // 3]
    assert told == first * 3
    assert len({number for number, *_ in first}) == len(first) == 7


def test_disabled_does_nothing(tmp_path):
    sink = Wandb(mode="disabled")
    sink.start(info(tmp_path))
    sink.log({"a": 1.0}, 1)
    sink.finish("finished", {})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- where it goes


@pytest.fixture
def stranger(monkeypatch, tmp_path):
    """Nobody is logged in."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_modes_without_a_login(stranger):
    settings = wandb.Settings()
    assert choose_mode("auto", settings) == choose_mode("offline", settings) == "offline"
    with pytest.raises(WhetError, match="wandb login"):
        choose_mode("online", settings)


def test_a_key_in_the_environment_is_a_login(stranger, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert choose_mode("auto", wandb.Settings()) == choose_mode("online", wandb.Settings()) == "online"
    assert choose_mode("offline", wandb.Settings()) == "offline"


def test_a_netrc_entry_of_the_host_is_a_login(stranger):
    stranger.write_text("machine api.wandb.ai login user password 0000\n")
    stranger.chmod(0o600)
    assert logged_in(wandb.Settings())
    assert not logged_in(wandb.Settings(base_url="https://wandb.example.org"))
    stranger.write_text("machine wandb.example.org login user password 0000\n")
    assert logged_in(wandb.Settings(base_url="https://wandb.example.org"))


def test_a_broken_netrc_is_told_and_is_no_login(stranger, caplog):
    stranger.write_text("nonsense\n")
    assert not logged_in(wandb.Settings())
    assert "can't be read" in caplog.text


def test_auto_obeys_what_wandb_is_set_to(stranger, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert choose_mode("auto", wandb.Settings(mode="offline")) == "offline"


# ---------------------------------------------------------------- when it goes wrong


@pytest.fixture
def states():
    def taken():
        return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()))

    before = taken()
    yield
    assert taken() == before


class Broken:
    """A run of which one method misbehaves."""

    settings = None

    def __init__(self, method=None, act=None):
        self.summary = {}
        if method:
            setattr(self, method, act)

    def define_metric(self, *args, **kwargs): ...
    def log(self, values, step, commit): ...
    def finish(self, exit_code): ...


HUNG = threading.Event()
"""Set when a hang came to its end: whoever waited for it was held up."""


def hang(*args, **kwargs):
    time.sleep(60)
    HUNG.set()


def fail(*args, **kwargs):
    raise OSError("api_key=hunter22 not accepted")


def went(sink, folder, caplog, logs=3):
    """The warnings of a run that nothing held up."""
    HUNG.clear()
    caplog.set_level(logging.WARNING, "whet.tracking")
    sink.start(info(folder))
    for step in range(logs):
        sink.log({"train/loss": 1.0}, step)
    sink.report(predictions(), None, {})
    sink.finish("finished", {})
    assert not HUNG.is_set()
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("method", ["init", "log", "finish"])
@pytest.mark.parametrize("act", [hang, fail])
def test_nothing_stops_the_run(tmp_path, monkeypatch, caplog, states, method, act):
    monkeypatch.setattr(wandb, "init", act if method == "init" else lambda **given: Broken(method, act))
    patience, said = (30, "failed (") if act is fail else (0.3, "did not finish within 0.3 s")
    told = went(Wandb(mode="offline", patience=patience), tmp_path, caplog)
    assert len(told) == 1 and "hunter22" not in told[0] and said in told[0]


@pytest.mark.parametrize("patience", [0.2, 0.8])
def test_patience_is_how_long_the_end_waits(tmp_path, monkeypatch, caplog, patience):
    monkeypatch.setattr(wandb, "init", hang)
    began = time.monotonic()
    assert f"within {patience} s" in went(Wandb(mode="offline", patience=patience), tmp_path, caplog)[0]
    assert time.monotonic() - began >= patience


@pytest.mark.parametrize(("size", "dropped"), [(2, True), (100, False)])
def test_a_full_queue_drops_and_says_so_once(tmp_path, monkeypatch, caplog, size, dropped):
    monkeypatch.setattr(wandb, "init", hang)
    sink = Wandb(mode="offline", patience=0.1, queue_size=size)
    told = went(sink, tmp_path, caplog, logs=50)
    assert sum("dropped" in message for message in told) == dropped


def test_an_unfinished_upload_says_how_to_send_it_later(tmp_path, monkeypatch, caplog):
    real = wandb.init

    def init(**given):
        run = real(**given)
        monkeypatch.setattr(run, "finish", hang)
        return run

    monkeypatch.setattr(wandb, "init", init)
    told = went(Wandb(mode="offline", patience=3), tmp_path, caplog)
    assert told == [f"W&B did not finish within 3 s: upload the run later: whet sync {tmp_path}"]
    wandb.teardown()


def test_online_without_a_login_is_told_and_never_asks(tmp_path, stranger, caplog, monkeypatch):
    monkeypatch.setattr(wandb, "init", fail)
    told = went(Wandb(mode="online", patience=30), tmp_path, caplog)
    assert told == [
        "W&B failed (not logged in: run `wandb login` or set WANDB_API_KEY): the run goes on without it"
    ]


def test_global_random_numbers_stay_untouched(tmp_path, caplog, states):
    assert went(Wandb(mode="offline"), tmp_path, caplog) == []


def test_retries_draw_from_a_generator_of_their_own(tmp_path, monkeypatch, caplog, states):
    def init(**given):
        from wandb.sdk.lib import retry

        attempts = []

        def flaky():
            attempts.append(1)
            if len(attempts) < 3:
                raise OSError("no network")

        retry.Retry(flaky, retryable_exceptions=(OSError,))(num_retries=5, retry_sleep_base=0.01)
        assert len(attempts) == 3
        return Broken()

    monkeypatch.setattr(wandb, "init", init)
    assert went(Wandb(mode="offline", patience=30), tmp_path, caplog) == []


def test_an_offline_run_says_how_to_upload_it(tmp_path, caplog):
    caplog.set_level(logging.INFO, "whet.tracking")
    sink = Wandb(mode="offline")
    sink.start(info(tmp_path))
    sink.finish("finished", {})
    told = [record.message for record in caplog.records if record.name == "whet.tracking"]
    assert told == [f"W&B recorded offline; to upload: whet sync {tmp_path}"]


def test_no_thread_of_it_holds_the_interpreter(tmp_path):
    sink = Wandb(mode="offline")
    sink.start(info(tmp_path))
    sink.log({"train/loss": 1.0}, 1)
    sink.finish("finished", {})
    assert all(thread.daemon for thread in threading.enumerate() if re.search("wandb|Otel", thread.name))


# ---------------------------------------------------------------- the end of the interpreter

SCRIPT = """
import sys, time
from pathlib import Path
from whet.tracking.base import RunInfo
from whet.tracking.wandb import Wandb
heavy = {"torch", "numpy", "wandb", "rich", "tensorboard", "transformers"} & set(sys.modules)
assert not heavy, heavy
if "hang" in sys.argv:
    import wandb
    wandb.init = lambda **given: time.sleep(600)
sink = Wandb(mode=sys.argv[2], patience=30.0 if "wait" in sys.argv else 1.5)
sink.start(RunInfo(Path(sys.argv[1]), "run", {}))
sink.log({"train/loss": 1.0}, 1)
if "wait" in sys.argv:
    while not sink._place:
        time.sleep(0.05)
if "leave" not in sys.argv:
    sink.finish("finished", {})
"""


def interpreter(folder, *arguments, **environment):
    """What a program of its own told; it must end by itself."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("ending", ["finish", "leave"])
def test_the_interpreter_leaves_though_init_hangs(tmp_path, ending):
    assert interpreter(tmp_path, "offline", "hang", ending).count("W&B did not finish") <= 1


def test_the_interpreter_leaves_though_the_server_never_answers(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        told = interpreter(tmp_path, "online", WANDB_BASE_URL=address, WANDB_API_KEY="0" * 40)
    assert "did not finish within 1.5 s" in told


def test_a_run_that_never_finished_is_recorded_as_failed(tmp_path):
    interpreter(tmp_path, "offline", "wait", "leave")
    found = records(tmp_path)[1]
    assert [record.exit_code for record in of_kind(found, "exit")] == [1]
    assert len(of_kind(found, "history")) == 1
