"""Why a head looks where it does: its score, split over pairs of what it has read.

Let x_u be what source u wrote at the query's position and y_v what v wrote at the key's. With the
scale of every norm held at what it is in the run, query and key are sums over sources, and

    score = q.k / sqrt(d_head) = sum over u, v of  q(x_u)^T M k(y_v)

where M is what becomes of a query and a key between their hook points and the score
(circuits/attribute/score_product.py).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.attribute.gradients import check_differentiable
from circuits.attribute.score_product import product_of_scores
from circuits.gate.gate import gates, is_gated
from circuits.graph import INPUT, Graph
from circuits.intervene.activations import Activations, record_activations, source_outputs
from circuits.intervene.behind_heads import linear_changes, norm_of
from circuits.intervene.experiment import graph_of
from circuits.models.anatomy import (
    norm_before_heads,
    norm_gain,
    positions_handed_in,
    subtracts_mean,
    value_limit,
)
from circuits.models.backend import Hooks, Model
from circuits.models.load import as_model, tokenizer_of
from circuits.results.score_split import Pair, ScoreSplit

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def split_score(
    model: Model | PreTrainedModel | str | Path,
    prompt: str,
    layer: int,
    head: int,
    query: int = -1,
    key: int | None = None,
) -> ScoreSplit:
    """Returns one attention score of a prompt, split over pairs of upstream sources.

        split_score("sparse", "Then Mary and John ...", layer=3, head=1, query=9, key=2)

    Args:
        model: A model, as `circuits.models.load.as_model` takes it.
        prompt: The text; the begin-of-sequence token is put in front, at position 0.
        layer: The layer of the head, from 0.
        head: The head, from 0.
        query: The position that looks; counted from the end if negative.
        key: The position that is looked at; the one that gets most attention if left out.

    Raises:
        ValueError: there is no such head or position, or the query does not see the key; the model
            makes its scores otherwise than by a product of normed sums (it clips or caps them, or
            hands positions to its heads), or has no tokenizer.
    """
    model = as_model(model)
    check_head(model, layer, head)
    _check_scores(model)
    tokenizer, tokens = tokenizer_of(model), model.to_tokens(prompt)
    texts = tuple(str(tokenizer.decode([one])) for one in tokens[0].tolist())
    return split_score_of_tokens(model, tokens, texts, layer, head, query, key)


def split_score_of_tokens(
    model: Model,
    tokens: Int[Tensor, "1 pos"],
    texts: tuple[str, ...],
    layer: int,
    head: int,
    query: int,
    key: int | None,
) -> ScoreSplit:
    """Returns the split for a prompt given as tokens; `split_score` says the rest."""
    query = _position("query", query, texts)
    scores, pattern = _attention(model, tokens, layer, head, query)
    key = int(pattern.argmax()) if key is None else _position("key", key, texts)
    # Masked scores are -inf, or about the dtype's lowest number.
    if not scores[key] > torch.finfo(scores.dtype).min / 2:
        raise ValueError(
            f"position {query} does not see position {key} in a{layer}.h{head}; give a key that is "
            "not behind the query (or outside its window)"
        )
    graph = graph_of(model)
    acts = record_activations(model, graph, tokens)
    names, streams = _streams(model, graph, acts, tokens, layer)
    product, by_position = product_of_scores(model, tokens, layer, head, query, key)
    read = [
        _read(model, layer, head, what, streams[:, at], acts.resid_pre[layer, 0, at])
        for what, at in (("Q", query), ("K", key))
    ]
    split = ScoreSplit(
        model=str(model.cfg.model_name),
        tokens=texts,
        layer=layer,
        head=head,
        query=query,
        key=key,
        sources=names,
        pairs=(read[0] @ product @ read[1].T).cpu(),
        by_position=by_position,
        score=float(scores[key]),
        gate_bias=gates(model)[layer].bias if is_gated(model) else None,
        pattern=float(pattern[key]),
    )
    _check_sum(split, torch.finfo(scores.dtype).eps)
    return split


@torch.no_grad()
def attention_without(model: Model, prompt: str, split: ScoreSplit, pairs: list[Pair]) -> float:
    """Returns the attention of a split's edge, after the gate, in a run without some of its pairs.

    What they add is taken off the score, for this query and key only; all else runs as it does.

    Raises:
        ValueError: a pair is none of the split.
    """
    less, found = split.value(pairs), []
    block = f"blocks.{split.layer}.attn"

    def lower(scores: Tensor, hook: object) -> Tensor:
        scores = scores.clone()
        scores[0, split.head, split.query, split.key] -= less
        return scores

    def note(pattern: Tensor, hook: object) -> None:
        found.append(float(pattern[0, split.head, split.query, split.key]))

    hooks: Hooks = [(f"{block}.hook_attn_scores", lower), (f"{block}.hook_pattern", note)]
    model.run_with_hooks(model.to_tokens(prompt), fwd_hooks=hooks, stop_at_layer=split.layer + 1)
    return found[0]


def check_head(model: Model, layer: int, head: int) -> None:
    """Refuses a head that the model does not have.

    Raises:
        ValueError: there is none; the message says which there are.
    """
    cfg = model.cfg
    if not (0 <= layer < cfg.n_layers and 0 <= head < cfg.n_heads):
        raise ValueError(
            f"{cfg.model_name} has no head a{layer}.h{head}: it has layers 0 to "
            f"{cfg.n_layers - 1}, of heads 0 to {cfg.n_heads - 1}"
        )


def _check_scores(model: Model) -> None:
    """Refuses models whose scores are no product of sums."""
    cfg: Any = model.cfg
    check_differentiable(model)
    why = None
    if positions_handed_in(cfg):
        why = "gives positions to its heads from outside the residual stream"
    elif value_limit(cfg) is not None:
        why = "clips its queries and keys"
    elif (getattr(cfg, "attn_scores_soft_cap", None) or 0) > 0:
        why = "caps its scores"
    if why is not None:
        raise ValueError(f"{cfg.model_name} {why}, so they are no sum over pairs of sources")


def _position(what: str, at: int, texts: tuple[str, ...]) -> int:
    """A position counted from the first."""
    if not -len(texts) <= at < len(texts):
        listed = ", ".join(f"{place} {text!r}" for place, text in enumerate(texts))
        raise ValueError(f"there is no position {at} for the {what}; the prompt has {listed}")
    return at % len(texts)


@torch.no_grad()
def _attention(
    model: Model, tokens: Int[Tensor, "1 pos"], layer: int, head: int, query: int
) -> tuple[Float[Tensor, " pos"], Float[Tensor, " pos"]]:
    """A head's scores and its attention after the gate, from one position."""
    names = [f"blocks.{layer}.attn.hook_{what}" for what in ("attn_scores", "pattern")]
    found: dict[str, Tensor] = {}

    def keep(act: Tensor, hook: object, *, name: str) -> None:
        found[name] = act[0, head, query].clone()

    hooks: Hooks = [(name, partial(keep, name=name)) for name in names]
    model.run_with_hooks(tokens, fwd_hooks=hooks, stop_at_layer=layer + 1)
    return found[names[0]], found[names[1]]


