"""Post-training as constrained optimisation: few open attention edges at the dense model's CE.

    minimise  edges(theta)   subject to   CE(theta) <= tau
    loss      weight * edges + lambda * (CE - tau)

CE is the mean cross-entropy over next-token predictions, in nats. lambda follows GECO (Rezende
and Viola 2018, arXiv 1810.00597), as in arXiv 2512.05865: lambda <- lambda * exp(eta * EMA(CE -
tau)), clamped. Two things differ. The CE that drives it is the deterministic gate's on held-out
data: the sampled gate's stays above it and would push lambda up without end. And the running mean
begins anew whenever CE crosses the bound: a mean that still held what was measured on the other
side would go on lowering lambda for long after the bound was broken.

Where KL(dense || sparse) <= epsilon is the constraint, KL stands for CE and epsilon for tau in both
formulas, and lambda is the price of a nat of KL. What moves it is then a share of epsilon, at most
1: a KL within its bound is at most epsilon below it, so that in nats lambda would hardly fall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuits.choices import EDGE_PENALTIES, EdgePenalty, check_choice

_NO_TARGET = -100
# Logits whose divergence is computed at once: few enough for the caches of a CPU, enough for a GPU.
_VALUES_AT_ONCE = {True: 2**20, False: 2**26}  # on a CPU, elsewhere


def cross_entropy(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, ""]:
    """Returns the mean cross-entropy of all next-token predictions, in nats."""
    targets = tokens.roll(-1, dims=1)
    targets[:, -1] = _NO_TARGET  # the last position predicts nothing that we know
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=_NO_TARGET)


def distillation_loss(
    logits: Float[Tensor, "batch pos d_vocab"], teacher_logits: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, ""]:
    """Returns KL(teacher || model) in nats, averaged over batch and positions.

    The gradient is that of the model's logits alone. It is taken with the value, some positions at
    a time, so that of large vocabularies no more than the two logits and the gradient is held.
    """
    return _Divergence.apply(logits.flatten(0, 1), teacher_logits.flatten(0, 1))


class _Divergence(torch.autograd.Function):
    """KL(p || q) of the rows' softmaxes, whose gradient in the logits of q is (q - p) / rows."""

    @staticmethod
    def forward(
        ctx: Any, logits: Float[Tensor, "row d_vocab"], teacher: Float[Tensor, "row d_vocab"]
    ) -> Float[Tensor, ""]:
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        at_once = max(1, _VALUES_AT_ONCE[logits.device.type == "cpu"] // logits.shape[1])
        for start in range(0, len(logits), at_once):
            rows = slice(start, start + at_once)
            log_q = logits[rows].float().log_softmax(dim=-1)
            log_p = teacher[rows].float().log_softmax(dim=-1)
            p = log_p.exp()
            total += (p * log_p.sub_(log_q)).sum()
            if gradient is not None:
                gradient[rows] = log_q.exp_().sub_(p).div_(len(logits))
        ctx.gradient = gradient
        return (total / len(logits)).float()

    @staticmethod
    def backward(ctx: Any, *upstream: Float[Tensor, ""]) -> tuple[Tensor | None, None]:
        return (None if ctx.gradient is None else ctx.gradient * upstream[0]), None


def edge_penalty(
    expected: Float[Tensor, "layer head"],
    allowed: Int[Tensor, "layer head"],
    kind: EdgePenalty | str = "mean",
) -> Float[Tensor, ""]:
    """Returns one number for how many attention edges are expected to be open.

    With d_l the expected density of layer l:

    - `"mean"`: all open edges over all allowed edges, the objective of the paper;
    - `"rms"`: the root mean square of d_l. Its gradient weighs a layer by d_l, so it presses on
      the densest layer, which the mean lets lag behind;
    - `"log"`: the mean of log d_l. Its gradient weighs a layer by 1 / d_l: to halve a density
      pays the same at 20 % as at 0.2 %, so the pressure does not fade as the gate closes.

    Args:
        expected: sum of sigmoid(g) over the allowed edges.
        allowed: number of allowed edges.
        kind: see above.

    Raises:
        ValueError: an unknown kind.
    """
    check_choice("edge penalty", kind, EDGE_PENALTIES)
    if kind == "mean":
        return expected.sum() / allowed.sum()
    density = expected.sum(dim=1) / allowed.sum(dim=1)
    if kind == "rms":
        return density.square().mean().sqrt()
    return density.clamp(min=torch.finfo(density.dtype).tiny).log().mean()


@dataclass(frozen=True)
class Multiplier:
    """lambda, the price of a nat of what is bounded, and the running mean that moves it.

    Attributes:
        value: lambda.
        ema: running mean of the violation in nats, over the measurements since it last crossed 0;
            None before the first update.
    """

    value: float
    ema: float | None = None

    def updated(
        self, violation: float, *, rate: float, decay: float, low: float, high: float
    ) -> Multiplier:
        """Returns lambda after one more measurement: up where the constraint is broken.

        The running mean never has another sign than the violation. It is a mean of values on one
        side of the bound, so where CE only scatters about the bound, lambda moves on average by
        what CE is off on average, as without the rule. So it is with the KL.

        Args:
            violation: CE - tau in nats, or KL / epsilon - 1; positive where the bound is broken.
            rate: eta, the growth of log lambda per update and unit of violation.
            decay: weight of the past in the running mean, 0 for none.
            low: smallest lambda.
            high: greatest lambda.

        Raises:
            FloatingPointError: the violation is not finite.
        """
        if not math.isfinite(violation):
            raise FloatingPointError(
                f"the violation of the bound is {violation}; lambda cannot follow it"
            )
        if self.ema is None or self.ema * violation < 0:
            ema = violation
        else:
            ema = decay * self.ema + (1 - decay) * violation
        log_value = math.log(self.value) + rate * ema
        return Multiplier(math.exp(min(max(log_value, math.log(low)), math.log(high))), ema)
