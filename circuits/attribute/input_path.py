"""Methods that average gradients along the straight path of the input, ablated to clean.

Attribution patching takes the gradient at the clean end only. The metric may be flat there while
it is steep on the way; an average over the path sees that, at one pass for each point.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from circuits.ablate import Experiment
from circuits.activations import Hooks, noting_changes, own_batches
from circuits.attribute.gradients import (
    Run,
    add_edge_scores,
    attention_edge_scores,
    check_differentiable,
    run_backward,
)
from circuits.attribute.scores import Scores
from circuits.workers import prompt_workers


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
    experiment: Experiment, fractions: Sequence[float], *, method: str, attention_edges: bool
) -> Scores:
    """Returns scores whose gradient is the mean over `fractions` of the path to the clean input.

    The fraction 1, which every path must hold, is the clean run: it also gives the changes.

    Raises:
        ValueError: a score is not finite, or the model has a norm that is not known.
    """
    check_differentiable(experiment.model)
    graph, ablated, prompts = experiment.graph, experiment.ablated, experiment.prompts
    edges = sums_like(ablated.embed, graph.mask.shape)
    totals = TemplateTotals(experiment) if attention_edges else None
    weight = 1 / len(fractions)
    for rows in own_batches(graph, prompts, experiment.model.cfg.d_model):
        change, noting = noting_changes(experiment.model, graph, ablated, rows)
        clean = run_backward(experiment, rows, noting)
        for fraction in sorted(fractions, reverse=True):
            run = clean
            if fraction != 1:
                embed = ablated.embed[rows] + fraction * change[0]
                hooks: Hooks = [("blocks.0.hook_resid_pre", _replacing(embed))]
                run = run_backward(experiment, rows, hooks, clean.logits)
            add_edge_scores(experiment, edges, run, change, weight=weight)
            if totals is not None:
                totals.add(run, clean, rows, weight)
    prompt_workers().add_up([edges])
    return Scores(
        graph=graph,
        edges=edges.cpu() / len(prompts),
        attention_edges={} if totals is None else totals.means(),
        method=method,
        ablation=experiment.ablation,
        n_prompts=len(prompts),
    ).check_finite()


class TemplateTotals:
    """Scores of attention edges summed over the prompts of each template.

    Only there do positions mean the same.
    """

    def __init__(self, experiment: Experiment) -> None:
        """Starts at zero for every template."""
        self._experiment = experiment
        self._groups = experiment.prompts.groups()
        cfg, pos = experiment.model.cfg, experiment.prompts.clean.shape[1]
        self._totals = experiment.ablated.embed.new_zeros(
            (len(self._groups), cfg.n_layers, cfg.n_heads, pos, pos)
        )
        number = {template: index for index, template in enumerate(self._groups)}
        self._group_of = torch.tensor(
            [number[template] for template in experiment.prompts.templates],
            device=self._totals.device,
        )

    def add(
        self,
        run: Run,
        clean: Run,
        rows: slice,
        weight: float = 1.0,
        layers: Iterable[int] | None = None,
    ) -> None:
        """Adds `weight` times the scores of one run over the prompts `rows`, for all layers."""
        for layer in range(self._experiment.graph.n_layers) if layers is None else layers:
            scores = attention_edge_scores(self._experiment, run, clean, rows, layer)
            self._totals[:, layer].index_add_(0, self._group_of[rows], scores, alpha=weight)

    def means(self) -> dict[str, Tensor]:
        """Returns the mean of each template, `[layer head query_pos key_pos]`; call it once."""
        prompt_workers().add_up([self._totals])
        return {
            template: total.cpu() / len(rows)
            for (template, rows), total in zip(self._groups.items(), self._totals, strict=True)
        }


def sums_like(act: Tensor, shape: torch.Size) -> Tensor:
    """Returns zeros on the device of `act`, in float32 at least: they add up many prompts."""
    dtype = torch.promote_types(act.dtype, torch.float32)
    return torch.zeros(shape, device=act.device, dtype=dtype)


def _replacing(embed: Tensor) -> object:
    def replace(act: Tensor, hook: object) -> Tensor:
        return embed

    return replace
