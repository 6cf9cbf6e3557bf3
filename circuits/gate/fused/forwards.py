"""An attention layer's `forward` with one call between its queries, keys and values and z.

There is one for each way in which TransformerLens computes attention:

- HookedTransformer: `AbstractAttention.forward`, written out;
- TransformerBridge with fused QKV (GPT-2, Pythia): `JointQKVAttentionBridge.forward`, written out;
- TransformerBridge otherwise (Llama, Qwen): the `forward` of the Hugging Face module that it wraps,
  which asks transformers' AttentionInterface for the step between q, k, v and z.

What is written out is what `layer_refuses` lets pass, without hook points, masks and caches: a call
with any of these is not for here (circuits/gate/fused/placement.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformer_lens.model_bridge.generalized_components import AttentionBridge
from transformers import AttentionInterface, AttentionMaskInterface

Heads = Float[Tensor, "batch head pos d_head"]
KeyHeads = Float[Tensor, "batch kv_head pos d_head"]
Attend = Callable[[Heads, KeyHeads, KeyHeads, float], Heads]
"""q, k, v and the scale of the scores -> z."""


def layer_refuses(model: Any, attn: Any) -> str | None:
    """Returns why a layer is more than a masked softmax of scale q.k; None if it is not."""
    kind, cfg = kind_of(attn).__name__, config_of(attn)
    if kind not in FORWARDS:
        return f"{kind} computes its scores in a way of its own"
    if FORWARDS[kind] is not _hooked:
        wrapped = attn.original_component
        if not attn.is_causal or attn.is_cross_attention:
            return "it is not causal"
        if getattr(wrapped, "attn_logit_softcapping", None) is not None:
            return "its scores are capped"
        if FORWARDS[kind] is _wrapped and not model.original_model.is_backend_compatible():
            return f"{type(wrapped).__name__} does not use transformers' AttentionInterface"
        return "it has attention sinks" if getattr(wrapped, "sinks", None) is not None else None
    if cfg.positional_embedding_type in ("alibi", "relative_positional_bias"):
        return f"positions are added to its scores ({cfg.positional_embedding_type})"
    if cfg.attention_dir != "causal":
        return "it is not causal"
    if cfg.attn_scores_soft_cap > 0:
        return "its scores are capped"
    if cfg.use_logn_attn:
        return "its queries are scaled by their position"
    if cfg.load_in_4bit:
        return "its weights are packed in 4 bits"
    return "it has attention sinks" if cfg.use_attention_sinks else None


def kind_of(attn: Any) -> type[Any]:
    """Returns the class of an attention layer, whatever updates are put on its weights."""
    return parametrize.type_before_parametrizations(attn)


def config_of(attn: Any) -> Any:
    """Returns TransformerLens' config of an attention layer."""
    return attn.config if hasattr(attn, "original_component") else attn.cfg


def _hooked(
    attn: Any, attend: Attend, query_input: Tensor, key_input: Tensor, value_input: Tensor, **_: Any
) -> Float[Tensor, "batch pos d_model"]:
    """`AbstractAttention.forward`."""
    cfg = attn.cfg
    q, k, v = _projections(attn, query_input, key_input, value_input)
    if attn.q_norm is not None and not cfg.use_qk_norm:  # OLMo's norms take all heads together.
        q, k = (norm(x.flatten(2)).view_as(x) for norm, x in ((attn.q_norm, q), (attn.k_norm, k)))
    if cfg.clip_qkv is not None:
        q, k, v = (x.clamp(-cfg.clip_qkv, cfg.clip_qkv) for x in (q, k, v))
    if cfg.positional_embedding_type == "rotary":
        q, k = attn.apply_rotary(q), attn.apply_rotary(k)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    z = attend(q, k, v, 1 / attn.attn_scale).transpose(1, 2).flatten(2)
    if has_update(attn, "W_O"):
        return product(attn, "W_O", z) + attn.b_O
    return F.linear(z, attn.W_O.flatten(0, 1).T.contiguous(), attn.b_O)


