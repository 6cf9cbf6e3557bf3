"""Exact patching: what ablating one component really does, by running the model without it.

One forward pass per component: slow, and the referee of every approximation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.ablate import Experiment, run_attention_edges, run_edges


def exact_edge_effects(
    experiment: Experiment, edges: Iterable[Sequence[int]]
) -> Float[Tensor, " edges"]:
    """Returns for each edge `(src, dest)` how far the metric falls when it alone is ablated.

    The same quantity, sign and unit as `Scores.edges`: the mean over prompts.
    """
    full = experiment.full.mean()
    found = []
    for src, dest in edges:
        kept = experiment.graph.mask.clone()
        kept[src, dest] = False
        found.append(full - run_edges(experiment, kept).mean())
    return torch.stack(found).cpu()


def exact_node_effects(experiment: Experiment, nodes: Iterable[int]) -> Float[Tensor, " nodes"]:
    """Returns for each source how far the metric falls when it alone is ablated."""
    full = experiment.full.mean()
    found = []
    for row in nodes:
        kept = experiment.graph.mask.clone()
        kept[row] = False
        found.append(full - run_edges(experiment, kept).mean())
    return torch.stack(found).cpu()


def exact_attention_edge_effects(
    experiment: Experiment, attention_edges: Int[Tensor, "edges 4"]
) -> Float[Tensor, " edges"]:
    """Returns for each (layer, head, query, key) how far the metric falls without it alone.

    The prompts of the experiment must share one template, or the positions mean nothing.

    Raises:
        ValueError: the prompts have several templates.
    """
    templates = set(experiment.prompts.templates)
    if len(templates) > 1:
        raise ValueError(
            f"the prompts have {len(templates)} templates; an attention edge is a pair of "
            "positions, which mean the same only within one template: take a subset of one"
        )
    cfg = experiment.model.cfg
    batch, pos = experiment.prompts.clean.shape
    shape = (batch, cfg.n_layers, cfg.n_heads, pos, pos)
    kept = torch.ones(shape, dtype=torch.bool, device=experiment.full.device)
    full = experiment.full.mean()
    found = []
    for layer, head, query, key in attention_edges.tolist():
        kept[:, layer, head, query, key] = False
        found.append(full - run_attention_edges(experiment, kept).mean())
        kept[:, layer, head, query, key] = True
    return torch.stack(found).cpu()
