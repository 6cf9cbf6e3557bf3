"""Methods that average gradients along the straight path of the input, ablated to clean.

Attribution patching takes the gradient at the clean end only. The metric may be flat there while
it is steep on the way; an average over the path sees that, at one pass for each point.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from circuits.attribute.backward_rules import PLAIN, BackwardRules
from circuits.attribute.gradients import add_edge_scores, check_differentiable, run_backward
from circuits.attribute.scores import Scores
from circuits.attribute.totals import Totals
from circuits.intervene.activations import noting_changes
from circuits.intervene.experiment import Experiment
from circuits.models.backend import Hooks


def integrated_gradients(
    experiment: Experiment, *, steps: int = 5, attention_edges: bool = True
) -> Scores:
    """Returns scores of all edges, the gradient averaged over `steps` points up to the clean one.

    Source: Hanna et al. 2024 (arXiv 2403.17806), EAP-IG with inputs.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"integrated gradients need at least 1 step, got {steps}")
    return score_along_inputs(
        experiment,
        [step / steps for step in range(1, steps + 1)],
        method="integrated_gradients",
        attention_edges=attention_edges,
    )


def gradient_average(experiment: Experiment, *, attention_edges: bool = True) -> Scores:
    """Returns scores of all edges, the gradient averaged over the clean and the ablated input.

    The two ends of the path stand for all of it: exact where the metric is quadratic between.
    """
    return score_along_inputs(
        experiment, [0.0, 1.0], method="gradient_average", attention_edges=attention_edges
    )


def score_along_inputs(
    experiment: Experiment,
    fractions: Sequence[float],
    *,
    method: str,
    attention_edges: bool,
    rules: BackwardRules = PLAIN,
) -> Scores:
    """Returns scores whose gradient is the mean over `fractions` of the path to the clean input.

    The fraction 1, which every path must hold, is the clean run: it also gives the changes.

    Raises:
        ValueError: a score is not finite, or the model has a norm that is not known.
    """
    check_differentiable(experiment.model)
    rules.check(experiment.model)
    totals = Totals(experiment, attention_edges=attention_edges)
    weight = 1 / len(fractions)
    for part in experiment.own_parts:
        here, rows = part.experiment, part.rows
        change, noting = noting_changes(here.model, here.graph, here.ablated, rows)
        clean = run_backward(here, rows, noting, rules=rules)
        for fraction in sorted(fractions, reverse=True):
            run = clean
            if fraction != 1:
                embed = here.ablated.embed[rows] + fraction * change[0]
                hooks: Hooks = [("blocks.0.hook_resid_pre", _replacing(embed))]
                run = run_backward(here, rows, hooks, clean.logits, rules)
            add_edge_scores(here, totals.edges, run, change, weight=weight, rules=rules)
            totals.add_attention_edges(run, clean, part, weight)
    return totals.scores(method)


def _replacing(embed: Tensor) -> object:
    def replace(act: Tensor, hook: object) -> Tensor:
        return embed

    return replace
