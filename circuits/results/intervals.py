"""Intervals of circuit sizes, of their ratios, and over training seeds.

Two models on the same prompts share their resamples (`circuits.discovery.resample`), so the
interval of their ratio is a paired one. Intervals are 95 % percentile intervals. They speak of the
choice of prompts only: not of the training seed, nor of the ranking set. Training seeds have an
interval of their own (`seeds_interval`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LEVEL = 0.95


def interval(samples: Float[Tensor, " resample"]) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the samples; NaN where there are none."""
    if len(samples) == 0:
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    low, high = samples.double().quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return float(low), float(high)


def ratio_interval(
    dense: float, sparse: float, dense_samples: Sequence[float], sparse_samples: Sequence[float]
) -> tuple[float, float, float]:
    """Returns a ratio of sizes, and its 95 % interval over resamples of the same prompts.

    NaN where both circuits are empty, infinity where only the sparse one is. Without resamples
    the interval is NaN.
    """
    ratio = _divide(dense, sparse)
    samples = [
        _divide(one, other) for one, other in zip(dense_samples, sparse_samples, strict=True)
    ]
    if not samples or any(math.isnan(sample) for sample in samples):
        return ratio, math.nan, math.nan
    ordered = sorted(samples)
    if math.isinf(ordered[-1]):  # Quantiles cannot be interpolated at infinity.
        tail = round(0.025 * (len(ordered) - 1))
        return ratio, ordered[tail], ordered[-1 - tail]
    return ratio, *interval(torch.tensor(samples))


def paired_p_value(dense_samples: Sequence[float], sparse_samples: Sequence[float]) -> float:
    """Returns the two-sided p-value of "both circuits are of one size", from paired resamples.

    Twice the smaller share of resamples in which one circuit is at most, or at least, as big as
    the other, with one added to both counts so that it is never 0 (Davison and Hinkley 1997,
    section 4.2). NaN without resamples.
    """
    pairs = list(zip(dense_samples, sparse_samples, strict=True))
    if not pairs:
        return math.nan
    at_most = sum(dense <= sparse for dense, sparse in pairs)
    at_least = sum(dense >= sparse for dense, sparse in pairs)
    return min(1.0, 2 * (min(at_most, at_least) + 1) / (len(pairs) + 1))


def seeds_interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Returns the geometric mean of a ratio over training seeds, and its 95 % interval.

    Student's t-interval of the logarithms: few seeds give a wide one, a single seed none (NaN).
    A ratio that is 0, infinite or NaN leaves no mean.
    """
    if not ratios or not all(0 < ratio < math.inf for ratio in ratios):
        return math.nan, math.nan, math.nan
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), math.nan, math.nan
    margin = t_quantile(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - margin), math.exp(mean + margin)


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """Returns how far the middle `level` of Student's t reaches, by bisection of its integral."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    scale /= math.sqrt(math.pi)

    def middle(angle: float) -> float:
        # With t = sqrt(freedom) tan(angle), the density is a power of the cosine: no tails.
        angles = torch.linspace(0, angle, 4001, dtype=torch.float64)
        return 2 * scale * float(torch.trapezoid(angles.cos() ** (freedom - 1), angles))

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        half = (low + high) / 2
        low, high = (half, high) if middle(half) < level else (low, half)
    return math.sqrt(freedom) * math.tan(low)


def _divide(dense: float, sparse: float) -> float:
    if sparse == 0:
        return math.nan if dense == 0 else math.inf
    return dense / sparse
