"""Resamples of prompts, and what a circuit comes to in each of them.

Prompts are drawn with replacement. Where every template has at least five, they are drawn within
each template, so that every resample has the templates' shares of the original; where one has
fewer, a draw within it would say that it never varies, and prompts are drawn from all of them.
Under ten prompts there is no interval. Of `n` prompts `n - 1` are drawn, each with the weight
`n / (n - 1)`: plain resamples vary too little, by that factor (Rao and Wu 1988). To ask about other
wordings as well, whole templates are drawn instead (`resample_templates`).

In each resample of templates the smallest size from which the target is kept is read off the sizes
that the search tried, by the rule of the search, with faithfulness interpolated linearly between
neighbours; no new interventions are run. Two models on the same prompts share their resamples. Such
a size takes the ranking for granted; how far a size would differ with other prompts to rank on as
well is asked of circuits/discovery/redraw.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.discovery.search import Search, kept_from

N_RESAMPLES = 1000
LEAST_DRAWN = 5
"""Prompts that each template must have to be drawn within, and templates to be drawn as a whole."""
LEAST_PROMPTS = 10
"""Under this number of prompts there is no interval."""


@dataclass(frozen=True)
class Resamples:
    """How often each prompt counts in each resample.

    Attributes:
        weights: The weights of the prompts; they add up to the number of prompts. No row where
            there is too little to draw from.
        drawn: What was drawn: "prompts within templates", "prompts", "templates", or "none: "
            and why.
    """

    weights: Float[Tensor, "resample batch"]
    drawn: str


def resample_prompts(
    templates: Sequence[str], *, seed: int, n_resamples: int = N_RESAMPLES
) -> Resamples:
    """Returns resamples of prompts, drawn within templates where each has enough of them."""
    strata = members_of(templates)
    if len(templates) < LEAST_PROMPTS:
        return _none(templates, too_few(len(templates), "prompt"))
    within = len(strata) > 1 and min(map(len, strata)) >= LEAST_DRAWN
    if not within:
        strata = [list(range(len(templates)))]
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(n_resamples, len(templates), dtype=torch.float64)
    for rows in strata:
        weights[:, rows] = _draw(len(rows), n_resamples, generator)
    return Resamples(weights, "prompts within templates" if within else "prompts")


def resample_templates(
    templates: Sequence[str], *, seed: int, n_resamples: int = N_RESAMPLES
) -> Resamples:
    """Returns resamples of whole templates, with all of their prompts."""
    strata = members_of(templates)
    if len(templates) < LEAST_PROMPTS or len(strata) < LEAST_DRAWN:
        return _none(templates, too_few(len(strata), "template"))
    drawn = _draw(len(strata), n_resamples, torch.Generator().manual_seed(seed))
    weights = torch.zeros(n_resamples, len(templates), dtype=torch.float64)
    for number, rows in enumerate(strata):
        weights[:, rows] = drawn[:, number, None]
    return Resamples(weights, "templates")


@dataclass(frozen=True)
class TemplateWeights:
    """The weights of prompts under which sizes are read off a search, besides all of them.

    Attributes:
        drawn: Whole templates, drawn with replacement; no row where they are too few.
        each: Every template alone.
    """

    drawn: Float[Tensor, "resample batch"]
    each: Float[Tensor, "template batch"]

    @classmethod
    def of(cls, templates: Sequence[str], *, seed: int) -> TemplateWeights:
        """Returns the weights of prompts of these templates."""
        return cls(resample_templates(templates, seed=seed).weights, single_templates(templates))


def single_templates(templates: Sequence[str]) -> Float[Tensor, "template batch"]:
    """Returns the weights under which each template alone counts."""
    weights = torch.zeros(len(set(templates)), len(templates), dtype=torch.float64)
    for number, rows in enumerate(members_of(templates)):
        weights[number, rows] = 1
    return weights


def members_of(templates: Sequence[str]) -> list[list[int]]:
    """Returns the prompts of each template."""
    found: dict[str, list[int]] = {}
    for index, template in enumerate(templates):
        found.setdefault(template, []).append(index)
    return list(found.values())


def too_few(n: int, what: str) -> str:
    """Returns what is said where there is no interval because of too few prompts or templates."""
    return f"none: {n} {what}{' is' if n == 1 else 's are'} too few"


def _none(templates: Sequence[str], why: str) -> Resamples:
    return Resamples(torch.zeros(0, len(templates), dtype=torch.float64), why)


def _draw(n: int, n_resamples: int, generator: torch.Generator) -> Float[Tensor, "resample n"]:
    """Weights of `n` things of which one fewer are drawn; they add up to `n`."""
    drawn = torch.randint(n, (n_resamples, n - 1), generator=generator)
    counts = torch.zeros(n_resamples, n, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=counts.dtype)) * n / (n - 1)


def resampled_sizes(
    search: Search,
    counted: Float[Tensor, "trial group"],
    weights: Float[Tensor, "resample batch"],
) -> Float[Tensor, " resample"]:
    """Returns the size from which each resample keeps the target, averaged over groups.

    Groups weigh as often as they were drawn, relative to their number of prompts; one that was not
    drawn has no size.

    Args:
        search: The trials.
        counted: The size to report for each trial and group (after dropping what is not
            connected), in the order of `search.sizes`.
        weights: How often each prompt counts.
    """
    member = torch.nn.functional.one_hot(search.groups).double()
    gap = (weights * (search.full - search.empty)) @ member  # [resample, group]
    gain = torch.einsum("nb,tb,bg->ntg", weights, search.values - search.empty, member)
    reached = gain / gap[:, None]  # faithfulness, [resample, trial, group]
    after = kept_from(reached, search.sizes, search.target)  # [resample, group]
    before = (after - 1).clamp(min=0)
    f_high, f_low = (reached.gather(1, i[:, None])[:, 0] for i in (after, before))
    # A whole number of components more than the size that misses the target; then what they count.
    step = (search.sizes.gather(0, after) - search.sizes.gather(0, before)).clamp(min=1)
    share = ((search.target - f_low) / (f_high - f_low)).nan_to_num(1.0).clamp(0, 1)
    share = (share * step).ceil().clamp(min=1) / step
    c_high, c_low = (counted.double().gather(0, i) for i in (after, before))
    sizes = torch.where(after > 0, (c_low + share * (c_high - c_low)).ceil(), c_high)
    times = (weights @ member) / member.sum(dim=0)
    return torch.where(times > 0, times * sizes, 0).sum(dim=1) / times.sum(dim=1)


def resampled_faithfulness(
    values: Float[Tensor, "trial batch"],
    full: Float[Tensor, " batch"],
    empty: Float[Tensor, " batch"],
    weights: Float[Tensor, "resample batch"],
) -> Float[Tensor, "resample trial"]:
    """Returns the faithfulness of each trial in each resample."""
    return (weights @ (values - empty).T) / (weights @ (full - empty))[:, None]
