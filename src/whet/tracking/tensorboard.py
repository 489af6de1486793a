"""TensorBoard: scalars, the hyper-parameter table, confusion images and precision-recall curves."""

from __future__ import annotations

import os
import platform
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config import flatten
from whet.storage import Appended, aside
from whet.tracking.base import RunInfo, Sink
from whet.tracking.figures import class_names, confusion, curves, unseen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from whet.evaluation.predictions import Predictions

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents.*"
_READABLE = 30
"""Up to so many classes the confusion image carries names and counts."""
_STATUS = {"finished": "STATUS_SUCCESS", "pruned": "STATUS_UNKNOWN"}
"""TensorBoard's state of a run; any other is a failure. It has no word for a pruned one, which is neither."""


@dataclass(kw_only=True)
class TensorBoard(Sink):
    """Writes event files to the run's `tensorboard/`; point `tensorboard --logdir` at any folder above."""

    _run: RunInfo | None = field(init=False, repr=False, default=None)
    _file: EventFile | None = field(init=False, repr=False, default=None)
    _seen: set[str] = field(init=False, repr=False, default_factory=set)
    _step: int = field(init=False, repr=False, default=0)
    _there: set[tuple[str, int]] = field(init=False, repr=False, default_factory=set)
    """Scalars of the checkpoint's own update that were there before."""

    def start(self, run: RunInfo) -> None:
        self._run = run
        self._seen, self._step = set(run.logged), run.resumed_after or 0
        self._there = set()
        if run.resumed_after is not None:
            self._there = cut_back(run.folder / FOLDER, run.resumed_after)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from torch.utils.tensorboard.summary import scalar

        self._step = step
        self._seen.update(metrics)
        for name, value in metrics.items():
            if (name, step) not in self._there:
                self._write(scalar(name, value), step)  # type: ignore[no-untyped-call]

    def report(
        self, predictions: Predictions, label_names: list[str] | None, metrics: Mapping[str, float]
    ) -> None:
        from torch.utils.tensorboard.summary import image, pr_curve

        self.log(unseen(metrics, predictions.split, self._seen), self._step)
        split, counts = predictions.split, confusion(predictions)
        if counts is not None:
            drawn = draw_confusion(counts, class_names(predictions, label_names))
            picture = image(f"{split}/confusion", drawn, dataformats="HWC")  # type: ignore[no-untyped-call]
            self._write(picture, self._step)
        for curve in curves(predictions, label_names):
            tag = f"{split}/precision_recall/{curve.name}"
            self._write(pr_curve(tag, curve.truth, curve.scores), self._step)  # type: ignore[no-untyped-call]

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        figures = {f"final/{name}": float(value) for name, value in flatten(summary) if _is_number(value)}
        self.log(figures, self._step)  # the last evaluation isn't the best one, whose figures these are
        self._write(session_end(status), None)
        if self._file is not None:
            self._file.close()
        self._run = self._file = None

    def _write(self, summary: Any, step: int | None) -> None:
        """Into a file that is made at the first event; a TensorBoard that runs forgets what is cut."""
        if self._run is None:
            raise RuntimeError("start() comes before log()")
        if self._file is None:
            folder, after = self._run.folder / FOLDER, self._run.resumed_after
            self._file = EventFile(folder, after + 1 if after is not None and _has_events(folder) else None)
            self._file.add(session_start(self._run), None)
        self._file.add(summary, step)


class EventFile:
    """TensorBoard's events, each on its way to the disk when it is added.

    torch's own writer has a thread for that, which a kill outruns, and whose queue stands still for ever once
    the disk is full.

    Args:
        folder: of the new file.
        purge: TensorBoard is to forget events of this step and later ones in earlier files.
    """

    def __init__(self, folder: Path, purge: int | None) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        name = f"{time.time():.6f}.{platform.node()}.{os.getpid()}"
        self._file = Appended(folder / EVENTS.replace("*", name))
        self._records = RecordWriter(self._file)
        self._event(file_version="brain.Event:2")
        if purge is not None:
            self._event(step=purge, session_log=SessionLog(status=SessionLog.START))

    def add(self, summary: Any, step: int | None) -> None:
        """One event."""
        self._event(summary=summary, step=step)

    def close(self) -> None:
        """The last event has been added."""
        self._file.close()

    def _event(self, **facts: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **facts).SerializeToString())


