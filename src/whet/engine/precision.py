"""Device and number format of a run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from whet.errors import ConfigError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        problem = f"not usable here ({str(error).splitlines()[0]}); try auto or cpu"
        raise ConfigError("engine.device", problem, name) from None
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))
    return False


@dataclass(frozen=True)
class Amp:
    """Autocast to one number format on one device; weights stay fp32."""

    device: torch.device
    name: Literal["fp32", "bf16", "fp16"]

    @classmethod
    def of(cls, precision: Precision, device: torch.device) -> Amp:
        """`auto`: bf16 where the device has it in hardware, fp16 on older CUDA cards, else fp32."""
        if precision != "auto":
            return cls(device, precision)
        if has_fast_bf16(device):
            return cls(device, "bf16")
        return cls(device, "fp16" if device.type == "cuda" else "fp32")

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context of a forward pass."""
        import torch

        if self.name == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, on for fp16 only (its gradients would vanish without)."""
        import torch

        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")
