"""Activations of a run, and what stands in for them when a component is ablated.

`record_activations` runs a model once and keeps, for every source, what it wrote to the residual
stream, for every destination, what it read, and for every head its attention terms A_ij P_ij v_j.
`ablated_activations` gives the same for the three kinds of ablation: the corrupted run, the mean
over the clean prompts of the same template per position, or zero.

A head's output is computed from `hook_z` and `W_O`, since materialising `hook_result` costs
`d_head` times its size in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.graph import Graph
from circuits.models import component_hooks
from circuits.tasks.prompts import Prompts

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Ablation = Literal["corrupted", "mean", "zero"]
"""What a component outside the circuit writes: its value in the corrupted run; its mean over the
clean prompts of the same template, per position; or nothing at all."""

BATCH_SIZE = 64
"""Prompts run at once; bounds memory, changes no result."""

Hooks = list[tuple[Any, Any]]
"""Names of hook points, each with the function `(act, hook) -> act or None` to run there."""


@dataclass(frozen=True)
class AttentionTerms:
    """The terms A_ij P_ij v_j of every attention edge, as pattern times value.

    Attributes:
        pattern: Attention after the gate, A_ij P_ij.
        value: Value vectors, one for each query head; with an axis for the query position where
            the terms are means over prompts, which do not factorise.
    """

    pattern: Float[Tensor, "layer batch head query_pos key_pos"]
    value: (
        Float[Tensor, "layer batch key_pos head d_head"]
        | Float[Tensor, "layer batch query_pos key_pos head d_head"]
    )

    def add_up(
        self, layer: int, weight: Float[Tensor, "batch head query_pos key_pos"], rows: slice
    ) -> Float[Tensor, "batch query_pos head d_head"]:
        """Returns the weighted sum over keys of a layer's terms, for some prompts."""
        value, pattern = self.value[layer, rows], self.pattern[layer, rows]
        indices = "bkhe" if value.ndim == 4 else "bqkhe"
        return torch.einsum(f"bhqk,{indices}->bqhe", weight * pattern, value)

    def dot(
        self, layer: int, direction: Float[Tensor, "batch query_pos head d_head"], rows: slice
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """Returns each term's dot product with the `direction` of its query and head."""
        value = self.value[layer, rows]
        indices = "bkhe" if value.ndim == 4 else "bqkhe"
        return self.pattern[layer, rows] * torch.einsum(f"bqhe,{indices}->bhqk", direction, value)


@dataclass(frozen=True)
class Activations:
    """What the sources wrote and what the destinations read in one run.

    Attributes:
        outputs: What each source adds to the residual stream.
        resid_pre: The input of each block's heads.
        resid_mid: The input of each block's MLP (zeros where that is `resid_pre`).
        resid_final: The input of the last layer norm, hence of the logits.
        attention: The terms of all attention edges.
    """

    outputs: Float[Tensor, "src batch pos d_model"]
    resid_pre: Float[Tensor, "layer batch pos d_model"]
    resid_mid: Float[Tensor, "layer batch pos d_model"]
    resid_final: Float[Tensor, "batch pos d_model"]
    attention: AttentionTerms


def with_arguments(function: Callable[..., object], **fixed: object) -> Callable:
    """Returns `function` with arguments fixed, callable as TransformerLens calls its hooks."""

    def hook_function(act: Tensor, hook: object) -> object:
        return function(act, hook, **fixed)

    return hook_function


def writing_hooks(graph: Graph, heads: Callable[..., object], one: Callable[..., object]) -> Hooks:
    """Returns the hooks at which sources write.

    `heads(z, hook, layer=...)` is called for the heads of a layer, `one(act, hook, source=...)`
    for the input and for each MLP.
    """
    hooks: Hooks = [("blocks.0.hook_resid_pre", with_arguments(one, source=0))]
    for layer in range(graph.n_layers):
        hooks.append((f"blocks.{layer}.attn.hook_z", with_arguments(heads, layer=layer)))
        if graph.has_mlps:
            source = graph.mlp_source(layer)
            hooks.append((f"blocks.{layer}.hook_mlp_out", with_arguments(one, source=source)))
    return hooks


def head_outputs(
    model: HookedTransformer, layer: int, z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "head batch pos d_model"]:
    """Returns what each head adds to the residual stream, without the shared bias b_O."""
    return torch.einsum("bphe,hed->hbpd", z, model.blocks[layer].attn.W_O)


def record_activations(
    model: HookedTransformer, graph: Graph, tokens: Int[Tensor, "batch pos"]
) -> Activations:
    """Returns what every source wrote and every destination read on `tokens`."""
    batch, pos = tokens.shape
    cfg = model.cfg

    def new(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=model.W_E.dtype, device=model.W_E.device)

    found = Activations(
        outputs=new(graph.n_sources, batch, pos, cfg.d_model),
        resid_pre=new(graph.n_layers, batch, pos, cfg.d_model),
        resid_mid=new(graph.n_layers, batch, pos, cfg.d_model),
        resid_final=new(batch, pos, cfg.d_model),
        attention=AttentionTerms(
            pattern=new(graph.n_layers, batch, cfg.n_heads, pos, pos),
            value=new(graph.n_layers, batch, pos, cfg.n_heads, cfg.d_head),
        ),
    )

    def keep(act: Tensor, hook: object, *, place: Tensor) -> None:
        place.copy_(act)

    def keep_heads(z: Tensor, hook: object, *, layer: int) -> None:
        found.outputs[graph.head_sources(layer)] = head_outputs(model, layer, z)

    def keep_one(act: Tensor, hook: object, *, source: int) -> None:
        found.outputs[source] = act

    kept_whole = {f"blocks.{graph.n_layers - 1}.hook_resid_post": found.resid_final}
    for layer in range(graph.n_layers):
        block = f"blocks.{layer}"
        kept_whole[f"{block}.hook_resid_pre"] = found.resid_pre[layer]
        kept_whole[f"{block}.attn.hook_pattern"] = found.attention.pattern[layer]
        kept_whole[f"{block}.attn.hook_v"] = found.attention.value[layer]
        if graph.has_mlps and not graph.parallel_attn_mlp:
            kept_whole[f"{block}.hook_resid_mid"] = found.resid_mid[layer]
    hooks = writing_hooks(graph, keep_heads, keep_one)
    hooks += [(name, with_arguments(keep, place=place)) for name, place in kept_whole.items()]
    with component_hooks(model), torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    return found


def ablated_activations(
    model: HookedTransformer, graph: Graph, prompts: Prompts, ablation: Ablation | str
) -> Activations:
    """Returns what components outside a circuit write, for every prompt.

    Raises:
        ValueError: an unknown ablation, or a mean over templates that have one prompt only.
    """
    if ablation not in get_args(Ablation):
        raise ValueError(
            f"unknown ablation {ablation!r}; choose one of {', '.join(get_args(Ablation))}"
        )
    tokens = prompts.corrupted if ablation == "corrupted" else prompts.clean
    found = _joined(
        [
            record_activations(model, graph, tokens[start : start + BATCH_SIZE])
            for start in range(0, len(prompts), BATCH_SIZE)
        ]
    )
    if ablation == "corrupted":
        return found
    return _averaged(found, prompts) if ablation == "mean" else _zeroed(found, graph)


def _joined(parts: list[Activations]) -> Activations:
    def join(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=1)

    return Activations(
        outputs=join("outputs"),
        resid_pre=join("resid_pre"),
        resid_mid=join("resid_mid"),
        resid_final=torch.cat([part.resid_final for part in parts]),
        attention=AttentionTerms(
            pattern=torch.cat([part.attention.pattern for part in parts], dim=1),
            value=torch.cat([part.attention.value for part in parts], dim=1),
        ),
    )


def _averaged(clean: Activations, prompts: Prompts) -> Activations:
    """Every prompt's activations replaced by the mean over its template, per position."""
    groups = prompts.groups()
    alone = [template for template, rows in groups.items() if len(rows) < 2]
    if alone:
        raise ValueError(
            f"mean ablation needs at least 2 prompts of each template, {alone[0]!r} has one; "
            "ask for more prompts, give aligned prompts the same template, or choose the "
            "ablation 'corrupted'"
        )

    def mean(acts: Tensor, dim: int) -> Tensor:
        result = torch.empty_like(acts)
        for rows in groups.values():
            index = torch.tensor(rows, device=acts.device)
            average = acts.index_select(dim, index).mean(dim=dim, keepdim=True)
            result.index_copy_(dim, index, average.expand_as(acts.index_select(dim, index)))
        return result

    pattern, value = clean.attention.pattern, clean.attention.value
    # The mean of a product is not the product of the means: keep the mean terms themselves.
    terms = torch.einsum("lbhqk,lbkhe->lbqkhe", pattern, value)
    return Activations(
        outputs=mean(clean.outputs, 1),
        resid_pre=mean(clean.resid_pre, 1),
        resid_mid=mean(clean.resid_mid, 1),
        resid_final=mean(clean.resid_final, 0),
        attention=AttentionTerms(pattern=torch.ones_like(pattern), value=mean(terms, 1)),
    )


def _zeroed(clean: Activations, graph: Graph) -> Activations:
    """No source writes; destinations read what is left: the constants of the residual stream."""

    def constants(resid: Tensor, n_upstream: int) -> Tensor:
        return resid - clean.outputs[:n_upstream].sum(dim=0)

    layers = range(graph.n_layers)
    resid_mid = [
        constants(clean.resid_mid[layer], graph.n_upstream_of_mlp(layer)) for layer in layers
    ]
    return replace(
        clean,
        outputs=torch.zeros_like(clean.outputs),
        resid_pre=torch.stack(
            [
                constants(clean.resid_pre[layer], graph.n_upstream_of_heads(layer))
                for layer in layers
            ]
        ),
        resid_mid=torch.stack(resid_mid) if graph.has_mlps else clean.resid_mid,
        resid_final=constants(clean.resid_final, graph.n_sources),
        attention=replace(clean.attention, pattern=torch.zeros_like(clean.attention.pattern)),
    )
