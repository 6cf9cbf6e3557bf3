"""Counting the attention edges that a model leaves open: how many, in which head, of how many.

Any hook point with a `recorder` reports what it decides: the gate (circuits.gate.gate), or the mask
of the highest scores (circuits.gate.top_k).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from circuits.models.backend import attention_layers


class OpenEdges:
    """Counts of attention edges, summed over the forward passes run under `record_open_edges`.

    Counted is what the gate itself decides, before any hook on `hook_gate`.
    """

    def __init__(self, n_layers: int) -> None:
        self._expected: list[Tensor | None] = [None] * n_layers
        self._counts: list[Tensor | None] = [None] * n_layers

    def add(self, layer: int, expected: Tensor, counts: Tensor) -> None:
        """Adds one forward pass of one layer; `counts` are [open and allowed, head]."""
        for sums, new in ((self._expected, expected), (self._counts, counts)):
            old = sums[layer]
            sums[layer] = new if old is None else old + new

    @property
    def expected(self) -> Float[Tensor, "layer head"]:
        """Sum of sigmoid(g) over allowed edges: the expected number of open edges, with gradient.

        In evaluation mode too it is the expectation of the sampled gate.
        """
        return self._stacked(self._expected)

    @property
    def open(self) -> Int[Tensor, "layer head"]:
        """Number of edges that were open."""
        return self._stacked(self._counts)[:, 0]

    @property
    def allowed(self) -> Int[Tensor, "layer head"]:
        """Number of edges that are not masked."""
        return self._stacked(self._counts)[:, 1]

    def of_layer(self, layer: int) -> tuple[Float[Tensor, " head"], Int[Tensor, "2 head"]]:
        """Returns what one layer has recorded: the expected number, then counts as in `add`.

        Raises:
            ValueError: the layer did not run.
        """
        expected, counts = self._expected[layer], self._counts[layer]
        if expected is None or counts is None:
            raise ValueError(f"layer {layer} did not run while recording")
        return expected, counts

    def _stacked(self, counts: list[Tensor | None]) -> Tensor:
        seen = [count for count in counts if count is not None]
        if len(seen) < len(counts):
            raise ValueError(f"only {len(seen)} of {len(counts)} layers ran while recording")
        return torch.stack(seen)


@contextmanager
def record_open_edges(model: nn.Module) -> Iterator[OpenEdges]:
    """Counts the open edges of every forward pass inside the context; they may not be nested."""
    points: list[Any] = [module for module in model.modules() if hasattr(module, "recorder")]
    if not points:
        raise ValueError("the model has no attention gate; put one on with add_gate(model)")
    if any(point.recorder is not None for point in points):
        raise ValueError("open edges of this model are being recorded already")
    recorder = OpenEdges(len(points))
    try:
        for point in points:
            point.recorder = recorder
        yield recorder
    finally:
        for point in points:
            point.recorder = None


@dataclass(frozen=True)
class Density:
    """Open edges as fractions of the allowed (causal, unpadded) ones.

    Attributes:
        per_head: fraction for each layer and head.
        context: tokens per sequence at which it was measured; density depends on it.
        allowed: number of allowed edges for each layer and head, the weights of the means below;
            without it every head weighs the same.
    """

    per_head: Float[Tensor, "layer head"]
    context: int
    allowed: Int[Tensor, "layer head"] | None = None

    @property
    def per_layer(self) -> Float[Tensor, " layer"]:
        """Open edges of a layer over its allowed edges."""
        weights = self._weights()
        return (self.per_head * weights).sum(dim=1) / weights.sum(dim=1)

    @property
    def overall(self) -> float:
        """Open edges of the model over all allowed edges."""
        weights = self._weights()
        return ((self.per_head * weights).sum() / weights.sum()).item()

    def _weights(self) -> Tensor:
        return torch.ones_like(self.per_head) if self.allowed is None else self.allowed


def dense_density(model: nn.Module, context: int) -> Density:
    """Returns the density of a model without a gate: every edge is open."""
    cfg = cast(Any, model).cfg
    return Density(torch.ones(cfg.n_layers, cfg.n_heads), context)


def measure_density(
    model: nn.Module,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    *,
    batch_size: int = 32,
) -> Density:
    """Returns the density of the deterministic gate on these tokens; no gradient, mode restored.

    Args:
        model: a gated model.
        tokens: sequences of one length, which becomes `Density.context`.
        attention_mask: 1 for tokens, 0 for padding; pairs with padding are not counted.
        batch_size: sequences per forward pass; the result does not depend on it.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), record_open_edges(model) as edges:
            for start in range(0, tokens.shape[0], batch_size):
                rows = slice(start, start + batch_size)
                if attention_mask is None:
                    model(tokens[rows], return_type=None)
                    continue
                mask = attention_mask[rows]
                with _padding_queries_masked(model, mask):
                    model(tokens[rows], return_type=None, attention_mask=mask)
    finally:
        model.train(was_training)
    return density_of(edges, context=tokens.shape[1])


@contextmanager
def _padding_queries_masked(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Masks what padding attends to as well: TransformerLens masks only what attends to padding.

    Right padding sees the text before it; it would be counted, though nothing reads its output.
    """
    padding = (mask == 0)[:, None, :, None]

    def mask_queries(scores: Tensor, hook: HookPoint) -> Tensor:
        del hook
        lowest = torch.finfo(scores.dtype).min  # not -inf: a row must not become NaN
        return scores.masked_fill(padding.to(scores.device), lowest)

    names = [attn.hook_attn_scores.name for attn in attention_layers(model)]
    with cast(Any, model).hooks(fwd_hooks=[(name, mask_queries) for name in names]):
        yield


def density_of(edges: OpenEdges, *, context: int) -> Density:
    """Returns the recorded open edges as fractions of the allowed ones."""
    allowed = edges.allowed.cpu()
    return Density(edges.open.cpu() / allowed.clamp(min=1), context, allowed)
