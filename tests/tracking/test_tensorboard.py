"""TensorBoard files, read back with TensorBoard's own reader."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from whet.evaluation.predictions import Predictions
from whet.tracking.base import RunInfo
from whet.tracking.tensorboard import TensorBoard, draw_confusion, records

CONFIG = {
    "seed": 1,
    "optimizer": {"lr": 0.5, "name": "adamw", "nesterov": True},
    "tags": ["a"],
    "api_key": "hunter22",
}


def read(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    return events.Reload()


def hparams(events, tag):
    return HParamsPluginData.FromString(events.summary_metadata[f"_hparams_/{tag}"].plugin_data.content)


def predictions(classes=3):
    labels = np.arange(30) % classes
    logits = np.eye(classes, dtype=np.float32)[labels] * 3
    return Predictions(np.arange(30).astype(str), logits, labels, "test", tuple("abcdef"[:classes]))


def run(folder, status="finished"):
    sink = TensorBoard()
    sink.start(RunInfo(folder, "run", CONFIG))
    for step in (1, 2, 3):
        sink.log({"train/loss": 1 / step}, step)
    sink.report(predictions(), None, {"accuracy": 1.0})
    sink.finish(status, {"test/accuracy": 1.0, "best_step": 2, "note": "text"})
    return read(folder)


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"))


def test_scalars(events):
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (step, pytest.approx(1 / step)) for step in (1, 2, 3)
    ]
    assert [(e.step, e.value) for e in events.Scalars("test/accuracy")] == [(3, 1.0)]


def test_hyper_parameters_stand_in_the_same_folder_with_secrets_masked(events):
    started = hparams(events, "session_start_info").session_start_info.hparams
    assert started["optimizer.lr"].number_value == 0.5 and started["seed"].number_value == 1
    assert started["optimizer.name"].string_value == "adamw" and started["api_key"].string_value == "***"
    assert started["optimizer.nesterov"].bool_value is True
    assert "tags" not in started
    assert "_hparams_/experiment" not in events.summary_metadata, "one run's would be taken for all runs"
    assert [e.value for e in events.Scalars("final/best_step")] == [2]


def test_confusion_image_and_curves(events):
    (image,) = events.Images("test/confusion")
    assert image.step == 3 and image.width > 200
    for name in "abc":
        (event,) = events.Tensors(f"test/precision_recall/{name}")
        assert make_ndarray(event.tensor_proto)[4].max() == 1.0  # precision of a perfect model


@pytest.mark.parametrize(
    ("status", "shown"),
    [("finished", "STATUS_SUCCESS"), ("failed", "STATUS_FAILURE"), ("pruned", "STATUS_UNKNOWN")],
)
def test_status(tmp_path, status, shown):
    ended = hparams(run(tmp_path, status), "session_end_info").session_end_info
    assert ended.status == Status.Value(shown)


def raw(folder):
    """(tag, step) of every value in the files, whether TensorBoard shows it or not."""
    events = [
        Event.FromString(content)
        for path in sorted((folder / "tensorboard").iterdir())
        for _, content in records(path.read_bytes())
    ]
    return [(value.tag, event.step) for event in events for value in event.summary.value]


def killed(folder, resumed_after, steps, value):
    """A run that stops without a farewell; what it logged is on disk."""
    sink = TensorBoard()
    sink.start(RunInfo(folder, "run", {}, resumed_after=resumed_after))
    for step in steps:
        sink.log({"train/loss": value}, step)
    return sink


def test_what_is_logged_is_on_disk_at_once(tmp_path):
    """The kill that comes next must not lose what a checkpoint already knows of."""
    sink = killed(tmp_path, None, (1, 2), 0.0)
    assert raw(tmp_path) == [("_hparams_/session_start_info", 0), ("train/loss", 1), ("train/loss", 2)]
    sink._file.close()


def test_events_wait_while_the_disk_is_full(tmp_path):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    sink = TensorBoard()
    sink.start(RunInfo(tmp_path, "run", {}))
    try:
        for step in range(60):
            if step == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (400, usual[1]))
            if step == 55:
                resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            sink.log({"train/loss": step / 8}, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    shown = [(e.step, e.value) for e in read(tmp_path).Scalars("train/loss")]
    assert shown == [(step, step / 8) for step in range(60)]
    sink._file.close()


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path):
    sinks = [killed(tmp_path, None, (1, 2, 3, 4), 0.0)]
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes() + b"\x18\0\0\0\0\0\0\0torn")
    sinks.append(killed(tmp_path, 2, (2, 3, 4), 1.0))  # of step 2 all was told
    sinks.append(killed(tmp_path, 3, (5, 6), 2.0))  # now every other step
    shown = [(e.step, e.value) for e in read(tmp_path).Scalars("train/loss")]
    assert shown == [(1, 0), (2, 0), (3, 1), (5, 2), (6, 2)]
    tags = [tag for tag, _ in raw(tmp_path)]
    assert tags.count("_hparams_/session_start_info") == 1
    assert [step for tag, step in raw(tmp_path) if tag == "train/loss"] == [1, 2, 3, 5, 6]
    for sink in sinks:
        sink._file.close()


def test_a_run_that_was_interrupted_ends_as_it_ends_at_last(tmp_path):
    """Its end is told once: status, figures, images and curves."""
    sink = killed(tmp_path, None, (1, 2, 3), 0.5)
    sink.report(predictions(), None, {"accuracy": 1.0})
    sink.finish("interrupted", {"reason": "a signal"})
    sink = killed(tmp_path, 3, (), 0.5)
    sink.report(predictions(), None, {"accuracy": 1.0})
    sink.finish("finished", {"test/accuracy": 1.0, "best_step": 2})
    assert hparams(read(tmp_path), "session_end_info").session_end_info.status == Status.Value(
        "STATUS_SUCCESS"
    )
    told = raw(tmp_path)
    assert len(told) == len(set(told))
    assert {("test/confusion", 3), ("test/accuracy", 3), ("final/best_step", 3)} <= set(told)


def test_a_run_without_events_makes_no_writer_until_it_ends(tmp_path):
    sink = TensorBoard()
    sink.start(RunInfo(tmp_path, "run", {}))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="start"):
        TensorBoard().log({"a": 1.0}, 1)


@pytest.mark.parametrize("classes", [2, 40])
def test_a_drawing_is_shaded_by_counts(classes):
    names = [str(c) for c in range(classes)]
    right, wrong = np.eye(classes, dtype=int) * 5, 5 - np.eye(classes, dtype=int) * 5
    pictures = [draw_confusion(counts, names) for counts in (right, wrong)]
    assert pictures[0].shape[2] == 3 and (pictures[0] != pictures[1]).any()
