"""The smallest faithful circuit along a ranking, by real interventions.

Faithfulness is measured at about twenty sizes from nothing to everything, spaced evenly on a
logarithmic scale; between the first size that reaches the target and the one before, the search
halves until two neighbouring sizes lie on either side. So the circuit returned reaches the
target, and without its last component it does not. Faithfulness need not grow with size; what
is returned is the first crossing that this grid can see.

Prompts may fall into groups, each with a ranking of its own (attention edges, whose positions
mean the same only within a template). The groups are searched side by side, each at its own
size, in the same forward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

N_GRID = 20

Evaluate = Callable[[Int[Tensor, " group"]], Float[Tensor, " batch"]]
"""How many components each group keeps -> the metric of every prompt."""


@dataclass(frozen=True)
class Search:
    """Every size that was tried, smallest first, and the smallest that is faithful.

    Attributes:
        sizes: Number of components kept, per trial and group.
        values: The metric, per trial and prompt.
        groups: Which group each prompt is in.
        full: The metric of the whole model, per prompt.
        empty: The metric with everything ablated, per prompt.
        chosen: The smallest faithful number of components, per group.
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


def find_smallest(
    evaluate: Evaluate,
    *,
    n_components: Int[Tensor, " group"],
    groups: Int[Tensor, " batch"],
    full: Float[Tensor, " batch"],
    empty: Float[Tensor, " batch"],
    target: float,
    on_trial: Callable[[], None] = lambda: None,
) -> Search:
    """Returns the search for the smallest sizes whose faithfulness is at least `target`.

    Args:
        evaluate: Runs the model with the first so many components of each group's ranking.
        n_components: How many components each group's ranking has.
        groups: Which group each prompt is in.
        full: The metric of the whole model, per prompt.
        empty: The metric with everything ablated, per prompt.
        target: The faithfulness asked for, above 0 and at most 1.
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

    def try_sizes(sizes: Tensor) -> Tensor:
        """Faithfulness of each group at `sizes`."""
        tried.append(sizes)
        values.append(evaluate(sizes).cpu().double())
        on_trial()
        return group_faithfulness(values[-1][None], full, empty, groups)[0]

    grid = size_grid(n_components)
    reached = torch.stack([try_sizes(sizes) for sizes in grid]) >= target
    reached[-1] = True  # Everything is the whole model, up to rounding.
    first = reached.int().argmax(dim=0)
    columns = torch.arange(len(n_components))
    high = grid[first, columns]
    low = torch.where(first > 0, grid[(first - 1).clamp(min=0), columns], high - 1)
    while ((high - low) > 1).any():
        middle = torch.where(high - low > 1, (high + low) // 2, high)
        faithful = try_sizes(middle) >= target
        open_ = high - low > 1
        low = torch.where(open_ & ~faithful, middle, low)
        high = torch.where(open_ & faithful, middle, high)
    order = _sorted_trials(torch.stack(tried), torch.stack(values), groups)
    return Search(*order, groups, full, empty, high, target)


def size_grid(n_components: Int[Tensor, " group"]) -> Int[Tensor, "trial group"]:
    """Returns sizes from 0 to everything, evenly spaced in log(1 + size), for each group."""
    steps = torch.linspace(0, 1, N_GRID, dtype=torch.float64)[:, None]
    grid = ((1 + n_components.double()) ** steps - 1).round().long()
    return grid.unique(dim=0) if len(n_components) == 1 else grid


def _sorted_trials(
    sizes: Int[Tensor, "trial group"], values: Float[Tensor, "trial batch"], groups: Tensor
) -> tuple[Tensor, Tensor]:
    """Sorts the trials by size within each group, carrying each prompt's values along."""
    order = sizes.argsort(dim=0, stable=True)
    return sizes.gather(0, order), values.gather(0, order[:, groups])
