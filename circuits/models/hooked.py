"""The `Backend` of HookedTransformers (circuits/models/backend.py says what each function is).

A HookedTransformer can run any of its modules by itself, and has every matrix in one parameter of
its own. TransformerLens 4 has none; there this module is not imported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry
from transformer_lens.components.layer_norm import LayerNorm
from transformer_lens.components.layer_norm_pre import LayerNormPre
from transformer_lens.components.rms_norm import RMSNorm
from transformer_lens.components.rms_norm_pre import RMSNormPre
from transformers import PretrainedConfig, PreTrainedModel

from circuits.models.anatomy import (
    ATTENTION_WEIGHTS,
    MLP_WEIGHTS,
    norm_before_heads,
    norm_behind_heads,
    norms_heads_together,
    shares_keys,
)
from circuits.models.backend import Hooks, PastHeads, RunBehind, Stream
from circuits.models.build_hooked import converted
from circuits.models.hf_weights import Rearrangement, learn_rearrangement


def run_heads(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    layer: int,
    resid: Stream,
    *,
    read: str,
    changed: Stream,
) -> Float[Tensor, "batch pos head d_head"]:
    """Runs the norm, if there is one, and the attention module alone."""
    block, z = model.blocks[layer], []
    norm = norm_before_heads(model.cfg, block)
    hooks: Hooks = [(f"blocks.{layer}.attn.hook_z", lambda act, hook: z.append(act))]
    inputs = {part: changed if part == read else resid for part in "qkv"}
    if norm is not None:
        inputs = {part: norm(stream) for part, stream in inputs.items()}
    with model.hooks(fwd_hooks=hooks):
        block.attn(query_input=inputs["q"], key_input=inputs["k"], value_input=inputs["v"])
    return z[0]


def run_mlp(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], layer: int, resid: Stream
) -> Stream:
    """Runs the MLP alone, with the norms before and behind it."""
    block = model.blocks[layer]
    has_norm = norm_before_heads(model.cfg, block) is not None  # then the MLP has one, too
    return block.apply_mlp(block.ln2(resid) if has_norm else resid)


def run_attention(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], layer: int, resid: Stream
) -> Stream:
    """Runs the attention module alone, with the norms before and behind it."""
    block = model.blocks[layer]
    before, behind = norm_before_heads(model.cfg, block), norm_behind_heads(model.cfg, block)
    read = resid if before is None else before(resid)
    written = block.attn(query_input=read, key_input=read, value_input=read)
    return written if behind is None else behind(written)


def run_layer(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], layer: int, resid: Stream
) -> Stream:
    """Runs this layer only."""
    return model(resid, start_at_layer=layer, stop_at_layer=layer + 1)


def run_from(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    layer: int,
    resid: Stream,
    hooks: Hooks,
) -> Stream:
    """Runs the layers from there on only."""
    return model.run_with_hooks(
        resid, fwd_hooks=hooks, start_at_layer=layer, stop_at_layer=model.cfg.n_layers
    )


def run_behind(model: HookedTransformer) -> RunBehind | None:
    """Goes on from a cache of keys and values, as generation does.

    Not with positions that are added to attention scores or handed to each block, nor with scales
    that depend on them, since these need to be told where a run begins; nor on several devices.
    """
    cfg = model.cfg
    by_position = cfg.use_logn_attn or cfg.use_dynamic_ntk_rope or cfg.n_devices > 1
    knows = cfg.positional_embedding_type in ("standard", "rotary") and not by_position
    return partial(_run_behind, model) if knows else None


def _run_behind(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    at: Int[Tensor, "batch window"],
    key: PastHeads,
    value: PastHeads,
    hooks: Hooks,
) -> tuple[Float[Tensor, "batch window d_model"], list[Tensor]]:
    entries = [TransformerLensKeyValueCacheEntry(*past) for past in zip(key, value, strict=True)]
    n_before = key.shape[2]
    before = at[:, :1] - n_before + torch.arange(n_before, device=at.device)
    is_there = torch.cat([before, at], dim=1) >= 0
    # A run that begins with a residual stream counts positions by the cache, or by a mask in which
    # what is not there stands to the left, and makes no mask of its tokens.
    rows = torch.arange(len(at), device=at.device)[:, None]
    final = model.run_with_hooks(
        model(tokens, stop_at_layer=0)[rows, at],
        fwd_hooks=hooks,
        start_at_layer=0,
        stop_at_layer=model.cfg.n_layers,
        past_kv_cache=TransformerLensKeyValueCache(entries, tokens[:, :0]),
        attention_mask=None if is_there.all() else is_there.long(),
    )
    return final, [entry.past_keys for entry in entries]


@contextlib.contextmanager
def own_keys_and_values(model: HookedTransformer) -> Iterator[None]:
    """Has TransformerLens repeat shared keys and values, which it does by a flag.

    Raises:
        ValueError: keys are normed over all heads at once, where copies would count twice.
    """
    if shares_keys(model.cfg) and norms_heads_together(model.cfg, model.blocks[0].attn):
        raise ValueError(
            f"{model.cfg.model_name} shares keys between heads and norms them together, which a "
            "HookedTransformer cannot take apart"
        )
    before = model.cfg.ungroup_grouped_query_attention
    try:
        model.set_ungroup_grouped_query_attention(before or shares_keys(model.cfg))
        yield
    finally:
        model.set_ungroup_grouped_query_attention(before)


@contextlib.contextmanager
def weights_as_read(model: HookedTransformer) -> Iterator[None]:
    """Transposes in memory what TransformerLens transposes whenever it is read.

    Queries, keys and values are read with heads and their numbers as rows, and what heads write,
    gated MLPs and the unembedding with outputs as rows. In a run of few tokens the copies take
    about as long as the products.
    """
    orders: dict[str, tuple[int, ...]] = {name: (0, 2, 1) for name in _PROJECTIONS}
    orders |= {"W_O": (2, 0, 1), "W_U": (1, 0)} | dict.fromkeys(MLP_WEIGHTS, (1, 0))
    laid = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            order = orders.get(name, ())
            if parameter.is_contiguous() and parameter.ndim == len(order):
                as_read = parameter.data.permute(order).contiguous()
                parameter.data = as_read.permute(tuple(torch.tensor(order).argsort().tolist()))
                laid.append(parameter)
    try:
        yield
    finally:
        for parameter in laid:
            parameter.data = parameter.data.contiguous()


_PROJECTIONS = [name for name in ATTENTION_WEIGHTS if name != "W_O"]
_FUSED = (LayerNorm, LayerNormPre, RMSNorm, RMSNormPre)


@contextlib.contextmanager
def fused_norms(model: HookedTransformer) -> Iterator[None]:
    """Replaces the norms' forwards, which take a pass over memory for each of seven operations."""
    norms: list[Any] = [norm_before_heads(model.cfg, block) for block in model.blocks]
    fused = [
        norm
        for norm in norms
        if type(norm) in _FUSED
        and not (norm.hook_scale.has_hooks() or norm.hook_normalized.has_hooks())
    ]
    for norm in fused:
        norm.forward = partial(_normed, norm)
    try:
        yield
    finally:
        for norm in fused:
            del norm.forward


