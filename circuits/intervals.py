"""Bootstrap intervals of circuit sizes and of their ratios.

Held-out prompts are drawn with replacement within each template, so that every resample has the
templates' shares of the original. In each resample the smallest faithful size is read off the
sizes that the search tried, with faithfulness interpolated linearly between neighbours; no new
interventions are run. Two models on the same prompts share their resamples, so the interval of
their ratio is a paired one. Intervals are 95 % percentile intervals. They speak of the choice of
prompts only: not of the training seed, nor of the ranking set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.search import Search

N_RESAMPLES = 1000
LEVEL = 0.95


def resample_counts(
    templates: Sequence[str], *, seed: int, n_resamples: int = N_RESAMPLES
) -> Float[Tensor, "resample batch"]:
    """Returns how often each prompt is drawn in each resample, stratified by template."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(n_resamples, len(templates), dtype=torch.float64)
    members: dict[str, list[int]] = {}
    for index, template in enumerate(templates):
        members.setdefault(template, []).append(index)
    for rows in members.values():
        drawn = torch.randint(len(rows), (n_resamples, len(rows)), generator=generator)
        picked = torch.tensor(rows)[drawn]
        counts.scatter_add_(1, picked, torch.ones_like(picked, dtype=counts.dtype))
    return counts


def resampled_sizes(
    search: Search,
    counted: Float[Tensor, "trial group"],
    counts: Float[Tensor, "resample batch"],
) -> Float[Tensor, " resample"]:
    """Returns the smallest faithful size in each resample, averaged over groups.

    Args:
        search: The trials.
        counted: The size to report for each trial and group (after dropping what is not
            connected), in the order of `search.sizes`.
        counts: How often each prompt is drawn.
    """
    member = torch.nn.functional.one_hot(search.groups).double()
    gap = (counts * (search.full - search.empty)) @ member  # [resample, group]
    gain = torch.einsum("nb,tb,bg->ntg", counts, search.values - search.empty, member)
    reached = gain / gap[:, None]  # faithfulness, [resample, trial, group]
    faithful = reached >= search.target
    faithful[:, -1] = True
    first = faithful.int().argmax(dim=1)  # [resample, group]
    before = (first - 1).clamp(min=0)
    f_high, f_low = (reached.gather(1, i[:, None])[:, 0] for i in (first, before))
    s_high, s_low = (counted.double().gather(0, i) for i in (first, before))
    share = ((search.target - f_low) / (f_high - f_low)).clamp(0, 1)
    sizes = torch.where(first > 0, (s_low + share * (s_high - s_low)).ceil(), s_high)
    return sizes.mean(dim=1)


def interval(samples: Float[Tensor, " resample"]) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the samples."""
    tail = (1 - LEVEL) / 2
    low, high = samples.double().quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return float(low), float(high)
