"""Interventions: the model run with a part of its graph only, everything else ablated.

Every input of a head, an MLP or the logits is a sum over upstream sources. To run a circuit, each
destination gets

    input(dest) = ablated input(dest)
                  + sum over src in the circuit of (output(src) - ablated output(src))

where `output` is what the source writes in this very run. With all edges in the circuit this is
the model itself, with none it is the ablated model. Constants (biases, position terms) cancel in
the differences, so one formula serves every architecture. Where a norm stands between a layer's
heads and the stream, that layer's sum is taken before the norm, and the norm of it is added
(circuits/intervene/behind_heads.py).

This module is the referee: attribution predicts what `exact_*` measures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.graph import READS
from circuits.intervene.activations import attended_value
from circuits.intervene.circuit_inputs import reader
from circuits.intervene.experiment import Experiment
from circuits.intervene.window import Part
from circuits.models.anatomy import norms_heads_together
from circuits.models.backend import Hooks, component_hooks


@torch.no_grad()
def run_edges(experiment: Experiment, edges: Bool[Tensor, "src dest"]) -> Float[Tensor, " batch"]:
    """Returns the metric per prompt with only `edges` intact.

    Raises:
        ValueError: the metric is not one finite number for each prompt.
    """
    graph = experiment.graph
    edges, mask = edges & graph.mask, graph.mask
    if torch.equal(edges, mask & edges.any(dim=1, keepdim=True)):
        return run_nodes(experiment, edges.any(dim=1))
    if _is_ablated_where_unreached(experiment):
        edges = graph.connected(edges)
    return _measure(experiment, lambda part: _edge_hooks(part, edges), split_heads=True)


@torch.no_grad()
def run_nodes(experiment: Experiment, nodes: Bool[Tensor, " src"]) -> Float[Tensor, " batch"]:
    """Returns the metric per prompt with only `nodes` intact, each with all of its edges.

    The special case of `run_edges` in which every destination reads the same sources, so that a
    layer's heads share one residual stream: it takes about as long as a run of the model.

    Raises:
        ValueError: the metric is not one finite number for each prompt.
    """
    return _measure(experiment, lambda part: _node_hooks(part, nodes))


@torch.no_grad()
def run_attention_edges(
    experiment: Experiment, kept: Bool[Tensor, "batch layer head query_pos key_pos"]
) -> Float[Tensor, " batch"]:
    """Returns the metric per prompt with only the `kept` attention edges intact.

    An attention edge outside has its term A_ij P_ij v_j in z_i replaced by the ablated run's
    term. Embeddings and MLPs stay intact.

    Raises:
        ValueError: the metric is not one finite number for each prompt.
    """
    return _measure(experiment, lambda part: attention_hooks(part, kept))


def _measure(
    experiment: Experiment, hooks_of: Callable[[Part], Hooks], *, split_heads: bool = False
) -> Float[Tensor, " batch"]:
    with component_hooks(experiment.model, split_heads=split_heads):
        values = experiment.score(experiment.logits(hooks_of))
    return experiment.checked(values, "partly ablated")


def _is_ablated_where_unreached(experiment: Experiment) -> bool:
    """Whether what no clean input reaches writes what it writes ablated, and can be left out.

    Not where that is no run's, nor that of a run with gates of its own; nor where one norm spans
    all heads, so that each answers to what the others read.
    """
    model = experiment.model
    together = norms_heads_together(model.cfg, model.blocks[0].attn)
    return experiment.ablation == "corrupted" and not experiment.holds_gates and not together


def _edge_hooks(part: Part, edges: Bool[Tensor, "src dest"]) -> Hooks:
    """The hooks of a part's run with only `edges` intact."""
    experiment, rows = part.experiment, part.rows
    graph, ablated = experiment.graph, experiment.ablated
    read = reader(part, edges)
    made: dict[int, dict[str, Tensor]] = {}
    begun: dict[int, Tensor] = {}  # of what a layer's MLP reads: what its heads read as well

    def set_head_inputs(act: Tensor, hook: object, *, layer: int, read_as: str) -> Tensor:
        if layer not in made:  # one product for all, since it takes longest to go through changes
            columns, n_upstream = graph.head_destinations(layer), graph.n_upstream_of_heads(layer)
            with_mlp = slice(columns.start, columns.stop + graph.has_mlps)
            found = read.changes(0, n_upstream, with_mlp)
            every = found[: len(READS) * graph.n_heads].add_(ablated.resid_pre[layer, rows])
            begun[layer] = found[len(READS) * graph.n_heads :]
            every = every.permute(1, 2, 0, 3)
            made[layer] = dict(zip(READS, every.chunk(len(READS), dim=2), strict=True))
        return made[layer].pop(read_as)

    def set_mlp_input(act: Tensor, hook: object, *, layer: int) -> Tensor:
        resid = ablated.resid_pre if graph.parallel_attn_mlp else ablated.resid_mid
        column, end = graph.mlp_destination(layer), graph.n_upstream_of_mlp(layer)
        first = graph.n_upstream_of_heads(layer) if layer in begun else 0
        found = read.changes(first, end, slice(column, column + 1))
        return found.add_(resid[layer, rows]).add_(begun.pop(layer, 0))[0]

    def set_final(act: Tensor, hook: object) -> Tensor:
        last = slice(graph.n_destinations - 1, graph.n_destinations)
        return read.changes(0, graph.n_sources, last)[0].add_(ablated.resid_final[rows])

    hooks: Hooks = [*read.noting]
    for layer in range(graph.n_layers):
        block = f"blocks.{layer}"
        for name in READS:
            bound = partial(set_head_inputs, layer=layer, read_as=name)
            hooks.append((f"{block}.hook_{name}_input", bound))
        if graph.has_mlps:
            hooks.append((f"{block}.hook_mlp_in", partial(set_mlp_input, layer=layer)))
    return [*hooks, (f"blocks.{graph.n_layers - 1}.hook_resid_post", set_final)]


