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

from circuits.ablate import Experiment
from circuits.attribute.gradients import Run
from circuits.graph import READS

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
    experiment: Experiment, clean: Run, layer: int, read: str, change: Changes
) -> Float[Tensor, "src batch pos head d_head"]:
    """Returns the z of all heads of a layer when their q, k or v input lacks each source."""
    model, block = experiment.model, experiment.model.blocks[layer]
    resid = clean.acts[f"blocks.{layer}.hook_resid_pre"]
    without = block.ln1((resid - change).flatten(0, 1))
    whole = block.ln1(resid).repeat(len(change), 1, 1)
    inputs = {name: without if name == read else whole for name in READS}
    found: list[Tensor] = []
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", lambda z, hook: found.append(z))]):
        block.attn(query_input=inputs["q"], key_input=inputs["k"], value_input=inputs["v"])
    return found[0].unflatten(0, change.shape[:2])


@torch.no_grad()
def mlp_responses(experiment: Experiment, clean: Run, layer: int, change: Changes) -> Changes:
    """Returns what a layer's MLP writes when its input lacks each source."""
    block = experiment.model.blocks[layer]
    resid = clean.acts[f"blocks.{layer}.hook_mlp_in"]
    without = block.ln2((resid - change).flatten(0, 1))
    return block.apply_mlp(without).unflatten(0, change.shape[:2])


def check_runnable(experiment: Experiment) -> None:
    """Refuses a model whose heads cannot be run on their input alone.

    Raises:
        ValueError: positions are added to what heads read, outside the residual stream, or the
            model is a TransformerBridge, which runs as a whole only.
    """
    if hasattr(experiment.model, "boot_transformers"):
        raise ValueError(
            "local and exact patching run single components, which a TransformerBridge does not "
            "allow; use another method, or load the model with circuits.load_model"
        )
    if experiment.model.cfg.positional_embedding_type in (
        "shortformer",
        "relative_positional_bias",
    ):
        raise ValueError(
            f"{experiment.model.cfg.model_name} gives positions to its heads from outside the "
            "residual stream; use the method 'attribution_patching'"
        )
