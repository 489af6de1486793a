"""Whole or not there, for files and folders."""

import hashlib

import pytest

from whet.storage import aside, file_sha256


def fill(beside, kind, text):
    if kind == "folder":
        beside.mkdir()
        (beside / "a").write_text(text)
    else:
        beside.write_text(text)


def content(path):
    return (path / "a").read_text() if path.is_dir() else path.read_text()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_replaced_when_all_went_well_untouched_otherwise(tmp_path, kind):
    target = tmp_path / "deep" / "target"
    for text in ("one", "two"):
        with aside(target) as beside:
            fill(beside, kind, text)
            assert not target.exists() or content(target) == "one"
    with pytest.raises(OSError, match="full"), aside(target) as beside:
        fill(beside, kind, "three")
        raise OSError("full")
    assert content(target) == "two"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_nothing_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="early"), aside(tmp_path / "x"):
        raise ValueError("early")
    assert list(tmp_path.iterdir()) == []


def test_hash(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
