"""Putting fused attention in the place of a gated model's attention layers.

Inside `fused_attention` a layer has another `forward` (circuits/gate/fused/forwards.py), which goes
from queries, keys and values to z in one call and runs no hook point in between. If one of the
layer's hook points has a hook, or the call has a mask other than the causal one or a cache of
earlier keys, the layer's own `forward` runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from circuits.choices import ATTENTION_PATHS, AttentionPath, check_choice
from circuits.gate.fused.blockwise import BlockwiseAttention
from circuits.gate.fused.forwards import (
    FORWARDS,
    IN_TRANSFORMERS,
    Heads,
    KeyHeads,
    config_of,
    kind_of,
    layer_refuses,
)
from circuits.gate.fused.triton_attention import TritonAttention, triton_refuses
from circuits.gate.gate import gates
from circuits.gate.hook_points import attention_layers

# What a layer may be given besides its input and a mask: further terms of its scores, and caches.
_MORE_THAN_CAUSAL = (
    *("additive_attention_mask", "position_bias"),
    *("past_kv_cache_entry", "past_key_values", "layer_past"),
)
# Options of TransformerLens that give a layer more hook points.
_MORE_HOOK_POINTS = ("use_attn_result", "use_attn_in", "use_split_qkv_input")
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
    refusals = [reason for attn in layers if (reason := layer_refuses(model, attn))]
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
            for attn in attention_layers(model):
                if layer_refuses(model, attn) is None:
                    _FusedLayer(attn, kind).place(back)
        yield


class _FusedLayer:
    """The `forward` of one attention layer inside the context."""

    def __init__(self, attn: Any, kind: type[Any]) -> None:
        self._attn, self._kind = attn, kind
        self._points = [module for module in attn.modules() if isinstance(module, HookPoint)]

    def place(self, back: ExitStack) -> None:
        """Puts itself into the layer; `back` takes it out again."""
        # Not by setattr: a TransformerBridge's modules pass that on to the one they wrap.
        self._attn.__dict__["forward"] = self
        back.callback(self._attn.__dict__.pop, "forward")
        if hasattr(self._attn, "original_component"):
            config = self._attn.original_component.config
            for name, value in (("_attn_implementation", IN_TRANSFORMERS), ("use_cache", False)):
                back.callback(setattr, config, name, getattr(config, name, None))
                setattr(config, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the layer returns."""
        attn, kind = self._attn, kind_of(self._attn)
        if self._needs_hook_points(kwargs):
            return kind.forward(attn, *args, **kwargs)
        return FORWARDS[kind.__name__](attn, self._attend, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the layer made inside the context, or a pickle, has its class's `forward`."""
        return getattr, (self._attn, "forward")

    def _needs_hook_points(self, arguments: dict[str, Any]) -> bool:
        """Whether someone looks inside the layer, or its attention is more than causal."""
        cfg, mask = config_of(self._attn), arguments.get("attention_mask")
        return (
            any(point.fwd_hooks or point.bwd_hooks for point in self._points)
            or any(getattr(cfg, option, False) for option in _MORE_HOOK_POINTS)
            or any(arguments.get(name) is not None for name in _MORE_THAN_CAUSAL)
            or not (mask is None or _is_causal(mask))
            or getattr(self._attn, "attn_type", "global") == "local"  # a sliding window
        )

    def _attend(self, q: Heads, k: KeyHeads, v: KeyHeads, scale: float) -> Heads:
        """Returns z, and records the open edges as the gate does."""
        gate, (batch, n_heads, n_pos, _) = self._attn.hook_gate, q.shape
        if k.shape[1] < n_heads:
            k, v = (x.repeat_interleave(n_heads // k.shape[1], dim=1) for x in (k, v))
        dtype = v.dtype
        if torch.is_autocast_enabled(q.device.type):
            dtype = torch.get_autocast_dtype(q.device.type)
        pairs = [x.to(dtype).flatten(0, 1) for x in (q, k, v)]
        z, expected, n_open = self._kind.apply(
            *pairs, scale, gate.bias, gate.training, gate.gradient == "frozen"
        )
        if gate.recorder is not None:
            n_open = n_open.view(batch, n_heads).long().sum(dim=0)
            allowed = torch.full_like(n_open, batch * n_pos * (n_pos + 1) // 2)
            expected = expected.view(batch, n_heads).sum(dim=0)
            gate.recorder.add(gate.layer(), expected, torch.stack((n_open, allowed)))
        return z.unflatten(0, (batch, n_heads))


def _is_causal(mask: Tensor) -> bool:
    """Whether a mask says no more than the causal one, which some models write out (Falcon)."""
    allowed = mask if mask.dtype == torch.bool else mask == 0
    full = mask.ndim == 4 and mask.shape[-2] == mask.shape[-1]
    return full and torch.equal(allowed, torch.ones_like(allowed).tril())