def _node_hooks(part: Part, nodes: Bool[Tensor, " src"]) -> Hooks:
    experiment, rows = part.experiment, part.rows
    graph, ablated = experiment.graph, experiment.ablated

    def put_in(act: Tensor, hook: object, *, place: Tensor) -> Tensor:
        return place

    def put_heads_in(z: Tensor, hook: object, *, layer: int) -> Tensor:
        kept = nodes[graph.head_sources(layer)].to(z.device)
        return torch.where(kept[:, None], z, ablated.z[layer, rows])

    hooks: Hooks = []
    if not nodes[0]:
        embed = partial(put_in, place=ablated.embed[rows])
        hooks.append(("blocks.0.hook_resid_pre", embed))
    for layer in range(graph.n_layers):
        block = f"blocks.{layer}"
        hooks.append((f"{block}.attn.hook_z", partial(put_heads_in, layer=layer)))
        if graph.has_mlps and not nodes[graph.mlp_source(layer)]:
            mlp_out = partial(put_in, place=ablated.mlp_out[layer, rows])
            hooks.append((f"{block}.hook_mlp_out", mlp_out))
    return hooks


def attention_hooks(part: Part, kept: Bool[Tensor, "batch layer head query_pos key_pos"]) -> Hooks:
    """Returns the hooks of a part's run in which only the `kept` attention edges are intact.

    Args:
        part: A part of an experiment.
        kept: Attention edges of all prompts of the experiment.
    """
    experiment, rows, n_before = part.experiment, part.rows, part.window.n_before
    terms, kept = experiment.ablated.attention, part.window.pairs(kept, 0)
    now: dict[str, Tensor] = {}

    def note(act: Tensor, hook: object, *, name: str) -> None:
        now[name] = act

    def set_z(z: Tensor, hook: object, *, layer: int) -> Tensor:
        mask = kept[:, layer].to(z.dtype)
        value = attended_value(experiment.model, now.pop("value"))
        value = torch.cat([terms.value[layer, rows, :n_before], value], dim=1)
        live = torch.einsum("bhqk,bkhe->bqhe", mask * now.pop("pattern"), value)
        return live + terms.add_up(layer, 1 - mask, rows)

    hooks: Hooks = []
    for layer in range(experiment.graph.n_layers):
        attn = f"blocks.{layer}.attn"
        hooks += [
            (f"{attn}.hook_v", partial(note, name="value")),
            (f"{attn}.hook_pattern", partial(note, name="pattern")),
            (f"{attn}.hook_z", partial(set_z, layer=layer)),
        ]
    return hooks
