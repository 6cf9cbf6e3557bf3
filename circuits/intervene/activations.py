"""Activations of a run.

`record_activations` runs a model once and keeps, for every source, what it wrote to the residual
stream, for every destination, what it read, and for every head its attention terms A_ij P_ij v_j.

What a head writes is kept as `z`, before `W_O`: its output is `d_model / d_head` times as large,
and is computed only where a difference between two runs is needed. Where a norm stands behind the
heads, their outputs here are what they make before it (circuits/intervene/behind_heads.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.graph import Graph
from circuits.intervene.attention_terms import AttentionTerms
from circuits.models.anatomy import logit_cap, value_limit
from circuits.models.backend import Hooks, Model, backend_of, component_hooks
from circuits.prompts import Prompts

MOST_PROMPTS = 64
"""Prompts run at once at most."""
MOST_NUMBERS = 2**27
"""Numbers held at once for the changes of all sources; half a gigabyte in float32."""


@dataclass(frozen=True)
class Activations:
    """What the sources wrote and what the destinations read in one run.

    Attributes:
        embed: What the input writes.
        z: What each head attends to, before W_O.
        mlp_out: What each MLP writes.
        resid_pre: The input of each block's heads.
        resid_mid: The input of each block's MLP (zeros where that is `resid_pre`).
        resid_final: The input of the last layer norm, which gives the logits.
        attention: The terms of all attention edges.
    """

    embed: Float[Tensor, "batch pos d_model"]
    z: Float[Tensor, "layer batch pos head d_head"]
    mlp_out: Float[Tensor, "layer batch pos d_model"]
    resid_pre: Float[Tensor, "layer batch pos d_model"]
    resid_mid: Float[Tensor, "layer batch pos d_model"]
    resid_final: Float[Tensor, "batch pos d_model"]
    attention: AttentionTerms


def attended_value(model: Model, value: Tensor) -> Tensor:
    """Returns what heads attend to of an activation at `hook_v`; some models clip it later."""
    limit = value_limit(model.cfg)
    return value if limit is None else value.clamp(-limit, limit)


def head_outputs(
    model: Model,
    layer: int,
    z: Float[Tensor, "batch pos head d_head"],
    heads: Int[Tensor, " head"] | None = None,
) -> Float[Tensor, "head batch pos d_model"]:
    """Returns what each head adds to the residual stream, without the shared bias b_O.

    Where a norm stands behind the heads: to the input of that norm. `z` may be of some `heads`.
    """
    batch, pos = z.shape[:2]
    w_o = model.blocks[layer].attn.W_O
    w_o = w_o if heads is None or len(heads) == len(w_o) else w_o[heads]
    return torch.bmm(z.permute(2, 0, 1, 3).flatten(1, 2), w_o).unflatten(1, (batch, pos))


def source_outputs(
    model: Model, graph: Graph, acts: Activations
) -> Float[Tensor, "src batch pos d_model"]:
    """Returns what every source added to the residual stream, or to the norm behind heads."""
    outputs = [acts.embed[None]]
    for layer in range(graph.n_layers):
        outputs.append(head_outputs(model, layer, acts.z[layer]))
        outputs += [acts.mlp_out[layer][None]] if graph.has_mlps else []
    return torch.cat(outputs)


def noting_changes(
    model: Model,
    graph: Graph,
    ablated: Activations,
    rows: slice,
    live: Bool[Tensor, " src"] | None = None,
) -> tuple[Float[Tensor, "live batch pos d_model"], Hooks]:
    """Returns a tensor, and the hooks that fill it as a run goes on.

    It holds what each source writes in that run minus what it writes ablated, heads before the norm
    behind them if there is one; of the `live` sources only, if they are given.
    """
    embed = ablated.embed[rows]
    live = torch.ones(graph.n_sources, dtype=torch.bool) if live is None else live.cpu()
    places = [0, *live.cumsum(dim=0).tolist()]  # the place of a source, and how many are before it
    change = embed.new_empty(places[-1], *embed.shape)

    def note_input(act: Tensor, hook: object) -> None:
        change[0] = act.detach() - embed

    def note_heads(z: Tensor, hook: object, *, layer: int, heads: Tensor) -> None:
        first = places[graph.head_sources(layer).start]
        changed = (z.detach() - ablated.z[layer, rows])[:, :, heads]
        change[first : first + len(heads)] = head_outputs(model, layer, changed, heads)

    def note_mlp(act: Tensor, hook: object, *, layer: int) -> None:
        place = places[graph.mlp_source(layer)]
        change[place] = act.detach() - ablated.mlp_out[layer, rows]

    hooks: Hooks = [("blocks.0.hook_resid_pre", note_input)] if live[0] else []
    for layer in range(graph.n_layers):
        block, heads = f"blocks.{layer}", live[graph.head_sources(layer)].nonzero()[:, 0]
        if len(heads):
            note = partial(note_heads, layer=layer, heads=heads.to(embed.device))
            hooks.append((f"{block}.attn.hook_z", note))
        if graph.has_mlps and live[graph.mlp_source(layer)]:
            hooks.append((f"{block}.hook_mlp_out", partial(note_mlp, layer=layer)))
    return change, hooks


def record_activations(
    model: Model, graph: Graph, tokens: Int[Tensor, "batch pos"], *, keys: bool = False
) -> Activations:
    """Returns what every source wrote and every destination read on `tokens`.

    With `keys`, the keys of attention are kept as well, if the model can go on from them.

    Raises:
        ValueError: the model shows an activation in another shape than its config has it.
    """
    batch, pos = tokens.shape
    cfg = model.cfg

    def new(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=model.W_E.dtype, device=model.W_E.device)

    stream = (graph.n_layers, batch, pos, cfg.d_model)
    found = Activations(
        embed=new(*stream[1:]),
        z=new(graph.n_layers, batch, pos, cfg.n_heads, cfg.d_head),
        mlp_out=new(*stream),
        resid_pre=new(*stream),
        resid_mid=new(*stream),
        resid_final=new(*stream[1:]),
        attention=AttentionTerms(
            pattern=new(graph.n_layers, batch, cfg.n_heads, pos, pos),
            value=new(graph.n_layers, batch, pos, cfg.n_heads, cfg.d_head),
        ),
    )
    places = {f"blocks.{graph.n_layers - 1}.hook_resid_post": found.resid_final}
    for layer in range(graph.n_layers):
        block = f"blocks.{layer}"
        places[f"{block}.hook_resid_pre"] = found.resid_pre[layer]
        places[f"{block}.attn.hook_pattern"] = found.attention.pattern[layer]
        places[f"{block}.attn.hook_v"] = found.attention.value[layer]
        places[f"{block}.attn.hook_z"] = found.z[layer]
        if graph.has_mlps:
            places[f"{block}.hook_mlp_out"] = found.mlp_out[layer]
        if graph.has_mlps and not graph.parallel_attn_mlp:
            places[f"{block}.hook_resid_mid"] = found.resid_mid[layer]

    def keep(act: Tensor, hook: object, *, name: str, place: Tensor) -> None:
        try:
            place.copy_(act)
        except RuntimeError as error:
            raise ValueError(
                f"{cfg.model_name} shows {name} in the shape {tuple(act.shape)}, not "
                f"{tuple(place.shape)}; its edges are not defined or cannot be measured here"
            ) from error

    hooks: Hooks = [(name, partial(keep, name=name, place=place)) for name, place in places.items()]
    behind = backend_of(model).run_behind(model) if keys else None
    with component_hooks(model, split_heads=False), torch.no_grad():
        if behind is None:
            run_to_final(model, tokens, hooks)
        else:
            everywhere = torch.arange(pos, device=tokens.device).expand(batch, pos)
            nothing = found.z[:, :, :0]
            _, key = behind(tokens, everywhere, nothing, nothing, hooks)
            found = replace(found, attention=replace(found.attention, key=torch.stack(key)))
    found.embed.copy_(found.resid_pre[0])
    found.attention.value.copy_(attended_value(model, found.attention.value))
    return found


@torch.no_grad()
def record_gates(
    model: Model, graph: Graph, prompts: Prompts
) -> Bool[Tensor, "layer batch head query_pos key_pos"]:
    """Returns which gates of a gated model are open in its run on the clean prompts."""
    batch, pos = prompts.clean.shape
    shape = (graph.n_layers, batch, graph.n_heads, pos, pos)
    found = torch.empty(shape, dtype=torch.bool, device=prompts.clean.device)

    def keep(act: Tensor, hook: object, *, place: Tensor) -> None:
        place.copy_(act > 0)

    for rows in row_batches(graph, prompts, model.cfg.d_model):
        hooks: Hooks = [
            (f"blocks.{layer}.attn.hook_gate", partial(keep, place=found[layer, rows]))
            for layer in range(graph.n_layers)
        ]
        run_to_final(model, prompts.clean[rows], hooks)
    return found


def run_to_final(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    hooks: Hooks,
) -> Float[Tensor, "batch pos d_model"]:
    """Returns the residual stream after all layers of a run with hooks.

    Nobody reads that run's logits.

    Raises:
        ValueError: the model does not show it.
    """
    found: list[Tensor] = []
    n_layers = model.cfg.n_layers
    end = f"blocks.{n_layers - 1}.hook_resid_post"
    last: Hooks = [(end, lambda act, hook: found.append(act))]
    # A TransformerBridge that is to stop after its last layer runs to the end all the same; what it
    # returns is not looked at.
    model.run_with_hooks(tokens, fwd_hooks=[*hooks, *last], stop_at_layer=n_layers)
    if not found:
        raise ValueError(
            f"{model.cfg.model_name} does not show {end}, the residual stream after its last "
            "layer; its edges are not defined or cannot be measured here"
        )
    return found[0]


def logits_after(
    model: Model,
    resid_final: Float[Tensor, "batch pos d_model"],
    last: Int[Tensor, " batch"],
) -> Float[Tensor, "batch d_vocab"]:
    """Returns the logits at each prompt's `last` position only, from the final residual stream."""
    ends = resid_final[torch.arange(len(last), device=resid_final.device), last][:, None]
    if model.cfg.normalization_type is not None:
        ends = model.ln_final(ends)
    logits = model.unembed(ends)[:, 0]
    cap = logit_cap(model.cfg)
    return logits if cap is None else cap * (logits / cap).tanh()


def row_batches(graph: Graph, prompts: Prompts, d_model: int, n_workers: int = 1) -> list[slice]:
    """Returns the prompts cut into batches that bound the memory of a change at every source.

    There are at least as many batches as workers, if there are as many prompts.
    """
    per_prompt = graph.n_sources * prompts.clean.shape[1] * d_model
    size = min(MOST_PROMPTS, max(1, MOST_NUMBERS // per_prompt), -(-len(prompts) // n_workers))
    return [slice(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]
