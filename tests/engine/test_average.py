"""Averaged weights are judged, kept and exported; training never sees them."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file
from tests.engine.test_resume import end_of, folder_of, keys, kill_at, killed_run, train  # noqa: F401

from whet.engine.average import Average
from whet.engine.checkpoint import Checkpoints
from whet.errors import ConfigError
from whet.evaluation.predictions import Predictions


@pytest.fixture
def quickly(keys):  # noqa: F811
    return [*keys, "engine.duration=3ep"]


@pytest.fixture
def followed(monkeypatch):
    """Every trained parameter after each update of a run."""
    found = []
    inner = Average.on_update

    def on_update(self, state, result):
        found.append({name: tensor.clone() for name, tensor in self.shadow.weights().items()})
        inner(self, state, result)

    monkeypatch.setattr(Average, "on_update", on_update)
    return found


def exported(folder):
    return load_file(next((folder / "model").glob("*.safetensors")))


@pytest.mark.parametrize(
    ("arguments", "shares"),
    [
        (
            ["averaging=ema", "averaging.decay=0.6", "averaging.beginning=unbiased"],
            lambda n: 0.6 ** np.arange(n)[::-1],
        ),
        (["averaging=swa", "averaging.start=2st", "peft=bitfit"], lambda n: np.arange(1, n + 1) >= 2),
    ],
)
def test_the_exported_model_is_the_average_of_recorded_weights(
    workplace, quickly, followed, arguments, shares
):
    assert train(*quickly, "name=avg", *arguments) == 0
    folder = folder_of(workplace, "avg")
    best = json.loads((folder / "run.json").read_text())["best"]["step"]
    assert best >= 2
    found, weights = exported(folder), shares(best).astype(float)
    for name in followed[0]:
        each = np.stack([seen[name].numpy().astype(np.float64) for seen in followed[:best]])
        np.testing.assert_allclose(found[name], np.tensordot(weights / weights.sum(), each, 1), atol=1e-6)
    assert any(not np.allclose(found[name], followed[best - 1][name], atol=1e-6) for name in followed[0])


def test_training_goes_on_with_the_weights_themselves(workplace, quickly, followed):
    """The same updates whatever is averaged; what is judged differs.

    With decay=0 the average is the weights: every figure and bit is that of a run without averaging.
    """
    ends, folders = [], [folder_of(workplace, name) for name in ("slow", "fast", "off")]
    for name, more in (("slow", "averaging.decay=0.9"), ("fast", "averaging.decay=0")):
        followed.clear()
        assert train(*quickly, f"name={name}", "averaging=ema", more) == 0
        ends.append({key: tensor.numpy().tobytes() for key, tensor in followed[5].items()})
    assert ends[0] == ends[1]
    logits = [Predictions.load(folder / "predictions/test.npz").logits for folder in folders[:2]]
    assert not np.array_equal(*logits)
    assert train(*quickly, "name=off") == 0
    assert end_of(folders[1])[:-1] == end_of(folders[2])[:-1]


def test_stopped_and_gone_on_ends_the_same(workplace, quickly, followed, kill_at):  # noqa: F811
    """A checkpoint holds the average as its model, and the weights that train beside it."""
    arguments = [*quickly, "averaging=ema"]
    folder = killed_run(workplace, arguments, "killed", kill_at, 7)
    place = Checkpoints(folder / "checkpoints").at(6)
    saved, model = load_file(place / "training.safetensors"), load_file(place / "model.safetensors")
    for name, tensor in followed[5].items():
        assert np.array_equal(saved[f"callback.Average.{name}"], tensor)
    assert any(not np.array_equal(model[name], tensor) for name, tensor in followed[5].items())
    assert train(*arguments, "name=whole") == 0
    assert train(f"resume={folder}") == 0
    assert end_of(folder) == end_of(folder_of(workplace, "whole"))


def test_fsdp_is_refused_before_anything_is_loaded(workplace, quickly):
    from whet.config import build, compose
    from whet.engine.train import Parts

    with pytest.raises(ConfigError, match="not together with averaging"):
        build(compose("train", [*quickly, "averaging=ema", "engine.parallel=fsdp"]), Parts)()
    assert build(compose("train", [*quickly, "engine.parallel=fsdp"]), Parts)().engine.parallel == "fsdp"
