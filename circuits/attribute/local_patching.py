"""Local patching: each destination is run again for real, what follows from it is first order.

Attribution patching goes wrong first of all at the destination itself: a saturated softmax, a
layer norm or a closed gate answers to a whole change quite unlike to a small one. AtP* (Kramar et
al. 2024, arXiv 2403.00745) repairs that for queries and keys, by running the softmax again. The
same is done here for every edge: the destination v answers without approximation to the input
that lacks u (softmax, gate, norm, activation function), and only the effect of v's changed output
on the metric is estimated, by its gradient in the clean run. Edges into the logits are exact.
It costs about as many forward passes as there are sources, against one for every edge.
"""

from __future__ import annotations

import torch

from circuits.attribute.gradients import Run, check_differentiable, run_backward
from circuits.attribute.responses import (
    Changes,
    check_runnable,
    head_responses,
    mlp_responses,
    source_chunks,
)
from circuits.attribute.scores import Scores
from circuits.attribute.totals import Totals
from circuits.graph import READS
from circuits.intervene.activations import logits_after, noting_changes
from circuits.intervene.behind_heads import lone_changes
from circuits.intervene.experiment import Experiment
from circuits.intervene.window import whole_part
from circuits.metrics import METRICS
from circuits.models.anatomy import norms_heads_together


def local_patching(experiment: Experiment, *, attention_edges: bool = True) -> Scores:
    """Returns scores of all edges; those of attention edges are attribution patching's.

    Raises:
        ValueError: a score is not finite, or the model's heads cannot be run on their own.
    """
    model = experiment.model
    check_differentiable(model)
    check_runnable(experiment)
    if norms_heads_together(model.cfg, model.blocks[0].attn):
        raise ValueError(
            f"{model.cfg.model_name} norms the queries of all heads together, so that none can be "
            "run alone; use the method 'attribution_patching' or 'exact_patching'"
        )
    graph, ablated = experiment.graph, experiment.ablated
    totals = Totals(experiment, attention_edges=attention_edges)
    for rows in experiment.own_batches():
        change, noting = noting_changes(model, graph, ablated, rows)
        clean = run_backward(experiment, rows, noting)
        change = lone_changes(model, graph, change, clean.z)
        for layer in range(graph.n_layers):
            _score_heads(experiment, totals.edges, clean, rows, change, layer)
            if graph.has_mlps:
                _score_mlp(experiment, totals.edges, clean, rows, change, layer)
        totals.edges[:, -1] += logit_effects(experiment, clean, change, rows)
        totals.add_attention_edges(clean, clean, whole_part(experiment, rows))
    return totals.scores("local_patching")


def _score_heads(
    experiment: Experiment,
    edges: torch.Tensor,
    clean: Run,
    rows: slice,
    change: Changes,
    layer: int,
) -> None:
    graph, name = experiment.graph, f"blocks.{layer}.attn.hook_z"
    for chunk in source_chunks(graph.n_upstream_of_heads(layer), change.shape[1]):
        for read in READS:
            answer = head_responses(experiment, clean, rows, layer, read, change[chunk])
            edges[chunk, graph.read_destinations(layer, read)] += torch.einsum(
                "sbphe,bphe->sh", clean.acts[name] - answer, clean.gradients[name]
            )


def _score_mlp(
    experiment: Experiment,
    edges: torch.Tensor,
    clean: Run,
    rows: slice,
    change: Changes,
    layer: int,
) -> None:
    graph, name = experiment.graph, f"blocks.{layer}.hook_mlp_out"
    for chunk in source_chunks(graph.n_upstream_of_mlp(layer), change.shape[1]):
        answer = mlp_responses(experiment, clean, rows, layer, change[chunk])
        edges[chunk, graph.mlp_destination(layer)] += torch.einsum(
            "sbpd,bpd->s", clean.acts[name] - answer, clean.gradients[name]
        )


@torch.no_grad()
def logit_effects(experiment: Experiment, clean: Run, change: Changes, rows: slice) -> torch.Tensor:
    """Returns how far the metric, summed over prompts, falls when the logits lack each source."""
    graph = experiment.graph
    batch = experiment.prompts.subset(range(rows.start, rows.stop))
    resid = clean.acts[f"blocks.{graph.n_layers - 1}.hook_resid_post"]
    metric = METRICS[experiment.metric]
    whole = metric(clean.logits, batch, clean.logits).sum()
    found = [
        whole
        - metric(
            logits_after(experiment.model, resid - shift, batch.last), batch, clean.logits
        ).sum()
        for shift in change
    ]
    return torch.stack(found)