def _projections(attn: Any, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The queries, keys and values of a HookedTransformer's layer, by heads."""
    # Heads that share keys and values have them under other names.
    names = [name if has_update(attn, name) else f"_{name}" for name in ("W_Q", "W_K", "W_V")]
    if (
        not all(has_update(attn, name) for name in names)
        or attn.cfg.use_qk_norm
        or attn.cfg.ungroup_grouped_query_attention
    ):
        return attn.calculate_qkv_matrices(*inputs)
    biases = (getattr(attn, name.replace("W", "b")) for name in names)
    q, k, v = (
        product(attn, name, x).unflatten(-1, bias.shape) + bias
        for name, x, bias in zip(names, inputs, biases, strict=True)
    )
    return q, k, v


def has_update(module: nn.Module, name: str) -> bool:
    """Returns whether a low-rank update is put on a weight (circuits/sparsify/low_rank.py)."""
    # Not by getattr: a TransformerBridge's modules pass that on to the one they wrap.
    updated: Any = module._modules.get("parametrizations")
    return updated is not None and name in updated


def product(module: nn.Module, name: str, x: Tensor, *, transposed: bool = False) -> Tensor:
    """Returns x times a weight that an update is put on; see `LowRank.product`."""
    updated: Any = module._modules["parametrizations"]
    return updated[name][0].product(x, updated[name].original, transposed=transposed)


def _joint_qkv(
    attn: Any, attend: Attend, hidden_states: Tensor, *_: Any, **options: Any
) -> tuple[Float[Tensor, "batch pos d_model"], None]:
    """`JointQKVAttentionBridge.forward`, or with rotations that of the class derived from it."""
    cfg = attn.config
    n_kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    q, k, v = (
        project(hidden_states).unflatten(-1, (n_heads, -1)).transpose(1, 2)
        for project, n_heads in ((attn.q, cfg.n_heads), (attn.k, n_kv_heads), (attn.v, n_kv_heads))
    )
    if options.get("position_embeddings") is not None:
        q, k = attn._apply_rotary_pos_emb(q, k, *options["position_embeddings"])
    scale = q.shape[-1] ** -0.5
    if getattr(cfg, "scale_attn_by_inverse_layer_idx", False):
        scale /= attn.original_component.layer_idx + 1
    return attn.o(attend(q, k, v, scale).transpose(1, 2).flatten(2)), None


def _wrapped(attn: Any, attend: Attend, *args: Any, **kwargs: Any) -> Any:
    """The wrapped module's `forward`, which passes its keyword arguments on to `_between`."""
    return AttentionBridge.forward(attn, *args, attend=attend, **kwargs)


def _between(
    module: nn.Module, q: Heads, k: KeyHeads, v: KeyHeads, mask: None, **options: Any
) -> tuple[Float[Tensor, "batch pos head d_head"], None]:
    """What the AttentionInterface has under the name of IN_TRANSFORMERS."""
    del module, mask
    return options["attend"](q, k, v, options["scaling"]).transpose(1, 2), None


FORWARDS: dict[str, Callable[..., Any]] = {
    "Attention": _hooked,
    "GroupedQueryAttention": _hooked,
    "JointQKVAttentionBridge": _joint_qkv,
    "JointQKVPositionEmbeddingsAttentionBridge": _joint_qkv,
    "PositionEmbeddingsAttentionBridge": _wrapped,
}
"""By the name of the layer's class; a class derived from one of these may do something else."""

IN_TRANSFORMERS = "circuits_fused"
AttentionInterface.register(IN_TRANSFORMERS, _between)
# Masks are made as for sdpa: None, in place of one that would be causal and no more.
AttentionMaskInterface.register(IN_TRANSFORMERS, AttentionMaskInterface()["sdpa"])
