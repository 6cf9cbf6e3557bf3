"""Gated attention a block of queries at a time, in plain torch, on every device.

    s = scale q.k    W = softmax(s)    A = gate(s + b)    z = (W * A) v

Scores, weights and gates exist for a few queries only, never for a whole [pos, pos] square, and
keys behind the last query of a block are not looked at. The backward pass computes them again, with
the same random numbers, from q, k, v and z: with G = dz v^T, and s' what dA/dg is taken for
(circuits/gate/sampling.py),

    ds = W * (G * (A + s') - z.dz) + d(expected) p(1-p)

where z.dz is the sum over keys that the softmax needs. A block stays in the processor's cache,
which is why this takes less time there than attention that is held whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuits.gate.sampling import Noise

# Queries of a block, and scores of a block: on a CPU few enough to stay in the cache, elsewhere
# enough to outweigh the cost of each call.
_CPU_BLOCK = (64, 2**18)
_GPU_BLOCK = (256, 2**24)

Pairs = Float[Tensor, "pair pos d_head"]
"""A pair is one head in one sequence."""


class BlockwiseAttention(torch.autograd.Function):
    """q, k, v -> z, and for each pair the sum of sigmoid(g) and the number of open edges."""

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
        z = torch.empty_like(q)
        noise = Noise(q.device) if sample else None
        expected, n_open = (torch.zeros(len(q), dtype=_working(q), device=q.device) for _ in "12")
        with _no_autocast(q):
            for pairs, queries in _blocks(q):
                weights, logits, p = _attend(q, k, scale, bias, pairs, queries)
                expected[pairs] += p.sum(dim=(1, 2))
                # p is larger than a uniform number as often as p says.
                over = logits if noise is None else p.sub_(noise.uniform(p.shape))
                gate = over.gt_(0)
                n_open[pairs] += gate.sum(dim=(1, 2))
                kept = weights.mul_(gate).to(v.dtype)
                z[pairs, queries] = torch.bmm(kept, v[pairs, : queries.stop])
        ctx.save_for_backward(q, k, v, z)
        ctx.options = (scale, bias, noise.seed if noise else None, frozen)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(n_open)
        return z, expected, n_open

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, z_grad: Tensor | None, expected_grad: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        """Returns the gradients in q, k and v."""
        q, k, v, z = ctx.saved_tensors
        scale, bias, seed, frozen = ctx.options
        noise = Noise(q.device, seed) if seed else None
        z_grad = torch.zeros_like(z) if z_grad is None else z_grad.contiguous()
        # Keys collect from all blocks, in full precision.
        k_grad, v_grad = (torch.zeros(k.shape, dtype=_working(q), device=q.device) for _ in "kv")
        q_grad = torch.empty_like(q)
        row_sums = (z_grad.to(_working(q)) * z).sum(dim=-1, keepdim=True)
        with _no_autocast(q):
            for pairs, queries in _blocks(q):
                keys = slice(0, queries.stop)
                weights, logits, p = _attend(q, k, scale, bias, pairs, queries)
                spread = torch.addcmul(p, p, p, value=-1)  # p(1-p)
                if noise is None:
                    gate, slope = logits.gt_(0), spread
                else:
                    u = noise.uniform(p.shape).to(p.dtype)
                    gate = torch.sub(p, u, out=logits).gt_(0)
                    slope = _sampled_slope(p, u, spread)
                out_grad = z_grad[pairs, queries]
                values_grad = torch.bmm(out_grad, v[pairs, keys].mT).to(p.dtype)
                kept = (weights * gate).to(v.dtype)
                v_grad[pairs, keys] += torch.bmm(kept.mT, out_grad)
                scores_grad = values_grad.mul_(gate if frozen else gate.add_(slope))
                scores_grad.sub_(row_sums[pairs, queries]).mul_(weights)
                if expected_grad is not None:
                    scores_grad.addcmul_(spread, expected_grad[pairs, None, None])
                scores_grad = scores_grad.mul_(scale).to(q.dtype)
                q_grad[pairs, queries] = torch.bmm(scores_grad, k[pairs, keys])
                k_grad[pairs, keys] += torch.bmm(scores_grad.mT, q[pairs, queries])
        return q_grad, k_grad.to(k.dtype), v_grad.to(v.dtype), None, None, None, None


def _attend(
    q: Pairs, k: Pairs, scale: float, bias: float, pairs: slice, queries: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """The softmax of a block, its gate logits and their sigmoids; all may be overwritten."""
    products = torch.bmm(q[pairs, queries], k[pairs, : queries.stop].mT)
    scores = products.to(_working(q)).mul_(scale)
    n_queries = queries.stop - queries.start
    future = torch.ones(n_queries, n_queries, dtype=torch.bool, device=q.device).triu(1)
    scores[:, :, queries.start :].masked_fill_(future, -math.inf)
    weights = scores.softmax(dim=-1)
    logits = scores.add_(bias) if bias else scores
    return weights, logits, logits.sigmoid()


def _sampled_slope(p: Tensor, u: Tensor, spread: Tensor) -> Tensor:
    """s(1-s) of the sigmoid that a sample is differentiated as; u is overwritten.

    s = p(1-u) / D and 1-s = u(1-p) / D with D = p(1-u) + u(1-p) = p + u - 2pu.
    """
    total = torch.addcmul(p, p, u, value=-2).add_(u).square_()
    return u.addcmul_(u, u, value=-1).mul_(spread).div_(total)


def _blocks(q: Pairs) -> Iterator[tuple[slice, slice]]:
    """The blocks, always in one order: some pairs, and some of their queries."""
    n_pairs, n_queries, _ = q.shape
    size, n_scores = _CPU_BLOCK if q.device.type == "cpu" else _GPU_BLOCK
    for first in range(0, n_queries, size):
        queries = slice(first, min(first + size, n_queries))
        step = max(1, n_scores // ((queries.stop - queries.start) * queries.stop))
        for start in range(0, n_pairs, step):
            yield slice(start, min(start + step, n_pairs)), queries


def _working(q: Tensor) -> torch.dtype:
    """The dtype of scores, weights, noise and sums: half precision is too coarse for them."""
    return torch.promote_types(q.dtype, torch.float32)


def _no_autocast(q: Tensor) -> torch.autocast:
    return torch.autocast(q.device.type, enabled=False)