@torch.no_grad()
def _streams(
    model: Model, graph: Graph, acts: Activations, tokens: Int[Tensor, "1 pos"], layer: int
) -> tuple[tuple[str, ...], Float[Tensor, "src pos d_model"]]:
    """What each source gave to the stream before a layer, the constants last, and their names."""
    written = source_outputs(model, graph, acts)
    written = linear_changes(model, graph, written, lambda at: acts.z[at], constant_scale=True)
    streams = written[: graph.n_upstream_of_heads(layer), 0]
    names = list(graph.sources[: len(streams)])
    names[names.index(INPUT)] = "embed"
    if "hook_pos_embed" in model.hook_dict and model.cfg.positional_embedding_type == "standard":
        _, cache = model.run_with_cache(tokens, names_filter="hook_pos_embed", stop_at_layer=1)
        positions = cache["hook_pos_embed"].expand(1, *streams.shape[1:])
        streams = torch.cat([streams[:1] - positions, positions, streams[1:]])
        names.insert(1, "pos_embed")
    constants = torch.zeros_like(streams[:1])
    for below in range(layer):
        constants += _constant_of_heads(model, acts, below)
    return (*names, "bias"), torch.cat([streams, constants])


def _constant_of_heads(
    model: Model, acts: Activations, layer: int
) -> Float[Tensor, "... d_model"] | float:
    """What a layer's attention writes whatever its heads do: b_O, behind any norm."""
    bias, norm = model.blocks[layer].attn.b_O, norm_of(model, layer)
    if norm is None:
        return 0.0 if bias is None else bias
    constant = 0.0 if norm.bias is None else norm.bias
    if bias is None:
        return constant
    total = torch.einsum("phe,hed->pd", acts.z[layer, 0], model.blocks[layer].attn.W_O) + bias
    return constant + norm.forwards(total, bias.expand_as(total), constant_scale=True)


@torch.no_grad()
def _read(
    model: Model,
    layer: int,
    head: int,
    what: str,
    parts: Float[Tensor, "src d_model"],
    stream: Float[Tensor, " d_model"],
) -> Float[Tensor, "src d_head"]:
    """What each part of the stream gives to a head's query or key (`Q` or `K`); biases last.

    The norm's scale is that of the whole stream.
    """
    attn, cfg = model.blocks[layer].attn, model.cfg
    norm, constant = norm_before_heads(cfg, model.blocks[layer]), torch.zeros_like(stream)
    if norm is not None:
        centred = subtracts_mean(cfg)
        if centred:
            parts = parts - parts.mean(dim=-1, keepdim=True)
            stream = stream - stream.mean()
        parts = parts / (stream.square().mean() + cfg.eps).sqrt()
        gain = norm_gain(cfg, norm)
        parts = parts if gain is None else parts * gain
        bias = getattr(norm, "b", None) if centred else None
        constant = constant if bias is None else bias
    parts = torch.cat([parts[:-1], parts[-1:] + constant])
    weight, bias = getattr(attn, f"W_{what}"), getattr(attn, f"b_{what}")
    # A TransformerBridge gives shared keys once.
    found = parts @ weight[head * len(weight) // cfg.n_heads]
    if bias is not None:
        found[-1] += bias[head * len(bias) // cfg.n_heads]
    return found


def _check_sum(split: ScoreSplit, eps: float) -> None:
    """Refuses a split that does not add up: the model makes its scores in another way."""
    total = float(split.pairs.double().sum()) + split.by_position
    size = max(1.0, abs(split.score), float(split.pairs.double().abs().sum()))
    if abs(total - split.score) > 200 * eps * size:
        raise ValueError(
            f"the pairs of {split.model} {split} add up to {total:.6g}, but its score is "
            f"{split.score:.6g}; it makes scores otherwise than by its norms, W_Q, W_K and "
            "positions, which is not known here (docs/models.md says where to add it)"
        )
