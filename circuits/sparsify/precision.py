"""What training steps compute in on a device: bfloat16 where it has instructions for it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
"""Those of a CPU that multiply matrices of bfloat16, by the names of Linux and of torch."""


def choose_precision(precision: str, device: torch.device) -> str:
    """Returns what steps compute in: `auto` is bfloat16 where the device computes it natively.

    Warns:
        UserWarning: bfloat16 is wanted on a CPU that emulates it.
    """
    if precision == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    if precision == "bfloat16" and device.type == "cpu" and not has_bfloat16(device):
        warnings.warn(
            "this CPU has no instructions for bfloat16 (AMX or AVX-512 BF16), so that steps may "
            "take several times as long as in float32; precision auto chooses what is fast",
            stacklevel=2,
        )
    return precision


def has_bfloat16(device: torch.device) -> bool:
    """Returns whether a device computes bfloat16 natively.

    A CUDA GPU does from compute capability 8.0 on (Ampere), a CPU with AMX or AVX-512 BF16. Of
    other devices it is not known here.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    abilities = _cpu_abilities()
    return any(abilities.get(name, False) for name in _INSTRUCTIONS)


def _cpu_abilities() -> Mapping[str, Any]:
    """The CPU's instructions by name, True where it has them."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    # Older versions of torch do not tell in public. Linux does.
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next((line for line in lines if line.startswith("flags")), "")
        return dict.fromkeys(flags.partition(":")[2].split(), True)
    return {}
