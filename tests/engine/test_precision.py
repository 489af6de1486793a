"""Device and number format."""

import contextlib

import pytest
import torch

import whet.engine.precision as module
from whet.engine.precision import Amp, has_fast_bf16, pick_device
from whet.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_takes_what_is_there(monkeypatch):
    for cuda, mps, expected in [(False, False, "cpu"), (False, True, "mps"), (True, True, "cuda")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        monkeypatch.setattr(torch, "zeros", lambda *size, device: device and torch.ones(1))
        assert pick_device("auto").type == expected


@pytest.mark.parametrize("name", ["cude", "meta", "cpu:x", "cuda:99", ""])
def test_what_cannot_compute_is_refused(name):
    with pytest.raises(ConfigError, match="engine.device.*not usable here.*try auto or cpu"):
        pick_device(name)
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize(
    ("precision", "device", "fast", "expected"),
    [
        ("auto", CPU, True, "bf16"),
        ("auto", CPU, False, "fp32"),
        ("auto", CUDA, True, "bf16"),
        ("auto", CUDA, False, "fp16"),
        ("auto", torch.device("mps"), False, "fp32"),
        ("fp32", CPU, True, "fp32"),
        ("bf16", CPU, False, "bf16"),
        ("fp16", CUDA, True, "fp16"),
    ],
)
def test_precision(monkeypatch, precision, device, fast, expected):
    monkeypatch.setattr(module, "has_fast_bf16", lambda device: fast)
    assert Amp.of(precision, device) == Amp(device, expected)


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_f": True}, False),
        ({"bf16": True}, True),
    ],
)
def test_fast_bf16_of_a_cpu(monkeypatch, flags, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert has_fast_bf16(CPU) is fast


def test_fast_bf16_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert has_fast_bf16(CUDA) is True
    assert has_fast_bf16(torch.device("mps")) is False


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_computes_in_its_format(name, dtype):
    amp = Amp(CPU, name)
    with amp.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert isinstance(amp.autocast(), contextlib.nullcontext) == (name == "fp32")
    assert amp.scaler().is_enabled() == (name == "fp16")
