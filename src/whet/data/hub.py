"""Labelled rows of a hub's dataset repository, at a pinned commit, kept for work without a network."""

from __future__ import annotations

import importlib
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.data.files import quiet
from whet.data.source import SPLITS, Source
from whet.errors import DataError, nearest, one_line

if TYPE_CHECKING:
    import datasets

    from whet.paths import Paths

TIMEOUT = 5.0
"""Seconds the hub has to answer before it counts as out of reach."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OFFLINE = (
    "the hub can't be reached and no copy is cached: use a task whose data are local files "
    "(_target_: whet.data.files.Files, path: /file.csv)"
)


def is_pinned(revision: str | None, allow_unpinned: bool) -> bool:
    """Whether `revision` is a commit.

    Raises:
        DataError: it isn't, and must be.
    """
    pinned = bool(_COMMIT.fullmatch(revision or ""))
    if not pinned and not allow_unpinned:
        raise DataError("revision", "must be a commit (40 hex digits), or set allow_unpinned", revision)
    return pinned


def reachable() -> bool:
    """Whether the model hub answers within `TIMEOUT`; one question, no retries."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    session = get_session()
    try:
        session.head(constants.ENDPOINT, timeout=TIMEOUT)
    except (_transport_error(session), OfflineModeIsEnabled):
        return False
    return True


def _transport_error(session: object) -> type[Exception]:
    """The base of the errors of the hub's HTTP library, which differs between its releases."""
    library = importlib.import_module(type(session).__module__.partition(".")[0])
    found: type[Exception] = library.HTTPError
    return found


@dataclass(kw_only=True)
class Hub(Source):
    """A dataset repository of the hub."""

    repo: str
    """`owner/name`."""
    name: str | None = None
    """Configuration inside the repository, where it has several."""
    revision: str | None = None
    """Commit (40 hex digits): a branch may change under a run."""
    allow_unpinned: bool = False
    """Take whatever the branch `revision` (default `main`) points at today."""
    splits: dict[str, str] = field(default_factory=dict)
    """train, validation, test → the hub's split; those of the same name unless given."""

    def read(self, paths: Paths) -> dict[str, datasets.Dataset]:
        import datasets

        pinned = is_pinned(self.revision, self.allow_unpinned)
        kept = paths.cached("hub") / re.sub(r"\W+", "-", f"{self.repo} {self.name} {self.revision}")
        if not (pinned and kept.is_dir()):
            self._refresh(kept)
        return self._chosen(datasets.load_from_disk(str(kept)))

    def _refresh(self, kept: Path) -> None:
        if reachable():
            _keep(self._load(self.repo, revision=self.revision), kept)
        elif not kept.is_dir():
            _keep(self._load(str(self._snapshot())), kept)

    def _snapshot(self) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            found = snapshot_download(
                self.repo, repo_type="dataset", revision=self.revision, local_files_only=True
            )
        except LocalEntryNotFoundError:
            raise DataError("repo", _OFFLINE, self.repo) from None
        return Path(found)

    def _load(self, where: str, **options: Any) -> datasets.DatasetDict:
        import datasets

        try:
            return datasets.load_dataset(where, self.name, **options)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError("repo", f"can't be read: {one_line(error)[:300]}", self.repo) from error

    def _chosen(self, found: datasets.DatasetDict) -> dict[str, datasets.Dataset]:
        wanted = self.splits or {split: split for split in SPLITS if split in found}
        for split in wanted.values():
            if split not in found:
                problem = f"the repository has no split {split}; {nearest(split, found)}"
                raise DataError("splits", problem, self.splits)
        if not wanted:
            raise DataError("splits", f"name them; the repository has {', '.join(found)}", self.splits)
        return {ours: found[theirs] for ours, theirs in wanted.items()}


def _keep(found: datasets.DatasetDict, kept: Path) -> None:
    """Write a copy aside and put it in place; an older one is replaced."""
    with tempfile.TemporaryDirectory(prefix=".", dir=kept.parent) as aside:
        with quiet():
            found.save_to_disk(str(Path(aside) / "new"))
        if kept.is_dir():
            kept.rename(Path(aside) / "old")
        Path(aside, "new").rename(kept)
