"""Putting fused attention in the place of the steps between q, k and z of a gated model.

TransformerLens computes scores, masks them, runs `hook_attn_scores`, the softmax and
`hook_pattern`, and multiplies by v. Where nobody looks at what lies between, all that can be one
call. Inside `fused_attention`, the keys of a layer are a tensor that does not multiply: asked for
their product with queries, they keep both, and give a placeholder of one element, on which the
model's own code then works (a division by sqrt(d_head), say, leaves the scale in it). The pattern
that comes out at the other end is such a tensor again, and makes z when it is multiplied by v. So
projections, norms of q and k, rotations and shared keys stay the model's own, for a
HookedTransformer and a TransformerBridge alike.

A hook on `hook_attn_scores`, `hook_gate` or `hook_pattern`, a mask other than the causal one, or a
cache of earlier keys lets that layer run by the hook points, as outside the context.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import (
    JointQKVAttentionBridge,
    JointQKVPositionEmbeddingsAttentionBridge,
    PositionEmbeddingsAttentionBridge,
)

from circuits.choices import ATTENTION_PATHS, AttentionPath, check_choice
from circuits.gate.fused.blockwise import BlockwiseAttention
from circuits.gate.fused.triton_attention import TritonAttention, triton_refuses
from circuits.gate.gate import Gate, gates
from circuits.gate.hook_points import attention_layers

_BRIDGES = {
    JointQKVAttentionBridge,
    JointQKVPositionEmbeddingsAttentionBridge,
    PositionEmbeddingsAttentionBridge,
}
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__}
_SAME_NUMBERS = {
    torch.transpose,
    torch.reshape,
    torch.repeat_interleave,
    Tensor.transpose,
    Tensor.permute,
    Tensor.reshape,
    Tensor.view,
    Tensor.expand,
    Tensor.repeat_interleave,
    Tensor.__getitem__,
    Tensor.contiguous,
    Tensor.to,
    Tensor.float,
}
_log = logging.getLogger("circuits")


def choose_path(
    model: nn.Module,
    path: AttentionPath | str,
    context: int,
    *,
    device: torch.device | None = None,
    autocast: bool = False,
) -> str:
    """Returns how this model's gated attention is computed: `hooks`, `blockwise` or `triton`.

    Where `auto` has to make do with a slower way than the fastest, a log line says why.

    Args:
        model: the model, with or without its gate.
        path: what is asked for.
        context: tokens per sequence.
        device: where the model will run; by default where it is.
        autocast: whether it will also run in bfloat16.

    Raises:
        ValueError: an unknown path, or one that was asked for by name and does not work here.
    """
    check_choice("attention", path, ATTENTION_PATHS)
    if path == "hooks":
        return path
    found: Any = model
    layers = attention_layers(model)
    refusals = [reason for attn in layers if (reason := _layer_refuses(attn))]
    if refusals and path != "auto":
        raise ValueError(f"attention {path!r} does not work for this model: {refusals[0]}")
    if len(refusals) == len(layers):
        _log.warning("attention runs by the hook points: %s", refusals[0])
        return "hooks"
    if path == "blockwise":
        return path
    dtypes = {found.W_E.dtype} | ({torch.bfloat16} if autocast else set())
    shape, where = (context, found.cfg.d_head), device or found.W_E.device
    refusals = [no for dtype in dtypes if (no := triton_refuses(where, shape, dtype))]
    if not refusals:
        return "triton"
    if path == "triton":
        raise ValueError(f"attention 'triton' does not work here: {refusals[0]}")
    if where.type == "cuda":
        _log.warning("attention runs in blocks of plain torch, not by Triton: %s", refusals[0])
    return "blockwise"


@contextmanager
def fused_attention(model: nn.Module, path: str) -> Iterator[None]:
    """Computes the attention of a gated model as `choose_path` said, inside the context.

    A backward pass that computes activations again (circuits/sparsify/recompute.py) must be inside
    too. The model returns to what it was, also after an exception.

    Raises:
        ValueError: the model has no gate to fuse.
    """
    with ExitStack() as back:
        if path != "hooks":
            gates(model)
            kind = TritonAttention if path == "triton" else BlockwiseAttention
            masks = _CausalMasks()
            for attn in attention_layers(model):
                if _layer_refuses(attn) is None:
                    _FusedLayer(attn, kind, masks).place(back)
        yield


def _layer_refuses(attn: Any) -> str | None:
    """Why a layer's attention is more than a masked softmax of scale q.k; None if it is not."""
    if hasattr(attn, "original_component"):
        kind, held = type(attn), attn.original_component
        if kind not in _BRIDGES:
            return f"{kind.__name__} computes its scores in a way of its own"
        if getattr(held, "attn_logit_softcapping", None) is not None:
            return "its scores are capped"
        return "it has attention sinks" if getattr(held, "sinks", None) is not None else None
    cfg = attn.cfg
    if cfg.positional_embedding_type in ("alibi", "relative_positional_bias"):
        return f"positions are added to its scores ({cfg.positional_embedding_type})"
    if cfg.attention_dir != "causal":
        return "it is not causal"
    if cfg.attn_scores_soft_cap > 0:
        return "its scores are capped"
    return "it has attention sinks" if cfg.use_attention_sinks else None


