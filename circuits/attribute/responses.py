"""What a component itself makes of an input that lacks one source, computed without approximation.

Taking one edge u->v away changes what v reads by exactly what u wrote more than its ablated
value. So v alone can be run again on that input, norm, softmax, gate, activation function and
all, for many u at once. What follows from v's changed output is another matter: a gradient
estimates it (`local_patching`), a forward pass from there on measures it (`exact_patching`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.attribute.gradients import Run
from circuits.graph import READS
from circuits.intervene.ablate import Experiment
from circuits.intervene.activations import Hooks, run_to_final
from circuits.models.build_bridge import is_bridge
from circuits.models.load import component_hooks

Changes = Float[Tensor, "src batch pos d_model"]

_AT_ONCE = 64
"""Prompts that a component is run on at once; a changed input makes a prompt of its own."""


def source_chunks(n_upstream: int, n_prompts: int) -> Iterator[slice]:
    """Yields the upstream sources in chunks that are run together."""
    size = max(1, _AT_ONCE // n_prompts)
    for start in range(0, n_upstream, size):
        yield slice(start, min(start + size, n_upstream))


@torch.no_grad()
def head_responses(
    experiment: Experiment, clean: Run, rows: slice, layer: int, read: str, change: Changes
) -> Float[Tensor, "src batch pos head d_head"]:
    """Returns the z of all heads of a layer when their q, k or v input lacks each source."""
    resid = clean.acts[f"blocks.{layer}.hook_resid_pre"]
    without = (resid - change).flatten(0, 1)
    whole = resid.repeat(len(change), 1, 1)
    found: list[Tensor] = []
    hooks: Hooks = [(f"blocks.{layer}.attn.hook_z", lambda z, hook: found.append(z))]
    if is_bridge(experiment.model):
        split = f"blocks.{layer}.attn.hook_{read}_input"
        hooks.append((split, lambda act, hook: without[:, :, None].expand_as(act)))
        with component_hooks(experiment.model):
            run_from(experiment, rows, layer, whole, hooks, n_layers=layer + 1)
    else:
        block = experiment.model.blocks[layer]
        inputs = {name: block.ln1(without if name == read else whole) for name in READS}
        with experiment.model.hooks(fwd_hooks=hooks):
            block.attn(query_input=inputs["q"], key_input=inputs["k"], value_input=inputs["v"])
    return found[0].unflatten(0, change.shape[:2])


@torch.no_grad()
def mlp_responses(
    experiment: Experiment, clean: Run, rows: slice, layer: int, change: Changes
) -> Changes:
    """Returns what a layer's MLP writes when its input lacks each source."""
    without = (clean.acts[f"blocks.{layer}.hook_mlp_in"] - change).flatten(0, 1)
    if not is_bridge(experiment.model):
        block = experiment.model.blocks[layer]
        return block.apply_mlp(block.ln2(without)).unflatten(0, change.shape[:2])
    found: list[Tensor] = []
    hooks: Hooks = [
        (f"blocks.{layer}.hook_mlp_in", lambda act, hook: without),
        (f"blocks.{layer}.hook_mlp_out", lambda act, hook: found.append(act)),
    ]
    with component_hooks(experiment.model, split_heads=False):
        run_from(experiment, rows, layer, without, hooks, n_layers=layer + 1)
    return found[0].unflatten(0, change.shape[:2])


def run_from(
    experiment: Experiment,
    rows: slice,
    layer: int,
    resid: Float[Tensor, "copies_batch pos d_model"],
    hooks: Hooks,
    *,
    n_layers: int | None = None,
) -> Float[Tensor, "copies_batch pos d_model"]:
    """Returns the residual stream after `n_layers` (all) layers, with `resid` before a layer.

    It is run for copies of the prompts `rows`. A TransformerBridge runs the layers before as well,
    to no effect.
    """
    model = experiment.model
    if not is_bridge(model):
        stop = n_layers or model.cfg.n_layers
        return model.run_with_hooks(
            resid, fwd_hooks=hooks, start_at_layer=layer, stop_at_layer=stop
        )
    tokens = experiment.prompts.clean[rows]
    start: Hooks = [(f"blocks.{layer}.hook_resid_pre", lambda act, hook: resid)]
    copies = tokens.repeat(len(resid) // len(tokens), 1)
    return run_to_final(model, copies, [*start, *hooks], n_layers=n_layers)


def check_runnable(experiment: Experiment) -> None:
    """Refuses a model whose heads cannot be run on their input alone.

    Raises:
        ValueError: positions are added to what heads read, outside the residual stream.
    """
    if experiment.model.cfg.positional_embedding_type in (
        "shortformer",
        "relative_positional_bias",
    ):
        raise ValueError(
            f"{experiment.model.cfg.model_name} gives positions to its heads from outside the "
            "residual stream; use the method 'attribution_patching'"
        )