def _normed(norm: Any, stream: Tensor) -> Tensor:
    """A norm of TransformerLens at once, heads first where there are several inputs.

    So they lie where they are made and where they are multiplied by W_Q, W_K or W_V, and nothing is
    copied.
    """
    by_head = stream.movedim(2, 0) if stream.ndim == 4 else stream
    dtype = norm.cfg.dtype
    wide = by_head.to(torch.promote_types(dtype, torch.float32))
    gain, bias = getattr(norm, "w", None), getattr(norm, "b", None)
    if wide.dtype != dtype:  # The norm is rounded before it is multiplied.
        gain = bias = None
    if type(norm) in (LayerNorm, LayerNormPre):
        normed = F.layer_norm(wide, wide.shape[-1:], gain, bias, eps=norm.eps)
    else:
        normed = F.rms_norm(wide, wide.shape[-1:], gain, eps=norm.eps)
    if wide.dtype != dtype:
        normed = normed.to(dtype)
        normed = normed * norm.w if hasattr(norm, "w") else normed
        normed = normed + norm.b if hasattr(norm, "b") else normed
    return normed.movedim(0, 2) if stream.ndim == 4 else normed


def without_cache(model: HookedTransformer) -> contextlib.AbstractContextManager[None]:
    """Changes nothing: a HookedTransformer is handed its cache by the caller."""
    return contextlib.nullcontext()


def forget_activations(model: HookedTransformer) -> None:
    """Changes nothing: a HookedTransformer keeps no activations."""


def own_hooks(model: HookedTransformer) -> None:
    """Changes nothing: the hooks of a HookedTransformer are its own."""


def named_weights(model: HookedTransformer) -> dict[str, Tensor]:
    """Returns the model's parameters."""
    return dict(model.named_parameters())


def spare_parameters(model: HookedTransformer) -> set[nn.Parameter]:
    """Returns none."""
    return set()


def parts_of_weights(model: HookedTransformer) -> dict[nn.Parameter, Literal["attention", "mlp"]]:
    """Goes by the parameters' names, which are TransformerLens' own."""
    parts: dict[str, Literal["attention", "mlp"]] = {
        name: "attention" for name in ATTENTION_WEIGHTS
    }
    parts |= {name: "mlp" for name in MLP_WEIGHTS}
    weights = [(name.rpartition(".")[2], held) for name, held in model.blocks.named_parameters()]
    return {weight: parts[name] for name, weight in weights if name in parts}


def saved_parameters(
    model: HookedTransformer, config: PretrainedConfig
) -> tuple[dict[str, nn.Parameter], Rearrangement]:
    """Watches TransformerLens convert a Hugging Face model."""
    parameters, cfg = dict(model.named_parameters()), cast(Any, model.cfg)

    def convert(hf_model: PreTrainedModel) -> dict[str, Tensor]:
        return converted(hf_model, cfg, torch.float64)

    return parameters, learn_rearrangement(config, parameters, convert, tied=False)


def why_not_gated(attn: Any) -> str | None:
    """Returns None: HookedTransformer computes all its scores itself."""
    return None


def list_hook_points(model: HookedTransformer) -> None:
    """Lists all hook points anew."""
    model.setup()


def drop_hook_point(attn: Any, name: str) -> None:
    """Takes the hook point off."""
    delattr(attn, name)
