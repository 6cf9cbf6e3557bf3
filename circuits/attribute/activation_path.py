"""Integrated gradients along the path of each component's own output, ablated to clean."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from circuits.attribute.gradients import add_edge_scores, check_differentiable, run_backward
from circuits.attribute.scores import Scores
from circuits.attribute.totals import Totals
from circuits.intervene.activations import noting_changes
from circuits.intervene.experiment import Experiment


def integrated_activations(
    experiment: Experiment, *, steps: int = 5, attention_edges: bool = True
) -> Scores:
    """Returns scores of all edges, each gradient averaged while its own source is interpolated.

    The sources of one place (the input, the heads of a layer, an MLP) move together from what
    they write ablated to what they write clean, everything before them being clean; edges from
    them take the mean gradient over `steps` points. It costs `steps` passes for each place.

    Source: Hanna et al. 2024 (arXiv 2403.17806), EAP-IG with activations.

    Raises:
        ValueError: fewer than one step, a score that is not finite, or an unknown norm.
    """
    if steps < 1:
        raise ValueError(f"integrated gradients need at least 1 step, got {steps}")
    check_differentiable(experiment.model)
    graph = experiment.graph
    totals = Totals(experiment, attention_edges=attention_edges)

    def toward(act: Tensor, hook: object, *, gone: Tensor, fraction: float) -> Tensor:
        return torch.lerp(gone, act, fraction)

    for part in experiment.own_parts:
        here, rows, ablated = part.experiment, part.rows, part.experiment.ablated
        change, noting = noting_changes(here.model, graph, ablated, rows)
        clean = run_backward(here, rows, noting)
        places: list[tuple[str, Tensor, slice, int | None]] = []
        places.append(("blocks.0.hook_resid_pre", ablated.embed[rows], slice(0, 1), None))
        for layer in range(graph.n_layers):
            block, heads = f"blocks.{layer}", graph.head_sources(layer)
            places.append((f"{block}.attn.hook_z", ablated.z[layer, rows], heads, layer))
            if graph.has_mlps:
                mlp = slice(heads.stop, heads.stop + 1)
                places.append((f"{block}.hook_mlp_out", ablated.mlp_out[layer, rows], mlp, None))
        for name, gone, sources, layer in places:
            for step in range(1, steps + 1):
                run = clean
                if step < steps:
                    hook = partial(toward, gone=gone, fraction=step / steps)
                    run = run_backward(here, rows, [(name, hook)], clean.logits)
                add_edge_scores(here, totals.edges, run, change, weight=1 / steps, sources=sources)
                if layer is not None:
                    totals.add_attention_edges(run, clean, part, 1 / steps, layers=[layer])
    return totals.scores("integrated_activations")
