"""One backward pass that scores every edge: the core that the gradient methods share.

An edge u->v is scored by the change that ablation makes in what u writes, times the gradient of
the metric at what v reads, summed over positions. The gradient at a layer's inputs is contracted
with all upstream changes as soon as the backward pass reaches it (one matrix product per layer
and kind of input) and then let go, so that no tensor holds all gradients at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.ablate import Experiment, reading_hooks
from circuits.activations import BATCH_SIZE, Hooks, record_activations, with_arguments
from circuits.metrics import METRICS, last_logits
from circuits.models import component_hooks


def accumulate_scores(
    experiment: Experiment,
    edges: Float[Tensor, "src dest"],
    attention_edges: Float[Tensor, "batch layer head query_pos key_pos"],
    *,
    fraction: float = 1.0,
    weight: float = 1.0,
) -> None:
    """Adds `weight` times the scores to `edges` (summed over prompts) and `attention_edges`.

    Gradients are taken with the input embedding at `fraction` of the way from ablated to clean;
    1 is the clean run. Changes are always clean minus ablated.
    """
    for start in range(0, len(experiment.prompts), BATCH_SIZE):
        rows = slice(start, min(start + BATCH_SIZE, len(experiment.prompts)))
        _accumulate_batch(experiment, edges, attention_edges, rows, fraction, weight)


def _accumulate_batch(
    experiment: Experiment,
    edges: Float[Tensor, "src dest"],
    attention_edges: Float[Tensor, "batch layer head query_pos key_pos"],
    rows: slice,
    fraction: float,
    weight: float,
) -> None:
    model, graph, ablated = experiment.model, experiment.graph, experiment.ablated
    prompts = experiment.prompts.subset(range(rows.start, rows.stop))
    clean = record_activations(model, graph, prompts.clean)
    change = (clean.outputs - ablated.outputs[:, rows]).flatten(1)  # [src, batch*pos*d_model]
    everything = slice(None)

    def contract(gradient: Tensor, n_upstream: int, columns: slice) -> None:
        """Gradient `[batch pos dest d_model]` against all upstream changes."""
        flat = gradient.permute(2, 0, 1, 3).flatten(1)  # [dest, batch*pos*d_model]
        edges[:n_upstream, columns] += weight * (change[:n_upstream] @ flat.T)

    def at_heads(act: Tensor, hook: object, *, layer: int, read: str) -> None:
        n_upstream, columns = graph.n_upstream_of_heads(layer), graph.read_destinations(layer, read)
        act.register_hook(lambda gradient: contract(gradient, n_upstream, columns))

    def at_mlp(act: Tensor, hook: object, *, layer: int) -> None:
        n_upstream, column = graph.n_upstream_of_mlp(layer), graph.mlp_destination(layer)
        columns = slice(column, column + 1)
        act.register_hook(lambda gradient: contract(gradient[:, :, None], n_upstream, columns))

    def at_final(act: Tensor, hook: object) -> None:
        last = slice(graph.n_destinations - 1, graph.n_destinations)
        act.register_hook(lambda gradient: contract(gradient[:, :, None], graph.n_sources, last))

    def at_z(z: Tensor, hook: object, *, layer: int) -> None:
        def score(gradient: Tensor) -> None:
            kept = clean.attention.dot(layer, gradient, everything)
            gone = ablated.attention.dot(layer, gradient, rows)
            attention_edges[rows, layer] += weight * (kept - gone)

        z.register_hook(score)

    def set_input(act: Tensor, hook: object) -> Tensor:
        start, end = ablated.outputs[0, rows], clean.outputs[0]
        return (start + fraction * (end - start)).requires_grad_()

    hooks: Hooks = [("blocks.0.hook_resid_pre", set_input)]
    hooks += reading_hooks(graph, at_heads, at_mlp, at_final)
    hooks += [
        (f"blocks.{layer}.attn.hook_z", with_arguments(at_z, layer=layer))
        for layer in range(graph.n_layers)
    ]
    with component_hooks(model), torch.enable_grad(), _parameters_without_gradient(model):
        logits = model.run_with_hooks(prompts.clean, fwd_hooks=hooks)
        values = METRICS[experiment.metric](
            last_logits(logits, prompts.last), prompts, experiment.clean_logits[rows]
        )
        values.sum().backward()


@contextmanager
def _parameters_without_gradient(model: torch.nn.Module) -> Iterator[None]:
    """Spares the backward pass the gradients of weights, and their memory."""
    changed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


def template_means(
    experiment: Experiment, per_prompt: Float[Tensor, "batch layer head query_pos key_pos"]
) -> dict[str, Float[Tensor, "layer head query_pos key_pos"]]:
    """Returns the mean over the prompts of each template, in which positions mean the same."""
    return {
        template: per_prompt[torch.tensor(rows, device=per_prompt.device)].mean(dim=0)
        for template, rows in experiment.prompts.groups().items()
    }
