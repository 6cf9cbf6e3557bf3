"""Intervals of circuit sizes, of their ratios, and over training seeds.

A size is an estimate from prompts, those that rank and those that size. How far it would differ
with others is read off circuits that are found again on halves of these prompts
(`circuits.discovery.redraw`): their sizes lie apart as those from other prompts of the same number
do. Of a size or a ratio the interval is Student's, of its logarithm, since sizes differ by factors.
Two models on the same prompts share their halves, so the interval of their ratio is a paired one.
What is measured for a circuit that is fixed, such as its faithfulness, has a percentile interval
over resampled prompts. None of them speak of the training seed, which has an interval of its own
(`seeds_interval`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache

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


def spread_interval(size: float, redrawn: Sequence[float]) -> tuple[float, float]:
    """Returns the 95 % interval of a size whose spread is that of redrawn ones.

    `size exp(-+ t s)`, with `s` the deviation of the redrawn sizes' logarithms and `t` Student's
    point with one degree of freedom fewer than there are. NaN without redrawn sizes, and where some
    are 0 and others not, which have no logarithm.
    """
    error, freedom = _log_error(size, redrawn)
    if math.isnan(error):
        return math.nan, math.nan
    if error == 0:  # A size of 0, too, that all halves have.
        return size, size
    margin = t_quantile(freedom) * error
    return size * math.exp(-margin), size * math.exp(margin)


def ratio_of(dense: float, sparse: float) -> float:
    """Returns dense over sparse; NaN where both are 0, infinity where only the sparse one is."""
    if sparse == 0:
        return math.nan if dense == 0 else math.inf
    return dense / sparse


def ratio_interval(
    dense: float, sparse: float, dense_redrawn: Sequence[float], sparse_redrawn: Sequence[float]
) -> tuple[float, float, float]:
    """Returns a ratio of sizes, and its 95 % interval, from sizes redrawn on the same halves.

    The ratio is that of `ratio_of`, the interval that of `spread_interval`.
    """
    ratio = ratio_of(dense, sparse)
    return ratio, *spread_interval(ratio, _ratios(dense_redrawn, sparse_redrawn))


def p_value(
    dense: float, sparse: float, dense_redrawn: Sequence[float], sparse_redrawn: Sequence[float]
) -> float:
    """Returns the two-sided p-value of "both circuits are of one size", which fits the interval.

    Student's test of the logarithm of the ratio. NaN without an interval, and where all halves have
    one ratio: then nothing tells how far it is from 1.
    """
    ratio = ratio_of(dense, sparse)
    error, freedom = _log_error(ratio, _ratios(dense_redrawn, sparse_redrawn))
    if math.isnan(error) or error == 0:
        return math.nan
    return t_tails(abs(math.log(ratio)) / error, freedom)


def percentile_ratio_interval(
    dense_samples: Sequence[float], sparse_samples: Sequence[float]
) -> tuple[float, float]:
    """Returns the 95 % percentile interval of a ratio of sizes over resamples of the same prompts.

    Without resamples it is NaN.
    """
    samples = _ratios(dense_samples, sparse_samples)
    if not samples or any(math.isnan(sample) for sample in samples):
        return math.nan, math.nan
    ordered = sorted(samples)
    if math.isinf(ordered[-1]):  # Quantiles cannot be interpolated at infinity.
        tail = round(0.025 * (len(ordered) - 1))
        return ordered[tail], ordered[-1 - tail]
    return interval(torch.tensor(samples))


def _ratios(dense: Sequence[float], sparse: Sequence[float]) -> list[float]:
    return [ratio_of(one, other) for one, other in zip(dense, sparse, strict=True)]


def _log_error(estimate: float, redrawn: Sequence[float]) -> tuple[float, int]:
    """The standard error of an estimate's logarithm, and its degrees of freedom."""
    freedom = len(redrawn) - 1
    if freedom >= 1 and len(set(redrawn)) == 1 and not math.isnan(redrawn[0]):
        return 0.0, freedom
    if freedom < 1 or not all(0 < value < math.inf for value in (estimate, *redrawn)):
        return math.nan, freedom
    return statistics.stdev(map(math.log, redrawn)), freedom


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


@cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """Returns how far the middle `level` of Student's t reaches, by bisection of its integral."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        half = (low + high) / 2
        low, high = (half, high) if _middle(half, freedom) < level else (low, half)
    return math.sqrt(freedom) * math.tan(low)


def t_tails(t: float, freedom: int) -> float:
    """Returns the probability that Student's t is farther from 0 than `t`."""
    return max(0.0, 1 - _middle(math.atan(t / math.sqrt(freedom)), freedom))


def _middle(angle: float, freedom: int) -> float:
    """The probability that Student's t is nearer to 0 than sqrt(freedom) tan(angle)."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    # In the angle the density is a power of the cosine: no tails.
    angles = torch.linspace(0, angle, 4001, dtype=torch.float64)
    return (
        2
        * scale
        / math.sqrt(math.pi)
        * float(torch.trapezoid(angles.cos() ** (freedom - 1), angles))
    )