class _CausalMasks:
    """Tells whether a mask allows just what is not in the future; a model's layers share one."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._causal = False

    def are(self, mask: Tensor) -> bool:
        """Whether this mask of [..., query_pos, key_pos], added to the scores, is causal alone."""
        if mask is not self._last:
            self._last = mask
            allowed = mask if mask.dtype == torch.bool else mask == 0
            full = allowed.shape[-1] == allowed.shape[-2]
            self._causal = full and bool((allowed == torch.ones_like(allowed).tril()).all())
        return self._causal


class _FusedLayer:
    """One layer's attention, from the product of queries and keys to z."""

    def __init__(self, attn: Any, kind: type[Any], masks: _CausalMasks) -> None:
        self._attn, self._kind, self._masks = attn, kind, masks
        self._held: tuple[Tensor, Tensor] | None = None

    def place(self, back: ExitStack) -> None:
        """Puts itself into the layer; `back` takes it out again."""
        replaced: dict[str, Callable[..., Any]] = (
            {"_update_kv_cache": self._bridge_keys, "_apply_reconstruct_attention_mask": self._mask}
            if hasattr(self._attn, "original_component")
            else {
                "calculate_attention_scores": self._hooked_scores,
                "apply_causal_mask": self._hooked_mask,
            }
        )
        for name, method in replaced.items():
            # Not by setattr: a TransformerBridge's modules pass that on to the one they wrap.
            self._attn.__dict__[name] = method
            back.callback(self._attn.__dict__.pop, name)
        self._attn.hook_pattern.fused = self
        back.callback(setattr, self._attn.hook_pattern, "fused", None)

    def scores(self, q: Tensor, transposed_k: Tensor) -> Tensor:
        """Keeps q and k, and returns the placeholder for their product."""
        self._held = None
        if q.shape != transposed_k.mT.shape:  # Keys of a cache, which the queries are fewer than.
            return q @ transposed_k
        self._held = (q, transposed_k.mT)
        return torch.ones(1, 1, 1, 1, dtype=torch.float64)

    def pattern(self, placeholder: Tensor, pattern: Tensor, gate: Gate) -> Tensor | None:
        """Returns what makes z when multiplied by v; None if the scores were computed after all."""
        if self._held is None:
            return None
        held, self._held = self._held, None
        scale = placeholder.item()

        def attend(_: Tensor, v: Tensor) -> Tensor:
            return self._attend(*held, v, scale, gate)

        return _Multiplier.of(pattern, attend)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, gate: Gate
    ) -> Float[Tensor, "batch head query_pos d_head"]:
        batch, n_heads, n_pos, _ = q.shape
        dtype = v.dtype
        if torch.is_autocast_enabled(q.device.type):
            dtype = torch.get_autocast_dtype(q.device.type)
        pairs = [one.to(dtype).flatten(0, 1) for one in (q, k, v)]
        z, expected, n_open = self._kind.apply(
            *pairs, scale, gate.bias, gate.training, gate.gradient == "frozen"
        )
        if gate.recorder is not None:
            n_open = n_open.view(batch, n_heads).long().sum(dim=0)
            allowed = torch.full_like(n_open, batch * n_pos * (n_pos + 1) // 2)
            expected = expected.view(batch, n_heads).sum(dim=0)
            gate.recorder.add(gate.layer(), expected, torch.stack((n_open, allowed)))
        return z.unflatten(0, (batch, n_heads))

    def _is_active(self) -> bool:
        """Whether no hook looks at what is not computed, and this is no copy made meanwhile."""
        points = (self._attn.hook_attn_scores, self._attn.hook_gate, self._attn.hook_pattern)
        if any(point.fwd_hooks or point.bwd_hooks for point in points):
            return False
        return self._attn.hook_pattern.fused is self

    def _keys(self, k: Tensor) -> Tensor:
        self._held = None
        return _Multiplier.of(k, self.scores) if self._is_active() else k

    def _materialised(self, placeholder: Tensor) -> Tensor:
        """The scores that a placeholder stands for; what is no placeholder stays."""
        if self._held is None:
            return placeholder
        (q, k), self._held = self._held, None
        return (q @ k.mT) * placeholder.item()

    def _bridge_keys(self, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        k, v = type(self._attn)._update_kv_cache(self._attn, k, v, **options)
        return self._keys(k), v

    def _mask(self, attn_scores: Tensor, attention_mask: Tensor | None, **sizes: Any) -> Tensor:
        causal = self._attn.is_causal and not self._attn.is_cross_attention
        if attention_mask is not None:
            causal = attention_mask.ndim == 4 and self._masks.are(attention_mask)
        if self._held is not None and causal:
            return attn_scores
        return type(self._attn)._apply_reconstruct_attention_mask(
            self._attn, self._materialised(attn_scores), attention_mask, **sizes
        )

    def _hooked_scores(self, q: Tensor, k: Tensor) -> Tensor:
        return type(self._attn).calculate_attention_scores(self._attn, q, self._keys(k))

    def _hooked_mask(
        self, scores: Tensor, past_kv_pos_offset: int = 0, attention_mask: Tensor | None = None
    ) -> Tensor:
        causal = attention_mask is None and self._attn.attn_type != "local"
        if self._held is not None and causal:
            return scores
        return type(self._attn).apply_causal_mask(
            self._attn, self._materialised(scores), past_kv_pos_offset, attention_mask
        )


class _Multiplier(Tensor):
    """A tensor whose matrix products a function takes the place of; else as any other.

    What has only another shape or dtype is one too. All else that is made of it is an ordinary
    tensor, so code that multiplies in a way not foreseen here gets ordinary scores.
    """

    product: Callable[[Tensor, Tensor], Tensor]

    @classmethod
    def of(cls, tensor: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> _Multiplier:
        """Returns the tensor as one of this kind; `product` is called with both factors."""
        made = tensor.as_subclass(cls)
        made.product = product
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs a function of torch on tensors of this kind."""
        own = next((one for one in args if isinstance(one, cls)), None)
        if own is not None and func in _PRODUCTS:
            return own.product(*(one.as_subclass(Tensor) for one in args))
        made = super().__torch_function__(func, types, args, kwargs or {})
        if not isinstance(made, cls):
            return made
        if own is None or func not in _SAME_NUMBERS:
            return made.as_subclass(Tensor)
        made.product = own.product
        return made
