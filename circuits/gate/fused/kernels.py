"""Gated attention in Triton: the kernels of one forward and one backward pass.

The mathematics is that of circuits/gate/fused/blockwise.py. A program takes one block of queries
(or, for the gradient of keys and values, of keys) of one pair of head and sequence, and walks over
the other side; nothing of size [pos, pos] is ever written. The uniform numbers of the gate come
from Philox, counted by (pair, query, four keys), so that every kernel finds the same ones again,
whatever its blocks are.

Triton comes with PyTorch's CUDA builds; elsewhere this module cannot be imported.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What Triton compiles is not what a type checker of Python takes it for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

_ROUNDS = tl.constexpr(7)  # of Philox; the fewest that pass the tests of its paper (Salmon 2011)


@triton.jit
def uniform(seed, pair, rows, first_key, n_pos, BLOCK_KEYS: tl.constexpr):
    """Uniform numbers in (0, 1) for a block, [rows, keys], of 23 bits each."""
    groups = first_key // 4 + tl.arange(0, BLOCK_KEYS // 4)
    counter = rows[:, None] * ((n_pos + 3) // 4) + groups[None, :]
    a, b, c, d = tl.randint4x(seed + pair, counter, _ROUNDS)
    words = tl.join(tl.join(a, c), tl.join(b, d))
    words = words.reshape(rows.shape[0], BLOCK_KEYS).to(tl.uint32, bitcast=True)
    return (words >> 9).to(tl.float32) * 2.0**-23 + 2.0**-24


@triton.jit
def attend(
    q, k, rows, keys, n_pos, scale, bias, seed, pair,
    SAMPLE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Scores (-inf where masked), p, the gate, and what its slope is taken for, of a block."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    allowed = (keys[None, :] <= rows[:, None]) & (rows[:, None] < n_pos)
    scores = tl.where(allowed, scores, float("-inf"))
    p = 1 / (1 + tl.exp(-(scores + bias)))
    spread = p * (1 - p)
    if SAMPLE:
        u = uniform(seed, pair, rows, tl.min(keys), n_pos, BLOCK_KEYS)
        gate = (u < p).to(tl.float32)
        total = p * (1 - u) + u * (1 - p)
        slope = spread * u * (1 - u) / (total * total)
    else:
        gate = (scores + bias > 0).to(tl.float32)
        slope = spread
    return scores, p, gate, spread, slope


@triton.jit
def load(pointer, pair, rows, n_pos, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a [pair, pos, d_head] tensor; nothing beyond its ends."""
    dims = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < n_pos) & (dims[None, :] < D)
    at = pair.to(tl.int64) * n_pos * D + rows[:, None] * D + dims[None, :]
    return tl.load(pointer + at, mask=inside, other=0.0)


