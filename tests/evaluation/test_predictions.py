"""Predictions survive the file, whatever the script of their ids and names."""

import numpy as np
import pytest

from whet.errors import RunError
from whet.evaluation.predictions import Predictions


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("shape", ["classes", "sets", "values", "unlabelled"])
def test_round_trip(tmp_path, shape, grouped):
    labels = {
        "classes": np.array([0, 1, -1]),
        "sets": np.array([[0, 1], [1, 1], [0, 0]], dtype=np.float32),
        "values": np.array([0.5, np.nan, -2], dtype=np.float32),
        "unlabelled": np.empty(0, dtype=np.int64),
    }[shape]
    groups = np.array(["甲", "乙", "甲"]) if grouped else None
    logits = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    names = () if shape == "values" else ("正面", "😀")
    before = Predictions(np.array(["行1", "😀", "c"]), logits, labels, "test", names, groups)
    before.save(tmp_path / "deep" / "test.npz")
    after = Predictions.load(tmp_path / "deep" / "test.npz")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["test.npz"]
    assert after.ids.tolist() == before.ids.tolist()
    assert after.logits.dtype == np.float32
    np.testing.assert_array_equal(after.logits, logits)
    np.testing.assert_array_equal(after.labels, labels)
    assert (after.split, after.label_names) == ("test", names)
    assert after.groups is None if groups is None else after.groups.tolist() == groups.tolist()
    assert len(after) == 3


def test_a_missing_file_is_the_users_to_fix(tmp_path):
    with pytest.raises(RunError, match="no such predictions file"):
        Predictions.load(tmp_path / "test.npz")


def test_equal_content_is_equal_bytes(tmp_path, monkeypatch):
    """A checkpoint's hash must not tell the time."""
    import time

    one = Predictions(np.array(["a"]), np.zeros((1, 2), np.float32), np.array([0]), "test", ("x", "y"))
    one.save(tmp_path / "now.npz")
    later = time.localtime(time.time() + 1e6)
    monkeypatch.setattr(time, "localtime", lambda *given: later)
    one.save(tmp_path / "later.npz")
    assert (tmp_path / "now.npz").read_bytes() == (tmp_path / "later.npz").read_bytes()
