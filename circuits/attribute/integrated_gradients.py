"""Integrated gradients: attribution patching with the gradient averaged along a path.

Source: Hanna et al. 2024 (arXiv 2403.17806), EAP-IG with inputs: the input embedding moves on a
straight line from ablated to clean, in equal steps, and the gradients found on the way are
averaged. It costs as many backward passes as there are steps, and does not see a zero where the
metric happens to be flat at the clean input.
"""

from __future__ import annotations

from circuits.ablate import Experiment
from circuits.attribute.attribution_patching import score_along_path
from circuits.attribute.scores import Scores


def integrated_gradients(experiment: Experiment, *, steps: int = 5) -> Scores:
    """Returns scores of all edges and attention edges, from `steps` gradients along the path.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"integrated gradients need at least 1 step, got {steps}")
    fractions = [step / steps for step in range(1, steps + 1)]
    return score_along_path(experiment, fractions, method="integrated_gradients")
