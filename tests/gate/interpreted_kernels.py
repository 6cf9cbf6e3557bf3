"""Runs the Triton kernels in Triton's interpreter, on the CPU, and prints how far they are off.

    TRITON_INTERPRET=1 python -m tests.gate.interpreted_kernels

The variable must be set before Triton is imported, so this is a program of its own. The interpreter
cannot multiply matrices of bfloat16; float16 stands for half precision.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from circuits.gate.fused.kernels import uniform_kernel
from circuits.gate.fused.triton_attention import TritonAttention, check_triton
from tests.gate.test_fused import plain

N_PAIRS, N_POS, D_HEAD, SEED = 2, 70, 24, 5


def drawn(block: int, block_keys: int) -> torch.Tensor:
    """The numbers that a call draws after `torch.manual_seed(SEED)`."""
    torch.manual_seed(SEED)
    u = torch.empty(N_PAIRS, N_POS, N_POS)
    seed = int(torch.randint(2**31, ()).item())
    grid = (-(-N_POS // block), N_PAIRS)
    call: Any = uniform_kernel[grid]  # what a kernel is given as constexpr is a number here
    call(u, seed, N_POS, BLOCK=block, BLOCK_KEYS=block_keys)
    return u


def sampled_errors() -> dict[str, float]:
    """Differences from the plain formula with the kernels' own random numbers."""
    qkv = [torch.randn(N_PAIRS, N_POS, D_HEAD).requires_grad_() for _ in "qkv"]
    torch.manual_seed(SEED)
    found = TritonAttention.apply(*qkv, 0.25, 0.3, True, False)
    expected = plain(qkv[0], qkv[1], qkv[2], 0.25, 0.3, drawn(64, 32))
    weight, prices = torch.randn_like(found[0]), torch.randn(N_PAIRS)
    gradients = [
        torch.autograd.grad((z * weight).sum() + (sums * prices).sum(), qkv)
        for z, sums, _ in (found, expected)
    ]
    pairs = [*zip(found, expected, strict=True), *zip(*gradients, strict=True)]
    names = ("z", "expected", "open", "q", "k", "v")
    return {
        name: (one - other).abs().max().item()
        for name, (one, other) in zip(names, pairs, strict=True)
    }


def main() -> None:
    """Prints everything as one line of JSON."""
    torch.manual_seed(0)
    device, u = torch.device("cpu"), drawn(64, 64)
    told = {
        "sampled": sampled_errors(),
        "checks": {
            f"{d_head}, {dtype}": check_triton(device, d_head, dtype)
            for d_head, dtype in ((80, torch.float32), (64, torch.float16))
        },
        "noise": {
            "same in other blocks": torch.equal(u, drawn(32, 32)),
            "least": u.min().item(),
            "greatest": u.max().item(),
            "mean": u.mean().item(),
            "equal neighbours": (u[:, :, 1:] == u[:, :, :-1]).float().mean().item(),
        },
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
