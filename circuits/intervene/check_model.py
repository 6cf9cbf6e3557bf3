"""Whether a model is put together as the method takes it to be, measured on one pair of prompts.

What is known to stand in the way is a fact of circuits/models/anatomy.py and refused by name.
TransformerLens wraps over a hundred architectures, though, and a model whose residual stream is not
the sum that a circuit is defined by would give wrong numbers without a word. So what the method
needs is measured too, on one pair of prompts: every component shows what it reads and writes; heads
attend by the pattern that is shown; what the components write more than in the corrupted run adds
up in the stream; the last norm and the unembedding make the model's logits of it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from circuits.graph import READS, Graph
from circuits.intervene.activations import (
    logits_after,
    noting_changes,
    record_activations,
)
from circuits.intervene.behind_heads import ablated_totals, read_inputs
from circuits.models.backend import Hooks, Model, component_hooks
from circuits.prompts import Prompts


@torch.no_grad()
def check_model(model: Model, graph: Graph, prompts: Prompts) -> None:
    """Refuses a model that does not compute what the method takes it to compute.

    Activations that are not finite are left to the checks that name them.

    Raises:
        ValueError: a component does not show what it reads or writes, a head's output is not its
            pattern times its values, the residual stream is not the sum of what is written, or the
            logits are not those of its last position.
    """
    patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in range(graph.n_layers)]
    if missing := [name for name in patterns if name not in model.hook_dict]:
        _refuse(model, f"does not show {missing[0]}")
    corrupted = record_activations(model, graph, prompts.corrupted[:1])
    attention = corrupted.attention
    attended = torch.einsum("lbhqk,lbkhe->lbqhe", attention.pattern, attention.value)
    if _differ(attended, corrupted.z, scale=corrupted.z):
        _refuse(model, "makes what its heads write otherwise than by attention pattern and values")
    change, noting = noting_changes(model, graph, corrupted, slice(0, 1))
    names = [name for name, _ in noting]
    for layer in range(graph.n_layers):
        names += [f"blocks.{layer}.hook_{read}_input" for read in READS]
        names += [f"blocks.{layer}.hook_mlp_in"] if graph.has_mlps else []
    seen: set[str] = set()
    final: list[Tensor] = []

    def note(act: Tensor, hook: object, *, name: str) -> None:
        seen.add(name)

    with component_hooks(model):
        known = [name for name in names if name in model.hook_dict]
        hooks: Hooks = [hook for hook in noting if hook[0] in known]
        hooks += [(name, partial(note, name=name)) for name in known]
        end = f"blocks.{graph.n_layers - 1}.hook_resid_post"
        hooks.append((end, lambda act, hook: final.append(act)))
        logits = model.run_with_hooks(prompts.clean[:1], fwd_hooks=hooks)
    hidden = [name for name in names if name not in seen]
    if hidden:
        _refuse(model, f"does not show {', '.join(hidden[:3])}")
    last = prompts.last[:1]
    at = (torch.zeros_like(last), last)
    (summed,) = read_inputs(
        model,
        graph,
        change.new_ones(graph.n_sources, 1),
        change,
        corrupted.resid_final,
        ablated_totals(model, corrupted.z),
    )
    if _differ(summed[at], final[0][at], scale=final[0][at]):
        _refuse(model, "has a residual stream that is not the sum of what heads and MLPs write")
    if _differ(logits_after(model, final[0], last), logits[at], scale=logits[at]):
        _refuse(model, "makes its logits otherwise than by its last norm and unembedding alone")


def _differ(found: Tensor, expected: Tensor, *, scale: Tensor) -> bool:
    """Whether two tensors differ by more than rounding; not where they are not finite."""
    tolerance = 1e-3 if found.dtype in (torch.float32, torch.float64) else 0.1
    error = (found - expected).abs().max() / scale.abs().max().clamp(min=1.0)
    return bool(error > tolerance)


def _refuse(model: Model, what: str) -> None:
    raise ValueError(
        f"{model.cfg.model_name} {what}; its edges are not defined or cannot be measured here. "
        "docs/models.md says what an architecture must have"
    )
