"""What a component itself makes of an input that lacks one source, computed without approximation.

Taking one edge u->v away changes what v reads by exactly what u wrote more than its ablated
value. So v alone can be run again on that input, norm, softmax, gate, activation function and
all, for many u at once. What follows from v's changed output is another matter: a gradient
estimates it (`local_patching`), a forward pass from there on measures it (`exact_patching`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.attribute.gradients import Run
from circuits.intervene.experiment import Experiment
from circuits.models.anatomy import positions_handed_in
from circuits.models.backend import Hooks, backend_of

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
    model, resid = experiment.model, clean.acts[f"blocks.{layer}.hook_resid_pre"]
    without = (resid - change).flatten(0, 1)
    whole = resid.repeat(len(change), 1, 1)
    tokens = _copies(experiment, rows, whole)
    with experiment.hold_gates(rows):
        z = backend_of(model).run_heads(model, tokens, layer, whole, read=read, changed=without)
    return z.unflatten(0, change.shape[:2])


@torch.no_grad()
def mlp_responses(
    experiment: Experiment, clean: Run, rows: slice, layer: int, change: Changes
) -> Changes:
    """Returns what a layer's MLP writes when its input lacks each source."""
    model = experiment.model
    without = (clean.acts[f"blocks.{layer}.hook_mlp_in"] - change).flatten(0, 1)
    tokens = _copies(experiment, rows, without)
    written = backend_of(model).run_mlp(model, tokens, layer, without)
    return written.unflatten(0, change.shape[:2])


def run_from(
    experiment: Experiment,
    rows: slice,
    layer: int,
    resid: Float[Tensor, "copies_batch pos d_model"],
    hooks: Hooks,
) -> Float[Tensor, "copies_batch pos d_model"]:
    """Returns the final residual stream of copies of the prompts, with `resid` before a layer."""
    model, tokens = experiment.model, _copies(experiment, rows, resid)
    with experiment.hold_gates(rows):
        return backend_of(model).run_from(model, tokens, layer, resid, hooks)


def _copies(
    experiment: Experiment, rows: slice, resid: Float[Tensor, "copies_batch pos d_model"]
) -> Int[Tensor, "copies_batch pos"]:
    tokens = experiment.prompts.clean[rows]
    return tokens.repeat(len(resid) // len(tokens), 1)


def check_runnable(experiment: Experiment) -> None:
    """Refuses a model whose heads cannot be run on their input alone.

    Raises:
        ValueError: positions are added to what heads read, outside the residual stream.
    """
    cfg = experiment.model.cfg
    if positions_handed_in(cfg):
        raise ValueError(
            f"{cfg.model_name} gives positions to its heads from outside the "
            "residual stream; use the method 'attribution_patching'"
        )
