"""Weights from wheels, split wheels, the hub's cache and folders; pickles are never trusted."""

import hashlib
import io
import logging
import os
import pickle
import time
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.hub import no_hub, snapshot

from whet.errors import ModelError
from whet.model.weights import HubWeights, LocalWeights, WheelParts, WheelWeights, read_pickled
from whet.paths import Paths

COMMIT = "cd" * 20
CONFIG = b'{"model_type": "bert"}'


def sha(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """A cache of this test; nothing can be downloaded."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return Paths(cache=str(tmp_path / "cache"))


def tensors():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 4, generator=generator)
    return {"a": a, "tied": a, "b.t": torch.randn(4, 2, generator=generator).t(), "n": torch.arange(3)}


def safe_bytes(folder):
    save_file({"a": torch.ones(2)}, folder / "x.safetensors")
    return (folder / "x.safetensors").read_bytes()


def lay_wheel(paths, name, files):
    with zipfile.ZipFile(paths.cached("wheels") / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for member, data in files.items():
            archive.writestr(member, data)


def bin_folder(folder, state):
    folder.mkdir()
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "vocab.txt").write_text("[PAD]\n")
    (folder / "optimizer.pt").write_bytes(b"not wanted")
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def test_a_wheel_becomes_a_folder(paths, tmp_path):
    data = safe_bytes(tmp_path)
    lay_wheel(paths, "toy", {"m/model.safetensors": data, "m/config.json": CONFIG, "m/README.md": b"x"})
    hashes = {"model.safetensors": sha(data), "config.json": sha(CONFIG)}
    found = WheelWeights(package="toy==1.0", folder="m", sha256=hashes).locate(paths)
    assert sorted(path.name for path in found.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (found.sha256, found.id) == (sha(data), "toy==1.0/m")
    with pytest.raises(ModelError, match="not the pinned file"):
        WheelWeights(package="toy==1.0", folder="m", sha256={"README.md": "0" * 64}).locate(paths)


def test_the_second_wheel_serves_when_the_first_is_gone(paths, tmp_path, caplog):
    data = safe_bytes(tmp_path)
    lay_wheel(paths, "spare", {"n/model.safetensors": data})
    weights = WheelWeights(
        package="gone==1.0",
        folder="m",
        sha256={"model.safetensors": sha(data)},
        fallback_package="spare==1.0",
        fallback_folder="n",
    )
    with caplog.at_level(logging.WARNING):
        assert weights.locate(paths).id == "spare==1.0/n"
    assert "gone==1.0" in caplog.text
    weights.fallback_package = None
    with pytest.raises(ModelError, match="put its wheel into"):
        weights.locate(paths)


def test_a_licence_has_to_be_accepted(paths, tmp_path):
    data = safe_bytes(tmp_path)
    lay_wheel(paths, "toy", {"m/model.safetensors": data})
    weights = WheelWeights(
        package="toy==1.0", folder="m", sha256={"model.safetensors": sha(data)}, license="research use only"
    )
    with pytest.raises(ModelError, match=r"research use only.*model\.weights\.accept_license=true"):
        weights.locate(paths)
    weights.accept_license = True
    assert weights.locate(paths).folder.is_dir()


def split_zip(paths, tmp_path, count=3):
    data = safe_bytes(tmp_path)
    joined = io.BytesIO()
    with zipfile.ZipFile(joined, "w") as archive:
        archive.writestr("m/model.safetensors", data)
        archive.writestr("m/config.json", CONFIG)
    whole = joined.getvalue()
    step = len(whole) // count + 1
    for place in range(count):
        lay_wheel(paths, f"part{place}", {f"p/z.{place}": whole[place * step : (place + 1) * step]})
    return {"model.safetensors": sha(data), "config.json": sha(CONFIG)}


def test_parts_are_joined_in_order(paths, tmp_path):
    hashes = split_zip(paths, tmp_path)
    packages, parts = [f"part{place}==1.0" for place in range(3)], [f"p/z.{place}" for place in range(3)]
    found = WheelParts(packages=packages, members=parts, folder="m", sha256=hashes).locate(paths)
    assert found.sha256 == hashes["model.safetensors"]
    assert load_file(found.folder / "model.safetensors")["a"].tolist() == [1, 1]
    assert not list(paths.cached("weights").rglob("joined.zip")), "the joined file is gone"
    with pytest.raises(ModelError, match="one part for each"):
        WheelParts(packages=packages, members=parts[:2], folder="m", sha256=hashes).locate(paths)


def test_a_missing_part_is_named(paths, tmp_path):
    hashes = split_zip(paths, tmp_path)
    with pytest.raises(ModelError, match="not in part0"):
        WheelParts(packages=["part0==1.0"], members=["p/z.9"], folder="m", sha256=hashes).locate(paths)


def test_pickled_weights_become_the_same_tensors(paths, tmp_path):
    state = tensors()
    found = LocalWeights(path=str(bin_folder(tmp_path / "m", state))).locate(paths)
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "vocab.txt",
    ]
    loaded = load_file(found.folder / "model.safetensors")
    assert set(loaded) == set(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    again = LocalWeights(path=str(tmp_path / "m")).locate(paths)
    assert again == found


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_a_malicious_pickle_is_refused_and_never_runs(write, paths, tmp_path):
    folder = bin_folder(tmp_path / "m", {})
    write({"a": Attack(tmp_path / "owned")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="refused"):
        LocalWeights(path=str(folder)).locate(paths)
    assert not (tmp_path / "owned").exists()
    assert not list(paths.cached("weights").glob("converted-*"))


@pytest.mark.parametrize("state", [[torch.ones(1)], {"a": 1}])
def test_a_pickle_of_anything_else_is_refused(state, tmp_path):
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(ModelError, match="not a table of tensors"):
        read_pickled(tmp_path / "x.bin")


def test_local_folders(paths, tmp_path):
    folder = tmp_path / "minilm"
    folder.mkdir()
    with pytest.raises(ModelError, match="did you mean minilm"):
        LocalWeights(path=str(tmp_path / "miniln")).locate(paths)
    with pytest.raises(ModelError, match=r"no config\.json"):
        LocalWeights(path=str(folder)).locate(paths)
    (folder / "config.json").write_bytes(CONFIG)
    with pytest.raises(ModelError, match="neither"):
        LocalWeights(path=str(folder)).locate(paths)
    data = safe_bytes(folder)
    assert LocalWeights(path=str(folder)).locate(paths).sha256 == sha(data)
    save_file({"b": torch.ones(2)}, folder / "y.safetensors")
    assert LocalWeights(path=str(folder)).locate(paths).sha256 != sha(data), "several files: a joint hash"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub, and an empty hub cache; returns the cache folder."""
    return no_hub(monkeypatch, tmp_path / "hf")


def test_a_hub_snapshot_serves_without_a_network(offline, paths, tmp_path):
    data = safe_bytes(tmp_path)
    snapshot(offline, "models--some--model", COMMIT, {"config.json": CONFIG, "model.safetensors": data})
    found = HubWeights(repo="some/model", revision=COMMIT).locate(paths)
    assert (found.id, found.sha256) == (f"some/model@{COMMIT}", sha(data))
    assert load_file(found.folder / "model.safetensors")["a"].tolist() == [1, 1]
    branch = HubWeights(repo="some/model", allow_unpinned=True).locate(paths)
    assert branch == found


def test_a_hub_snapshot_with_a_pickle_is_converted(offline, paths):
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    snapshot(
        offline,
        "models--some--model",
        COMMIT,
        {"config.json": CONFIG, "pytorch_model.bin": buffer.getvalue()},
    )
    found = HubWeights(repo="some/model", revision=COMMIT).locate(paths)
    assert load_file(found.folder / "model.safetensors")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("files", [{}, {"config.json": CONFIG}])
def test_no_network_is_one_line_without_waiting(files, offline, paths, monkeypatch):
    snapshot(offline, "models--some--model", COMMIT, files)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited for a hub that isn't there"))
    with pytest.raises(ModelError, match=r"model\.weights\.path=/dir") as caught:
        HubWeights(repo="some/model", revision=COMMIT).locate(paths)
    assert "\n" not in str(caught.value) and caught.value.key == "repo"


def test_hub_settings(offline, paths, tmp_path):
    with pytest.raises(ModelError, match="40 hex digits"):
        HubWeights(repo="some/model", revision="main").locate(paths)
    data = safe_bytes(tmp_path)
    (tmp_path / "config.json").write_bytes(CONFIG)
    found = HubWeights(repo="some/model", revision=COMMIT, path=str(tmp_path)).locate(paths)
    assert found.sha256 == sha(data)


@pytest.mark.network
def test_minilm_from_the_registry():
    from omegaconf import OmegaConf

    from whet.config import conf_dir

    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / "minilm.yaml"))["weights"]
    found = WheelWeights(**{key: value for key, value in node.items() if key != "_target_"}).locate(Paths())
    assert found.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