def cut_back(folder: Path, step: int) -> set[tuple[str, int]]:
    """Leave in the event files only scalars of updates up to `step`; how a run ended is written again.

    Returns:
        Tag and step of the scalars of `step` itself.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    there: set[tuple[str, int]] = set()
    for path in sorted(folder.glob(EVENTS)):
        kept = []
        for record, content in records(path.read_bytes()):
            event = Event.FromString(content)
            scalars = [value.tag for value in event.summary.value if value.HasField("simple_value")]
            if event.HasField("summary") and not (scalars and event.step <= step):
                continue
            kept.append(record)
            there |= {(tag, event.step) for tag in scalars if event.step == step}
        with aside(path) as beside:
            beside.write_bytes(b"".join(kept))
    return there


def records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(whole record, what it holds) for each record of an event file; a torn last one is left out.

    A record is TensorFlow's: length in 8 bytes, a checksum of it in 4, the content, its checksum in 4.
    """
    place = 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        end = place + 12 + length + 4
        if end > len(content):
            return
        yield content[place:end], content[place + 12 : end - 4]
        place = end


def draw_confusion(counts: NDArray[Any], names: list[str]) -> NDArray[Any]:
    """[height, width, 3] picture of a confusion matrix, shaded by the share of each actual class."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = min(4 + 0.35 * len(names), 16)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="actual")
    if len(names) <= _READABLE:
        _write_counts(axes, counts, names)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def _write_counts(axes: Any, counts: NDArray[Any], names: list[str]) -> None:
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    rows = counts.sum(axis=1)
    for actual in range(len(names)):
        for predicted in range(len(names)):
            count = int(counts[actual, predicted])
            shade = "white" if count * 2 > rows[actual] else "black"
            axes.text(predicted, actual, str(count), ha="center", va="center", color=shade)


# ---------------------------------------------------------------- the table of hyper-parameters


def session_start(run: RunInfo) -> Any:
    """A run's settings: its row of the table, from the first event on.

    Its columns aren't declared: TensorBoard would take one run's declaration for all the runs below a folder,
    where it otherwise finds settings, figures, and which settings differ, by itself.
    """
    from tensorboard.plugins.hparams.plugin_data_pb2 import SessionStartInfo  # type: ignore[import-untyped]

    info = SessionStartInfo(start_time_secs=time.time())
    for key, value in run.settings().items():
        if isinstance(value, bool):
            info.hparams[key].bool_value = value
        elif isinstance(value, (int, float)):
            info.hparams[key].number_value = value
        elif isinstance(value, str):
            info.hparams[key].string_value = value
    return _session("session_start_info", info)


def session_end(status: str) -> Any:
    """How a run ended."""
    from tensorboard.plugins.hparams.api_pb2 import Status  # type: ignore[import-untyped]
    from tensorboard.plugins.hparams.plugin_data_pb2 import SessionEndInfo

    told = Status.Value(_STATUS.get(status, "STATUS_FAILURE"))
    return _session("session_end_info", SessionEndInfo(status=told, end_time_secs=time.time()))


def _session(part: str, info: Any) -> Any:
    """A part of a run's row, as the plugin of that table reads it."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
    from tensorboard.plugins.hparams import metadata  # type: ignore[import-untyped]
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    told = metadata.create_summary_metadata(HParamsPluginData(**{part: info}))
    return Summary(value=[Summary.Value(tag=f"_hparams_/{part}", metadata=told, tensor=metadata.NULL_TENSOR)])


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _has_events(folder: Path) -> bool:
    return any(folder.glob(EVENTS))
