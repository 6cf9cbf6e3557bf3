"""Gated attention by the Triton kernels, with their launch, their gradient and a check of them.

`check_triton` runs a small case against circuits/gate/fused/blockwise.py on the device, before
anything relies on the kernels: a GPU that they were not made for shows itself there.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuits.gate.fused.blockwise import BlockwiseAttention, Pairs

_LONGEST = 2**15  # tokens: the counters of the random numbers have 32 bits
_WIDEST_ROW = 512  # bytes of a head's row; blocks of wider ones do not fit into shared memory


class TritonAttention(torch.autograd.Function):
    """As `BlockwiseAttention`; its random numbers are others."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Pairs,
        k: Pairs,
        v: Pairs,
        scale: float,
        bias: float,
        sample: bool,
        frozen: bool,
    ) -> tuple[Pairs, Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """Returns z, differentiable sums of sigmoid(g), and counts of open edges."""
        from circuits.gate.fused.kernels import forward_kernel

        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        seed = int(torch.randint(2**31, ()).item()) if sample else 0
        z, log_sums = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
        options = kernel_options(q)
        grid = (-(-q.shape[1] // options["BLOCK"]), len(q))
        # A sum for each block: adding them up afterwards gives the same bits every time.
        expected, n_open = (q.new_empty(grid[::-1], dtype=torch.float32) for _ in "12")
        options["SAMPLE"] = sample
        given = (q, k, v, z, log_sums, expected, n_open)
        with torch.cuda.device_of(q):
            forward_kernel[grid](*given, seed, scale, bias, q.shape[1], **options)
        ctx.save_for_backward(q, k, v, z, log_sums)
        ctx.options = (seed, scale, bias, sample, frozen)
        ctx.set_materialize_grads(False)
        expected, n_open = expected.sum(dim=1), n_open.sum(dim=1)
        ctx.mark_non_differentiable(n_open)
        return z, expected, n_open

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, z_grad: Tensor | None, expected_grad: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        """Returns the gradients in q, k and v."""
        from circuits.gate.fused.kernels import keys_kernel, queries_kernel

        q, k, v, z, log_sums = ctx.saved_tensors
        seed, scale, bias, sample, frozen = ctx.options
        z_grad = torch.zeros_like(z) if z_grad is None else z_grad.contiguous()
        prices = q.new_zeros(len(q)) if expected_grad is None else expected_grad
        prices = prices.float().contiguous()
        row_sums = (z_grad.float() * z).sum(dim=-1)
        q_grad, k_grad, v_grad = (torch.empty_like(given) for given in (q, k, v))
        given = (q, k, v, z_grad, log_sums, row_sums, prices)
        numbers, options = (seed, scale, bias, q.shape[1]), kernel_options(q)
        options |= {"SAMPLE": sample, "FROZEN": frozen}
        queries_grid = (-(-q.shape[1] // options["BLOCK"]), len(q))
        with torch.cuda.device_of(q):
            queries_kernel[queries_grid](*given, q_grad, *numbers, **options)
        keys_grid = (-(-q.shape[1] // options["BLOCK_KEYS"]), len(q))
        with torch.cuda.device_of(q):
            keys_kernel[keys_grid](*given, k_grad, v_grad, *numbers, **options)
        return q_grad, k_grad, v_grad, None, None, None, None


def triton_refuses(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    """Returns why the kernels do not take q of a shape [..., pos, d_head]; None if they do."""
    if device.type != "cuda":
        return "it needs a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it does not compute in {dtype}"
    n_pos, d_head = shape[-2:]
    if n_pos > _LONGEST:
        return f"{n_pos} tokens are more than its {_LONGEST}"
    if _row_bytes(d_head, dtype) > _WIDEST_ROW:
        return f"heads of {d_head} numbers are too wide for it in {dtype}"
    return check_triton(device, d_head, dtype)


@functools.cache
def check_triton(device: torch.device, d_head: int, dtype: torch.dtype) -> str | None:
    """Runs the kernels on a small case; returns what went wrong, None if nothing did.

    The deterministic gate and its gradient are compared with `BlockwiseAttention`, and with the
    gate sampled all must be finite. The random state stays as it was.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        drawn = [torch.randn(3, 100, d_head, device=device).to(dtype) for _ in "qkvz"]
        try:
            ours, theirs = (
                _results(path, drawn, sample=False)
                for path in (TritonAttention, BlockwiseAttention)
            )
            sampled = _results(TritonAttention, drawn, sample=True)
        except Exception as error:  # of a compiler and a driver: of any type
            return f"its kernels do not run here: {type(error).__name__}: {error}"
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    for name, found, expected in zip(("z", "edges", "q", "k", "v"), ours, theirs, strict=True):
        error = ((found - expected).float().norm() / expected.float().norm()).item()
        if not error < tolerance:
            return f"its kernels are wrong here: {name} differs by {error:.1e}"
    if not all(torch.isfinite(result).all() for result in sampled):
        return "its kernels give numbers that are not finite"
    return None


def _results(kind: type[Any], drawn: list[Tensor], *, sample: bool) -> list[Tensor]:
    """z, the sums of sigmoid(g) and the gradients of both, of one small case."""
    *given, weight = drawn
    q, k, v = (tensor.clone().requires_grad_() for tensor in given)
    z, expected, _ = kind.apply(q, k, v, q.shape[-1] ** -0.5, 0.1, sample, False)
    loss = (z.float() * weight.float()).sum() + expected.sum()
    return [z.detach(), expected.detach(), *torch.autograd.grad(loss, (q, k, v))]


def kernel_options(q: Pairs) -> dict[str, Any]:
    """Returns what the kernels are compiled for; a program's blocks take less than 99 KB."""
    d_head, half = q.shape[-1], q.dtype != torch.float32
    wide = _row_bytes(d_head, q.dtype) > _WIDEST_ROW // 2
    return {
        "PRECISION": "tf32" if half else "ieee",  # applies to float32 only
        "D": d_head,
        "BLOCK_D": _padded(d_head),
        "BLOCK": 32 if wide else 64,
        "BLOCK_KEYS": 64 if half and not wide else 32,
        "num_stages": 2 if half else 1,
    }


def _row_bytes(d_head: int, dtype: torch.dtype) -> int:
    return _padded(d_head) * dtype.itemsize


def _padded(d_head: int) -> int:
    """The next power of 2, which a block must be, and at least 16."""
    return max(16, 1 << (d_head - 1).bit_length())
