"""How far a circuit's size would differ with other prompts: it is found again on halves of them.

A size hangs on the prompts that its components were ranked on, as well as on those that it was
chosen on. Resamples of the search's trials vary only the latter. Here both sets are halved at
random, within templates, and everything is done again on the halves: scores, ranking, search, and
pruning if there was any. Halves of one set of prompts differ from each other about as much as
whole sets of other prompts would (the delete-d jackknife with d half of the prompts, Shao and Wu
1989): the mean of a half has, given the set, the variance that the mean of the set has. Where the
sizes lie is not looked at, since half the prompts rank worse; only how far they lie apart, and how
far the circuits agree on which components are in.

Two models on the same prompts are found again on the same halves, so their ratio is a paired one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from circuits.discovery.resample import LEAST_PROMPTS, members_of, too_few
from circuits.intervene.experiment import Experiment
from circuits.prompts import Prompts
from circuits.results.stability import Stability

ABOVE = 4
"""Searches on halves begin at about so many times the size found on all prompts."""


@dataclass(frozen=True)
class Redrawn:
    """The sizes that one granularity's circuit has on each pair of halves.

    Attributes:
        drawn: What was drawn, or "none: " and why nothing was.
        sizes: The size of the circuit, after pruning if there was any.
        prefixes: The size before pruning.
        stability: Which components are in how many of the circuits; None of attention edges.
    """

    drawn: str
    sizes: tuple[float, ...] = ()
    prefixes: tuple[float, ...] = ()
    stability: Stability | None = None


DrawableT = TypeVar("DrawableT", Prompts, Experiment)
"""What halves are drawn of."""


def halves_to_redraw(
    ranking: DrawableT, sizing: DrawableT, *, ablation: str, n: int, seed: int
) -> tuple[str, Iterable[tuple[DrawableT, DrawableT]]]:
    """Returns what is drawn for the interval of a size, and the halves of the prompts.

    Where there is no interval, there are no halves, and what is drawn is "none: " and why.
    """
    n_prompts = min(len(ranking.templates), len(sizing.templates))
    fewest = min(len(rows) for part in (ranking, sizing) for rows in members_of(part.templates))
    if n < 2:
        return "none: nothing was redrawn", ()
    if n_prompts < LEAST_PROMPTS:
        return too_few(n_prompts, "prompt"), ()
    if ablation == "mean" and fewest < 4:
        return f"none: a half of a template's {fewest} prompts has no mean", ()
    return "halves of ranking and sizing prompts", halves(ranking, sizing, n=n, seed=seed)


def halves(
    ranking: DrawableT, sizing: DrawableT, *, n: int, seed: int
) -> Iterator[tuple[DrawableT, DrawableT]]:
    """Yields `n` times random halves of the prompts to rank on and of those to size on."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        yield (
            ranking.subset(_half(ranking.templates, generator)),
            sizing.subset(_half(sizing.templates, generator)),
        )


def _half(templates: Sequence[str], generator: torch.Generator) -> list[int]:
    """Every other prompt in random order, template after template in random order.

    So each template gives half of its prompts, to within one, and a template of one prompt is in or
    out at random.
    """
    strata = members_of(templates)
    in_order = [
        strata[number][index]
        for number in torch.randperm(len(strata), generator=generator).tolist()
        for index in torch.randperm(len(strata[number]), generator=generator).tolist()
    ]
    first = int(torch.randint(2, (1,), generator=generator))
    return sorted(in_order[first::2])
