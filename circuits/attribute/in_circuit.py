"""What each component does inside a circuit, from one backward pass of the circuit's own run.

Attribution patching takes its gradient in the whole model's run, where all other components are
there. Here it is taken in a run of the circuit: for the edge u->v

    (output(u) in the circuit - ablated output(u)) . dm/d(input of v) in the circuit

and for an attention edge its term, in the circuit minus ablated, times dm/dz. To first order that
is how far the metric falls when that one component leaves the circuit.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from circuits.attribute.gradients import parameters_without_gradient, run_backward
from circuits.attribute.totals import Totals
from circuits.graph import READS
from circuits.intervene.ablate import attention_hooks
from circuits.intervene.activations import (
    head_outputs,
    logits_after,
)
from circuits.intervene.behind_heads import ablated_totals, norm_of, read_inputs, slopes_at_sources
from circuits.intervene.experiment import Experiment
from circuits.intervene.window import Part
from circuits.metrics import METRICS
from circuits.models.backend import Hooks, component_hooks


def edge_effects_in(
    experiment: Experiment, edges: Bool[Tensor, "src dest"]
) -> Float[Tensor, "src dest"]:
    """Returns the effect of each edge in the circuit of `edges`, on the mean over prompts.

    An edge outside has an effect too: how far the metric would rise with it, to first order.

    Raises:
        ValueError: an effect is not finite.
    """
    totals = Totals(experiment, attention_edges=False)
    for part in experiment.own_parts:
        clean_logits = experiment.clean_logits[part.window.index]
        _add_edge_effects(part, edges, clean_logits, totals.edges)
    return totals.scores("in circuit").edges


def attention_edge_effects_in(
    experiment: Experiment, kept: Bool[Tensor, "batch layer head query_pos key_pos"]
) -> dict[str, Float[Tensor, "layer head _ _"]]:
    """Returns the effect of each attention edge in the circuit of those `kept`, by template.

    Raises:
        ValueError: an effect is not finite.
    """
    totals = Totals(experiment, attention_edges=True)
    for part in experiment.own_parts:
        clean_logits = experiment.clean_logits[part.window.index]
        run = run_backward(part.experiment, part.rows, attention_hooks(part, kept), clean_logits)
        totals.add_attention_edges(run, run, part)
    return totals.scores("in circuit").attention_edges


def _add_edge_effects(
    part: Part,
    edges: Bool[Tensor, "src dest"],
    clean_logits: Float[Tensor, "batch d_vocab"],
    total: Tensor,
) -> None:
    """Adds the effects in some prompts' run of the circuit, summed over them."""
    experiment, rows = part.experiment, part.rows
    model, graph, ablated = experiment.model, experiment.graph, experiment.ablated
    weight = edges.to(device=total.device, dtype=ablated.embed.dtype)
    without = ablated_totals(model, ablated.z[:, rows])
    changes: dict[int, Tensor] = {}  # by the first of the sources that they are of
    inputs_of: list[tuple[Tensor, slice]] = []  # what destinations read, and which these are
    # Each destination has the norms behind heads for itself: too many activations to be held.
    has_norms = norm_of(model, 0) is not None
    read = partial(checkpoint, read_inputs, use_reentrant=False) if has_norms else read_inputs

    def note_input(act: Tensor, hook: object) -> None:
        changes[0] = (act - ablated.embed[rows])[None]

    def note_heads(z: Tensor, hook: object, *, layer: int) -> None:
        first = graph.head_sources(layer).start
        changes[first] = head_outputs(model, layer, z - ablated.z[layer, rows])

    def note_mlp(act: Tensor, hook: object, *, layer: int) -> None:
        changes[graph.mlp_source(layer)] = (act - ablated.mlp_out[layer, rows])[None]

    def upstream(n: int) -> Tensor:
        return torch.cat([changes[first] for first in sorted(changes)])[:n]

    def inputs(base: Tensor, n_upstream: int, columns: slice) -> Tensor:
        arguments = (
            model,
            graph,
            weight[:n_upstream, columns],
            upstream(n_upstream),
            base,
            without,
        )
        kept = read(*arguments)
        # The first have no source that has a gradient.
        kept = kept if kept.requires_grad else kept.requires_grad_()
        inputs_of.append((kept, columns))
        return kept

    made: dict[int, dict[str, Tensor]] = {}

    def set_head_inputs(act: Tensor, hook: object, *, layer: int, which: str) -> Tensor:
        if layer not in made:
            base, columns = ablated.resid_pre[layer, rows], graph.head_destinations(layer)
            every = inputs(base, graph.n_upstream_of_heads(layer), columns).permute(1, 2, 0, 3)
            made[layer] = dict(zip(READS, every.chunk(len(READS), dim=2), strict=True))
        return made[layer].pop(which)

    def set_mlp_input(act: Tensor, hook: object, *, layer: int) -> Tensor:
        resid = ablated.resid_pre if graph.parallel_attn_mlp else ablated.resid_mid
        column = graph.mlp_destination(layer)
        return inputs(
            resid[layer, rows], graph.n_upstream_of_mlp(layer), slice(column, column + 1)
        )[0]

    def set_final(act: Tensor, hook: object) -> Tensor:
        last = slice(graph.n_destinations - 1, graph.n_destinations)
        return inputs(ablated.resid_final[rows], graph.n_sources, last)[0]

    hooks: Hooks = [("blocks.0.hook_resid_pre", note_input)]
    for layer in range(graph.n_layers):
        block = f"blocks.{layer}"
        hooks += [
            (
                f"{block}.hook_{which}_input",
                partial(set_head_inputs, layer=layer, which=which),
            )
            for which in READS
        ]
        hooks.append((f"{block}.attn.hook_z", partial(note_heads, layer=layer)))
        if graph.has_mlps:
            hooks.append((f"{block}.hook_mlp_in", partial(set_mlp_input, layer=layer)))
            hooks.append((f"{block}.hook_mlp_out", partial(note_mlp, layer=layer)))
    hooks.append((f"blocks.{graph.n_layers - 1}.hook_resid_post", set_final))
    batch = experiment.prompts.subset(range(rows.start, rows.stop))
    with (
        component_hooks(model, split_heads=True),
        experiment.hold_gates(rows),
        torch.enable_grad(),
        parameters_without_gradient(model),
    ):
        logits = logits_after(model, experiment.run(rows, hooks), batch.last)
        metric = METRICS[experiment.metric](logits, batch, clean_logits).sum()
        slopes = torch.autograd.grad(
            metric, [place for place, _ in inputs_of], allow_unused=True, materialize_grads=True
        )
    with torch.no_grad():
        change = upstream(graph.n_sources)
        for (_, columns), slope in zip(inputs_of, slopes, strict=True):
            scores = slopes_at_sources(model, graph, weight[:, columns], change, without, slope)
            total[:, columns] += scores.to(total.dtype)
        total *= graph.mask.to(total.device)
