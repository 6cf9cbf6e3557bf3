"""The smallest faithful circuit along a ranking, by real interventions.

Faithfulness need not grow with size: it may reach the target, fall under it again and come back.
The circuit that is reported has the smallest size from which faithfulness stays at or above the
target, at every larger size that was tried. So sizes are tried from the largest down, until the
target is missed.

The sizes tried are of a fixed list that depends on the number of components only: every size up to
10, then sizes at most a tenth apart, up to everything. Between the reported size and the one
before, at which the target is missed, the search halves until two neighbouring sizes lie on either
side. So without its last component the circuit misses the target.

Prompts may fall into groups, each with a ranking of its own (attention edges, whose positions
mean the same only within a template). The groups are searched side by side, each at its own
size, in the same forward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

EVERY_UP_TO = 10
"""Every size up to this one is tried; above it, one in steps of a tenth at most."""
N_CURVE = 20

Evaluate = Callable[[Int[Tensor, " group"]], Float[Tensor, " batch"]]
"""How many components each group keeps -> the metric of every prompt."""


@dataclass(frozen=True)
class Search:
    """Every size that was tried, smallest first, and the size from which the target is kept.

    Attributes:
        sizes: Number of components kept, per trial and group.
        values: The metric, per trial and prompt.
        groups: Which group each prompt is in.
        full: The metric of the whole model, per prompt.
        empty: The metric with everything ablated, per prompt.
        chosen: The smallest size from which every larger size tried is faithful, per group.
        target: The faithfulness asked for.
    """

    sizes: Int[Tensor, "trial group"]
    values: Float[Tensor, "trial batch"]
    groups: Int[Tensor, " batch"]
    full: Float[Tensor, " batch"]
    empty: Float[Tensor, " batch"]
    chosen: Int[Tensor, " group"]
    target: float

    def faithfulness_of_groups(self) -> Float[Tensor, "trial group"]:
        """Returns the faithfulness of each trial in each group."""
        return group_faithfulness(self.values, self.full, self.empty, self.groups)

    def values_at(self, sizes: Int[Tensor, " group"]) -> Float[Tensor, " batch"]:
        """Returns the metric of every prompt, each group at its own tried size."""
        trial = [int((self.sizes[:, g] == size).nonzero()[0]) for g, size in enumerate(sizes)]
        return self.values[torch.tensor(trial)[self.groups], torch.arange(len(self.groups))]


def group_faithfulness(
    values: Float[Tensor, "trial batch"],
    full: Float[Tensor, " batch"],
    empty: Float[Tensor, " batch"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, "trial group"]:
    """Returns the faithfulness of each trial, each mean taken over the prompts of a group."""
    member = torch.nn.functional.one_hot(groups).to(values.dtype)  # [batch, group]
    gap = (full - empty) @ member
    return ((values - empty) @ member) / gap


def faithfulness_error(
    values: Float[Tensor, "trial batch"],
    full: Float[Tensor, " batch"],
    empty: Float[Tensor, " batch"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, "trial group"]:
    """Returns the standard error of `group_faithfulness` over the prompts of each group.

    That of a ratio of two means, to first order (Cochran, Sampling Techniques, 1977, chapter 6): of
    the mean of what each prompt has over its share, `values - empty - F (full - empty)`, over the
    mean gap. A group of one prompt has none: 0.
    """
    member = torch.nn.functional.one_hot(groups).to(values.dtype)  # [batch, group]
    n_prompts = member.sum(dim=0)
    share = group_faithfulness(values, full, empty, groups) @ member.T
    over = values - empty - share * (full - empty)
    variance = over.square() @ member / (n_prompts - 1).clamp(min=1)
    gap = (full - empty) @ member / n_prompts
    return (variance / n_prompts).sqrt() / gap.abs()


def kept_from(
    faithfulness: Float[Tensor, "*more trial group"],
    sizes: Int[Tensor, "trial group"],
    target: float,
) -> Int[Tensor, "*more group"]:
    """Returns the trial from which the target is kept.

    Trials are in order of size within each group, and the last holds everything. That is the whole
    model, which is faithful whatever rounding says.
    """
    reached = (faithfulness >= target) | (sizes == sizes[-1])
    after = torch.arange(1, len(sizes) + 1)[:, None]
    return torch.where(reached, 0, after).amax(dim=-2)


def find_smallest(
    evaluate: Evaluate,
    *,
    n_components: Int[Tensor, " group"],
    groups: Int[Tensor, " batch"],
    full: Float[Tensor, " batch"],
    empty: Float[Tensor, " batch"],
    target: float,
    start: int | None = None,
    weights: Float[Tensor, "resample batch"] | None = None,
    on_trial: Callable[[], None] = lambda: None,
) -> Search:
    """Returns the search for the smallest sizes from which faithfulness stays at the target.

    Args:
        evaluate: Runs the model with the first so many components of each group's ranking.
        n_components: How many components each group's ranking has.
        groups: Which group each prompt is in.
        full: The metric of the whole model, per prompt.
        empty: The metric with everything ablated, per prompt.
        target: The faithfulness asked for.
        start: About where to begin, to go down if the target is kept there, else up until it is;
            larger sizes are then not looked at. Everything by default.
        weights: Resamples of the prompts, whose sizes are to be read off the trials too
            (`circuits.discovery.resample.resampled_sizes`): trials go on downwards until every
            group misses the target in each of them.
        on_trial: Called after each trial, to show progress.

    Raises:
        ValueError: the target is out of range, or a group's metric does not fall when everything
            is ablated.
    """
    if not 0 < target <= 1:
        raise ValueError(f"the target must be above 0 and at most 1, got {target}")
    full, empty, groups = full.cpu().double(), empty.cpu().double(), groups.cpu()
    gap = group_faithfulness(full[None], full, empty, groups)
    if not torch.isfinite(gap).all():
        raise ValueError("the metric of a group of prompts does not change when all is ablated")
    tried: list[Tensor] = []
    values: list[Tensor] = []

    def holds(sizes: Tensor) -> Bool[Tensor, " group"]:
        """Whether each group keeps the target at its own of `sizes`."""
        tried.append(sizes)
        values.append(evaluate(sizes).cpu().double())
        on_trial()
        reached = group_faithfulness(values[-1][None], full, empty, groups)[0]
        return (reached >= target) | (sizes == n_components)

    grid = trial_sizes(n_components)
    columns = torch.arange(len(n_components))
    top = n_components if start is None else n_components.clamp(max=start)
    place = (grid < top).sum(dim=0)  # of the first size that is not under it
    missed = torch.full_like(place, -1)  # the last place that misses the target, if one did
    kept = holds(grid[place, columns])
    while not kept.all():
        missed = torch.where(kept, missed, place)
        place = torch.where(kept, place, place + 1)
        kept |= holds(grid[place, columns])
    lowest = place.clone()  # that holds
    resampled = torch.zeros(0, len(groups)).double() if weights is None else weights.double()
    member = torch.nn.functional.one_hot(groups).double()
    gaps = (resampled * (full - empty)) @ member  # [resample, group]
    below = gaps == 0  # which resamples miss the target in which group, or have nothing of it
    while True:
        found = missed >= 0
        waits = (place > 0) & ~(found & below.all(dim=0))
        if not waits.any():
            break
        place = torch.where(waits, place - 1, place)
        kept = holds(grid[place, columns])
        below |= ((resampled * (values[-1] - empty)) @ member) / gaps < target
        lowest = torch.where(~found & kept, place, lowest)
        missed = torch.where(~found & ~kept, place, missed)
    high = grid[lowest, columns]
    low = torch.where(missed >= 0, grid[missed.clamp(min=0), columns], high - 1)
    while ((high - low) > 1).any():
        open_ = high - low > 1
        middle = torch.where(open_, (high + low) // 2, high)
        kept = holds(middle)
        low = torch.where(open_ & ~kept, middle, low)
        high = torch.where(open_ & kept, middle, high)
    sizes, metric = sorted_trials(torch.stack(tried), torch.stack(values), groups)
    return Search(sizes, metric, groups, full, empty, high, target)


def candidate_sizes(n_components: int) -> list[int]:
    """Returns every size up to 10, then sizes at most a tenth apart, up to everything."""
    sizes = list(range(min(n_components, EVERY_UP_TO) + 1))
    while sizes[-1] < n_components:
        sizes.append(min(n_components, sizes[-1] + sizes[-1] // EVERY_UP_TO))
    return sizes


def trial_sizes(n_components: Int[Tensor, " group"]) -> Int[Tensor, "trial group"]:
    """Returns the candidate sizes of each group; the shorter lists end in everything, repeated."""
    lists = [candidate_sizes(n) for n in n_components.tolist()]
    longest = max(map(len, lists))
    return torch.tensor([sizes + sizes[-1:] * (longest - len(sizes)) for sizes in lists]).T


def curve_sizes(n_components: Int[Tensor, " group"]) -> Int[Tensor, "trial group"]:
    """Returns about twenty sizes from 0 to everything, even in log(1 + size), for each group."""
    steps = torch.linspace(0, 1, N_CURVE, dtype=torch.float64)[:, None]
    grid = ((1 + n_components.double()) ** steps - 1).round().long()
    return grid.unique(dim=0) if len(n_components) == 1 else grid


def sorted_trials(
    sizes: Int[Tensor, "trial group"],
    values: Float[Tensor, "trial batch"],
    groups: Int[Tensor, " batch"],
) -> tuple[Int[Tensor, "trial group"], Float[Tensor, "trial batch"]]:
    """Returns the trials by size within each group, carrying each prompt's values along."""
    order = sizes.argsort(dim=0, stable=True)
    return sizes.gather(0, order), values.gather(0, order[:, groups])
