"""The gate's decision and its gradient: gate logits g in, A in {0, 1} out.

    training      A = 1[u < p],  p = sigmoid(g),  u uniform in (0, 1);  dA/dg := s(1-s)
    evaluation    A = 1[g > 0];  dA/dg := p(1-p)

s is the sigmoid that the reference (hrpan/splash_attention) differentiates. It writes the sample
as 1[g + logit(1 - u) > 0] and takes the gradient of sigmoid(g + logit(1 - u)); the odds of that
are p/(1-p) * (1-u)/u, so s = p(1-u) / (p(1-u) + u(1-p)), which needs no logarithm. Taking p(1-p)
while sampling would be another estimator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MASKED = -1e30  # scores at or below this are masked
# Elements worked on at once: on a CPU few enough to stay in the cache, and enough to outweigh each
# call's cost; elsewhere what memory allows, since a GPU waits for each call.
_CHUNK = {True: 2**18, False: 2**28}


class OpenGates(torch.autograd.Function):
    """Gate logits -> A, per-head sum of sigmoid(g), and counts of open and allowed pairs.

    A and the sum are differentiable in g; the counts are [open or allowed, head]. Masked pairs
    (g of -inf, or the lowest number of a dtype) come out as 0 everywhere, in the gradient too.
    Memory traffic is what costs time here: hence the chunks, the work in place, and one pass of
    backward for each gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, sample: bool, frozen: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns A, the sums and the counts of logits [batch, head, query_pos, key_pos]."""
        dtype = torch.promote_types(logits.dtype, torch.float32)  # noise and p, also under bf16
        floor = masked_below(logits.dtype)
        gate = torch.empty(logits.shape, dtype=dtype, device=logits.device)
        spread = torch.empty_like(gate)  # p(1-p)
        soft = torch.empty_like(gate) if sample and not frozen else None  # s
        noise, sums = _uniform_numbers(logits.device) if sample else None, []
        at_once = _CHUNK[logits.device.type == "cpu"]
        step = min(len(logits), max(1, at_once // max(1, logits[:1].numel())))
        work = torch.empty(logits[:step].shape, dtype=dtype, device=logits.device)
        for start in range(0, logits.shape[0], step):
            rows = slice(start, start + step)
            chunk, open_ = logits[rows].to(dtype), gate[rows]
            work = work[: len(chunk)]
            allowed = torch.sub(chunk, floor, out=work).gt_(0).sum(dim=(0, 2, 3))
            p = torch.sigmoid(chunk)
            torch.addcmul(p, p, p, value=-1, out=spread[rows])
            expected = p.sum(dim=(0, 2, 3))
            u = noise(p.shape).to(dtype) if noise else None
            if u is None:
                torch.gt(chunk, 0, out=open_)
            else:
                torch.sub(p, u, out=open_).gt_(0)  # in place: twice as fast as `u < p`
            sums.append(torch.stack((expected, open_.sum(dim=(0, 2, 3)), allowed)))
            if soft is not None and u is not None:
                torch.mul(p, u, out=work)
                kept = p.sub_(work)  # p(1-u)
                total = u.sub_(work).add_(kept)  # u(1-p) + p(1-u)
                torch.div(kept, total, out=soft[rows])
        stacked = torch.stack(sums)
        expected, counts = stacked[:, 0].sum(dim=0), stacked[:, 1:].long().sum(dim=0)
        ctx.save_for_backward(spread, soft)
        ctx.frozen = frozen
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(counts)
        return gate.to(logits.dtype), expected, counts

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gate_grad: Tensor | None, expected_grad: Tensor | None, _: None
    ) -> tuple[Tensor | None, None, None]:
        """Returns the gradient in the logits."""
        spread, soft = ctx.saved_tensors
        grad = None
        if gate_grad is not None and not ctx.frozen:
            # sigmoid_backward(x, s) is x s(1-s) in one pass.
            grad = (
                gate_grad * spread
                if soft is None
                else torch.ops.aten.sigmoid_backward(gate_grad.to(soft.dtype), soft)
            )
        if expected_grad is not None:
            weight = expected_grad[None, :, None, None]
            grad = spread * weight if grad is None else grad.addcmul_(spread, weight)
        return grad, None, None


class Noise:
    """Uniform numbers in the open interval (0, 1) for the gate, drawn in float32.

    On a CPU, random numbers cost more than all the gate's arithmetic, so four of them are cut
    from one 64-bit word of a fast generator, and one dither v, shared by the call, fills the bits
    below: u = (k + v) / 2^16 with k of 16 bits, v an odd multiple of 2^-8. Each u alone is then
    uniform over 2^23 equally spaced numbers, as fine as torch.rand, and P(u < p) = p; two gates
    depend on each other only where both p fall into one cell of 2^-16. The generator is seeded
    from torch's, so `torch.manual_seed` and `torch.get_rng_state` govern it.

    Attributes:
        seed: What decides the numbers; a second Noise of this seed gives the same ones again.
    """

    def __init__(self, device: torch.device, seed: tuple[int, int] | None = None) -> None:
        first, second = torch.randint(2**62, (2,)).tolist() if seed is None else seed
        self.seed = (first, second)
        self._device = device
        if device.type == "cpu":
            self._words = np.random.SFC64(first)
            self._offset = 2**15 + ((second % 2**7) + 0.5) / 2**7
        else:
            self._generator = torch.Generator(device).manual_seed(first)

    def uniform(self, shape: torch.Size) -> Tensor:
        """Returns the next numbers, in a tensor that the caller may overwrite."""
        if self._device.type != "cpu":
            return _uniform_on_device(shape, self._device, self._generator)
        count = math.prod(shape)
        words = self._words.random_raw(-(-count // 4)).view(np.int16)[:count]
        noise = torch.from_numpy(words).to(torch.float32)
        return noise.add_(self._offset).mul_(2**-16).view(shape)


def _uniform_numbers(device: torch.device) -> Callable[[torch.Size], Tensor]:
    """Returns what draws numbers that are not needed a second time.

    Off the CPU they come from the device's own generator, which a CUDA graph can replay.
    """
    if device.type == "cpu":
        return Noise(device).uniform
    return lambda shape: _uniform_on_device(shape, device)


def _uniform_on_device(
    shape: torch.Size, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Returns numbers in (0, 1) that a device draws, by default with its own generator."""
    noise = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
    return noise.clamp_(2**-24, 1 - 2**-24)


def masked_below(dtype: torch.dtype) -> float:
    """Returns the score at or below which a pair is masked; half precision cannot reach -1e30."""
    return max(_MASKED, torch.finfo(dtype).min)