@triton.jit
def store(pointer, values, pair, rows, n_pos, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes rows of a [pair, pos, d_head] tensor."""
    dims = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < n_pos) & (dims[None, :] < D)
    at = pair.to(tl.int64) * n_pos * D + rows[:, None] * D + dims[None, :]
    tl.store(pointer + at, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def forward_kernel(
    Q, K, V, Z, LOG_SUMS, EXPECTED, OPEN, seed, scale, bias, n_pos,
    SAMPLE: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """A block's z and logs of the softmax's sums; its p and gate, summed."""
    block, pair = tl.program_id(0), tl.program_id(1)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    q = load(Q, pair, rows, n_pos, D, BLOCK_D)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    z = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    expected = tl.zeros((BLOCK,), tl.float32)
    n_open = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, tl.minimum((block + 1) * BLOCK, n_pos), BLOCK_KEYS):
        keys = first + tl.arange(0, BLOCK_KEYS)
        k = load(K, pair, keys, n_pos, D, BLOCK_D)
        v = load(V, pair, keys, n_pos, D, BLOCK_D)
        scores, p, gate, _, _ = attend(
            q, k, rows, keys, n_pos, scale, bias, seed, pair, SAMPLE, PRECISION, BLOCK_KEYS
        )
        expected += tl.sum(p, 1)
        n_open += tl.sum(gate, 1)
        higher = tl.maximum(top, tl.max(scores, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # a row beyond the end
        weights = tl.exp(scores - finite[:, None])
        shrink = tl.exp(top - finite)
        total = total * shrink + tl.sum(weights, 1)
        kept = (weights * gate).to(v.dtype)
        z = z * shrink[:, None] + tl.dot(kept, v, input_precision=PRECISION)
        top = higher
    inside = rows < n_pos
    total = tl.where(inside, total, 1.0)
    store(Z, z / total[:, None], pair, rows, n_pos, D, BLOCK_D)
    tl.store(LOG_SUMS + pair * n_pos + rows, top + tl.log(total), mask=inside)
    tl.store(EXPECTED + pair * tl.num_programs(0) + block, tl.sum(expected, 0))
    tl.store(OPEN + pair * tl.num_programs(0) + block, tl.sum(n_open, 0))


@triton.jit
def scores_gradient(
    q, k, v, z_grad, log_sums, row_sums, expected_grad, rows, keys, n_pos, scale, bias, seed, pair,
    SAMPLE: tl.constexpr, FROZEN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """The gradient in the scores of a block, and the gated weights."""
    scores, _, gate, spread, slope = attend(
        q, k, rows, keys, n_pos, scale, bias, seed, pair, SAMPLE, PRECISION, BLOCK_KEYS
    )
    weights = tl.exp(scores - log_sums[:, None])
    values_grad = tl.dot(z_grad, tl.trans(v), input_precision=PRECISION)
    through = gate if FROZEN else gate + slope
    grad = weights * (values_grad * through - row_sums[:, None]) + expected_grad * spread
    return grad * scale, weights * gate


@triton.jit
def queries_kernel(
    Q, K, V, Z_GRAD, LOG_SUMS, ROW_SUMS, EXPECTED_GRAD, Q_GRAD, seed, scale, bias, n_pos,
    SAMPLE: tl.constexpr, FROZEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """The gradient in a block of queries."""
    block, pair = tl.program_id(0), tl.program_id(1)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n_pos
    q = load(Q, pair, rows, n_pos, D, BLOCK_D)
    z_grad = load(Z_GRAD, pair, rows, n_pos, D, BLOCK_D)
    log_sums = tl.load(LOG_SUMS + pair * n_pos + rows, mask=inside, other=0.0)
    row_sums = tl.load(ROW_SUMS + pair * n_pos + rows, mask=inside, other=0.0)
    expected_grad = tl.load(EXPECTED_GRAD + pair)
    q_grad = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for first in range(0, tl.minimum((block + 1) * BLOCK, n_pos), BLOCK_KEYS):
        keys = first + tl.arange(0, BLOCK_KEYS)
        k = load(K, pair, keys, n_pos, D, BLOCK_D)
        v = load(V, pair, keys, n_pos, D, BLOCK_D)
        grad, _ = scores_gradient(
            q, k, v, z_grad, log_sums, row_sums, expected_grad, rows, keys, n_pos,
            scale, bias, seed, pair, SAMPLE, FROZEN, PRECISION, BLOCK_KEYS,
        )  # fmt: skip
        q_grad += tl.dot(grad.to(k.dtype), k, input_precision=PRECISION)
    store(Q_GRAD, q_grad, pair, rows, n_pos, D, BLOCK_D)


@triton.jit
def keys_kernel(
    Q, K, V, Z_GRAD, LOG_SUMS, ROW_SUMS, EXPECTED_GRAD, K_GRAD, V_GRAD, seed, scale, bias, n_pos,
    SAMPLE: tl.constexpr, FROZEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """The gradients in a block of keys and values."""
    block, pair = tl.program_id(0), tl.program_id(1)
    keys = block * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    k = load(K, pair, keys, n_pos, D, BLOCK_D)
    v = load(V, pair, keys, n_pos, D, BLOCK_D)
    expected_grad = tl.load(EXPECTED_GRAD + pair)
    k_grad = tl.zeros((BLOCK_KEYS, BLOCK_D), tl.float32)
    v_grad = tl.zeros((BLOCK_KEYS, BLOCK_D), tl.float32)
    # Earlier queries see none of these keys.
    for first in range(block * BLOCK_KEYS // BLOCK * BLOCK, n_pos, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        inside = rows < n_pos
        q = load(Q, pair, rows, n_pos, D, BLOCK_D)
        z_grad = load(Z_GRAD, pair, rows, n_pos, D, BLOCK_D)
        log_sums = tl.load(LOG_SUMS + pair * n_pos + rows, mask=inside, other=0.0)
        row_sums = tl.load(ROW_SUMS + pair * n_pos + rows, mask=inside, other=0.0)
        grad, kept = scores_gradient(
            q, k, v, z_grad, log_sums, row_sums, expected_grad, rows, keys, n_pos,
            scale, bias, seed, pair, SAMPLE, FROZEN, PRECISION, BLOCK_KEYS,
        )  # fmt: skip
        v_grad += tl.dot(tl.trans(kept.to(z_grad.dtype)), z_grad, input_precision=PRECISION)
        k_grad += tl.dot(tl.trans(grad.to(q.dtype)), q, input_precision=PRECISION)
    store(K_GRAD, k_grad, pair, keys, n_pos, D, BLOCK_D)
    store(V_GRAD, v_grad, pair, keys, n_pos, D, BLOCK_D)


@triton.jit
def uniform_kernel(U, seed, n_pos, BLOCK: tl.constexpr, BLOCK_KEYS: tl.constexpr):
    """Writes the numbers that a pass with this seed draws, [pair, pos, pos]."""
    block, pair = tl.program_id(0), tl.program_id(1)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    for first in range(0, n_pos, BLOCK_KEYS):
        keys = first + tl.arange(0, BLOCK_KEYS)
        u = uniform(seed, pair, rows, first, n_pos, BLOCK_KEYS)
        at = pair.to(tl.int64) * n_pos * n_pos + rows[:, None] * n_pos + keys[None, :]
        tl.store(U + at, u, mask=(rows[:, None] < n_pos) & (keys[None, :] < n_pos))
