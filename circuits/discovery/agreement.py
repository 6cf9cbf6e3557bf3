"""Agreement with a known circuit: how well a circuit, or a ranking, finds what is known."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """How a set of components agrees with the known one.

    Attributes:
        precision: Share of the found components that are known; 1 where nothing was found.
        recall: Share of the known components that were found.
        f1: Harmonic mean of the two.
    """

    precision: float
    recall: float
    f1: float


def agreement_of(found: Collection[str], known: Collection[str]) -> Agreement:
    """Returns precision, recall and F1 of found components against the known ones, by name.

    Raises:
        ValueError: nothing is known.
    """
    if not known:
        raise ValueError("no components are known; give at least one")
    shared = len(set(found) & set(known))
    precision = shared / len(set(found)) if found else 1.0
    recall = shared / len(set(known))
    f1 = 2 * precision * recall / (precision + recall) if shared else 0.0
    return Agreement(precision, recall, f1)


def auroc(scores: Float[Tensor, " components"], known: Bool[Tensor, " labels"]) -> float:
    """Returns how likely a known component has the larger absolute score of it and an unknown one.

    The area under the ROC curve; ties count one half, so a score that says nothing gives 0.5.

    Raises:
        ValueError: shapes differ, a score is NaN, or all or none are known.
    """
    if scores.shape != known.shape:
        raise ValueError(
            f"{tuple(scores.shape)} scores, but {tuple(known.shape)} say what is known; give one "
            "for each component"
        )
    if torch.isnan(scores).any():
        raise ValueError("a score is NaN")
    n_known = int(known.sum())
    n_unknown = known.numel() - n_known
    if not n_known or not n_unknown:
        raise ValueError("all or none of the components are known; a ranking needs both kinds")
    # The rank of a tie is the mean of the places it takes: twice that is a whole number.
    values, group, counts = scores.abs().unique(return_inverse=True, return_counts=True)
    del values
    last = counts.cumsum(0)
    twice_rank = (2 * last - counts + 1)[group]
    above = twice_rank[known].sum().item() / 2 - n_known * (n_known + 1) / 2
    return above / (n_known * n_unknown)
