"""whet installed from its wheel works from any directory, with a user's own `conf/`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment of its own that sees the libraries of this one, and whet only from the wheel."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def whet(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the wheel's whet; a checkout installed beside it must not be seen."""
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); "
        f"sys.path[:] = [p for p in sys.path if p != {str(ROOT / 'src')!r}]; "
        "from whet.cli.main import main; import whet; "
        f"assert whet.__file__.startswith({str(site)!r}), whet.__file__; sys.exit(main({list(arguments)!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_wheel_carries_conf_and_sweeps(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packaged = {name.removeprefix("whet/conf/") for name in names if name.startswith("whet/conf/")}
    assert packaged == {str(path.relative_to(ROOT / "conf")) for path in (ROOT / "conf").rglob("*.yaml")}
    shipped = {name.removeprefix("whet/sweeps/") for name in names if name.startswith("whet/sweeps/")}
    assert shipped == {path.name for path in (ROOT / "sweeps").iterdir() if path.is_file()}
    assert "hydra_plugins/whet_plugin/search_path.py" in names
    assert not [name for name in names if name.startswith("tests")]


def test_own_task_from_an_installed_wheel(installed, workplace, quick):
    """`columns review,stars` through conf/task/mine.yaml, outside the repository."""
    done = whet(installed, workplace, "train", *quick, "name=w")
    assert done.returncode == 0, done.stderr
    record = json.loads((workplace / "outputs" / "runs" / "w" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["data"]["label_names"] == ["1", "5"]
    assert "accuracy" in done.stdout


def test_help_from_an_installed_wheel(installed, tmp_path):
    done = whet(installed, tmp_path, "train", "--help")
    assert "rotten_tomatoes" in done.stdout
    assert os.listdir(tmp_path) == []
