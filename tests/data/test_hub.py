"""The hub's data sets without a hub: kept copies, the hub's own cache, and a quick clear error."""

import time

import pytest
from tests.hub import no_hub, snapshot

from whet.data import hub
from whet.data.hub import Hub
from whet.errors import DataError
from whet.paths import Paths

COMMIT = "ab" * 20


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub, and an empty hub cache; returns the cache folder."""
    return no_hub(monkeypatch, tmp_path / "hf")


def lay_rows(cache, files):
    data = {name: text.encode() for name, text in files.items()}
    snapshot(cache, "datasets--some--rows", COMMIT, data)


def test_no_network_is_one_line_without_waiting(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited for a hub that isn't there"))
    with pytest.raises(DataError, match="can't be reached") as caught:
        Hub(repo="some/rows", revision=COMMIT).read(Paths(cache=str(tmp_path)))
    assert "\n" not in str(caught.value) and caught.value.key == "repo"
    assert "whet.data.files.Files" in str(caught.value)


def test_revision_must_be_pinned(tmp_path):
    with pytest.raises(DataError, match="40 hex digits"):
        Hub(repo="some/rows", revision="main").read(Paths(cache=str(tmp_path)))


def test_a_cached_snapshot_serves_without_a_network(offline, tmp_path):
    lay_rows(offline, {"train.csv": "text,label\na,1\nb,0\n", "test.csv": "text,label\nc,1\n"})
    paths = Paths(cache=str(tmp_path / "whet"))
    found = Hub(repo="some/rows", revision=COMMIT).read(paths)
    assert {name: len(rows) for name, rows in found.items()} == {"train": 2, "test": 1}
    renamed = Hub(repo="some/rows", revision=COMMIT, splits={"train": "train", "validation": "test"}).read(
        paths
    )
    assert renamed["validation"]["text"][:] == ["c"]
    with pytest.raises(DataError, match="no split tset; did you mean test"):
        Hub(repo="some/rows", revision=COMMIT, splits={"test": "tset"}).read(paths)
    unpinned = Hub(repo="some/rows", allow_unpinned=True).read(paths)
    assert len(unpinned["train"]) == 2


def test_a_kept_copy_needs_no_question(offline, tmp_path, monkeypatch):
    lay_rows(offline, {"train.csv": "text\na\n"})
    paths = Paths(cache=str(tmp_path / "whet"))
    Hub(repo="some/rows", revision=COMMIT).read(paths)
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("asked the network"))
    assert len(Hub(repo="some/rows", revision=COMMIT).read(paths)["train"]) == 1


def test_an_unusable_repository_is_reported(offline, tmp_path):
    lay_rows(offline, {"README.md": "nothing here"})
    with pytest.raises(DataError, match="can't be read"):
        Hub(repo="some/rows", revision=COMMIT).read(Paths(cache=str(tmp_path / "whet")))
