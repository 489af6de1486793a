"""Files of tensors: safetensors reads what was put in, whatever way the bytes took."""

import errno
import fcntl
import hashlib
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from whet.engine.image import PAGE, PIECE, Image

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def tensors(seed=0):
    """One of every number format, odd sizes, views that aren't contiguous, a scalar, nothing."""
    generator = torch.Generator().manual_seed(seed)
    found = {
        f"t{n}": (torch.rand(3 + n, 5, generator=generator) * 100).to(kind) for n, kind in enumerate(DTYPES)
    }
    wide = torch.rand(7, 11, generator=generator)
    return found | {
        "turned": wide.T,
        "part": wide[1:3, ::2],
        "step": torch.tensor(3.0),
        "none": torch.empty(0, 4),
    }


def filled(held):
    image = Image(held)
    image.fill(held)
    return image


def assert_same(path, held):
    read = load_file(path)
    assert set(read) == set(held)
    for name, tensor in held.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


def test_safetensors_reads_it(tmp_path):
    image = filled(tensors())
    image.write(tmp_path / "a.safetensors")
    assert_same(tmp_path / "a.safetensors", tensors())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    content = (tmp_path / "a.safetensors").read_bytes()
    assert (image.size, image.sha256()) == (len(content), hashlib.sha256(content).hexdigest())


def test_one_number_format_gives_the_bytes_of_safetensors(tmp_path):
    held = {"b": torch.rand(3, 4), "a": torch.rand(5)}
    filled(held).write(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == save(held, {"format": "pt"})


def test_filled_again(tmp_path):
    image = filled(tensors())
    assert image.fits(tensors(1))
    first = image.sha256()
    image.fill(tensors(1))
    assert image.sha256() != first
    image.write(tmp_path / "a.safetensors")
    assert_same(tmp_path / "a.safetensors", tensors(1))


def test_nothing_at_all(tmp_path):
    filled({}).write(tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors") == {}


def of_size(size):
    """An image of exactly so many bytes."""
    empty = filled({"x": torch.zeros(1000, dtype=torch.uint8)}).size - 1000
    image = filled({"x": torch.arange(size, dtype=torch.int64).to(torch.uint8)[: size - empty]})
    while image.size != size:  # a number with more digits makes a longer header
        empty += image.size - size
        image = filled({"x": torch.arange(size, dtype=torch.int64).to(torch.uint8)[: size - empty]})
    return image


SIZES = [PAGE - 8, PAGE, PAGE + 8, 3 * PAGE, PIECE, PIECE + PAGE, 2 * PIECE + 3 * PAGE + 16]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["direct", "none", "refused", "late", "short", "memory"])
def test_sizes_around_pages_on_file_systems_of_all_kinds(tmp_path, monkeypatch, size, way):
    """O_DIRECT: there, not there, refused when the file is opened or when it is written, writing but a part."""
    image, path, real, flags = of_size(size), tmp_path / "a", os.write, []
    path = Path("/dev/shm") / f"whet-{os.getpid()}" if way == "memory" else path
    if way == "memory" and not path.parent.is_dir():
        pytest.skip("no file system in memory")

    def write(handle, content):
        direct = bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT)
        flags.append((direct, len(content)))
        if way == "late" and direct:
            raise OSError(errno.EINVAL, "no")
        return real(handle, content[:12_345] if way == "short" and not direct else content)

    def opened(name, wanted, mode=0o777, *, inner=os.open):
        if wanted & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return inner(name, wanted, mode)

    if way == "none":
        monkeypatch.delattr(os, "O_DIRECT")
    elif way == "refused":
        monkeypatch.setattr(os, "open", opened)
    if way in ("direct", "late", "short"):
        monkeypatch.setattr(os, "write", write)
    try:
        image.write(path)
        monkeypatch.undo()
        content = path.read_bytes()
    finally:
        path.unlink(missing_ok=True)
    assert len(content) == size and hashlib.sha256(content).hexdigest() == image.sha256()
    if way == "direct" and any(direct for direct, _ in flags):
        assert sum(length for direct, length in flags if direct) == size - size % PAGE


@pytest.mark.parametrize("limit", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE + 8, 3 * PAGE + 8, 4 * PAGE])
def test_no_room(tmp_path, limit):
    """Under a limit on files' sizes: an error where it is too small, the file where it just fits."""
    image = of_size(3 * PAGE + 8)
    pid = os.fork()
    if not pid:
        code = 9
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            image.write(tmp_path / "a")
            code = 0
        except OSError as error:
            code = 1 if error.errno == errno.EFBIG else 2
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == (0 if limit >= image.size else 1)
    if code == 0:
        assert hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest() == image.sha256()


def test_an_existing_file_is_never_overwritten(tmp_path):
    (tmp_path / "a").write_text("precious")
    with pytest.raises(FileExistsError):
        filled(tensors()).write(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "precious"
