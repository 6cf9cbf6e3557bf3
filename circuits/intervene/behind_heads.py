"""Norms that stand between a layer's heads and the residual stream, as in Gemma 2 and OLMo 2.

Such a model adds N(o_1 + ... + o_H + b_O) to the stream, o_h what head h makes and N a norm. What a
head adds is its share w o_h / s of that, and the scale s is one for all heads of the layer. Here
the norm belongs to whoever reads: a head's edge hands on o_h, and the destination v reads

    N(sum over heads of (o_h, or what ablation gives for o_h) + b_O)

so that v's own scale is of what v reads. Then the shares at v add up to what it reads in every run,
all edges give the clean run and none the ablated one, an ablated head reaches nothing through the
scale of others, and ablating all edges of a head is ablating its z. To first order an edge carries
J_N (o_h - ablated o_h), and the sum over a head's edges is its change of z times dm/dz.

EAP-IG's evaluation (Hanna et al. 2024, which the MIB benchmark uses) runs circuits of Gemma 2 by
the same rule. MLPs need none: each has a norm for itself, and writes what comes out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.graph import Graph
from circuits.models.anatomy import norm_behind_heads, norm_gain, subtracts_mean
from circuits.models.backend import Model

Stream = Float[Tensor, "... d_model"]
ZOfLayer = Callable[[int], Float[Tensor, "batch pos head d_head"]]
"""What the heads of a layer attend to, by the number of the layer."""
TotalOfLayer = Callable[[int], Float[Tensor, "batch pos d_model"]]
"""What the heads of a layer make together, by the number of the layer."""


@dataclass(frozen=True)
class Norm:
    """The norm behind a layer's heads, with n the centred input over its scale s.

    Attributes:
        gain: What n is multiplied by, if anything.
        bias: What is added then, if anything.
        eps: What the mean square is raised by.
        centred: Whether the mean is subtracted first.
    """

    gain: Float[Tensor, " d_model"] | None
    bias: Float[Tensor, " d_model"] | None
    eps: float
    centred: bool

    def __call__(self, total: Stream) -> Stream:
        """Returns what the norm makes of its input."""
        normed = self._gained(self._normed(total)[0])
        return (normed if self.bias is None else normed + self.bias).to(total.dtype)

    def forwards(self, total: Stream, change: Stream, *, constant_scale: bool = False) -> Stream:
        """Returns the Jacobian at `total` times a change of the input.

        With `constant_scale`, the scale counts as a constant.
        """
        normed, scale = self._normed(total)
        change = self._centre(change)
        if not constant_scale:
            change = change - normed * (normed * change).mean(dim=-1, keepdim=True)
        return self._gained(change / scale).to(total.dtype)

    def backwards(self, total: Stream, slope: Stream) -> Stream:
        """Returns the gradient at the input `total` for a gradient at the output."""
        normed, scale = self._normed(total)
        slope = self._gained(slope)
        along = (normed * slope).mean(dim=-1, keepdim=True)
        return self._centre((slope - normed * along) / scale).to(total.dtype)

    def backwards_at_scale(self, total: Stream, slope: Stream) -> Stream:
        """Returns the same where the scale counts as a constant."""
        return self._centre(self._gained(slope) / self._normed(total)[1]).to(total.dtype)

    def _normed(self, total: Stream) -> tuple[Stream, Float[Tensor, "... 1"]]:
        # In float32 at least, as the models do.
        total = self._centre(total.to(torch.promote_types(total.dtype, torch.float32)))
        scale = (total.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()
        return total / scale, scale

    def _centre(self, stream: Stream) -> Stream:
        return stream - stream.mean(dim=-1, keepdim=True) if self.centred else stream

    def _gained(self, normed: Stream) -> Stream:
        return normed if self.gain is None else normed * self.gain


def norm_of(model: Model, layer: int) -> Norm | None:
    """Returns the norm behind a layer's heads; None where what they write is added as it is."""
    cfg = model.cfg
    module = norm_behind_heads(cfg, model.blocks[layer])
    if module is None:
        return None
    centred = subtracts_mean(cfg)
    bias = getattr(module, "b", None) if centred else None
    return Norm(norm_gain(cfg, module), bias, cfg.eps, centred)


def heads_total(
    model: Model, layer: int, z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch pos d_model"]:
    """Returns what a layer's heads make together, with b_O: the input of the norm behind them."""
    attn = model.blocks[layer].attn
    total = torch.einsum("bphe,hed->bpd", z, attn.W_O)
    return total if attn.b_O is None else total + attn.b_O


def ablated_totals(model: Model, z: Float[Tensor, "layer batch pos head d_head"]) -> TotalOfLayer:
    """Returns `heads_total` of ablated heads by the layer, computed where it is first asked for."""
    return cache(lambda layer: heads_total(model, layer, z[layer]))


def attention_out(
    model: Model, layer: int, z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch pos d_model"]:
    """Returns what a layer's heads add to the residual stream together, with b_O."""
    norm, total = norm_of(model, layer), heads_total(model, layer, z)
    return total if norm is None else norm(total)


def read_inputs(
    model: Model,
    graph: Graph,
    weight: Float[Tensor, "some dest"],
    change: Float[Tensor, "some batch pos d_model"],
    base: Float[Tensor, "batch pos d_model"],
    without: TotalOfLayer,
) -> Float[Tensor, "dest batch pos d_model"]:
    """Returns what destinations read that have `weight` of each upstream source's change.

    Args:
        model: The model.
        graph: Its graph.
        weight: 1 where a destination reads what the source writes now, 0 for what it writes
            ablated; a row for each upstream source.
        change: What each of them writes now minus what it writes ablated; heads before the norm.
        base: What is read when all are ablated.
        without: What ablated heads make together, from `ablated_totals`.
    """
    norms = _upstream(model, graph, len(change))
    if not norms:
        return (weight.T @ change.flatten(1)).view(-1, *base.shape).add_(base)
    rows = _beside(norms, len(change))
    found = (weight[rows].T @ change[rows].flatten(1)).view(-1, *base.shape).add_(base)
    for layer, (heads, norm) in norms.items():
        kept = (weight[heads].T @ change[heads].flatten(1)).view(-1, *base.shape)
        found += norm(without(layer) + kept) - norm(without(layer))
    return found


def slopes_at_sources(
    model: Model,
    graph: Graph,
    weight: Float[Tensor, "some dest"],
    change: Float[Tensor, "some batch pos d_model"],
    without: TotalOfLayer,
    slope: Float[Tensor, "dest batch pos d_model"],
) -> Float[Tensor, "some dest"]:
    """Returns the derivative of a metric by each `weight`, given its slope at what is read.

    The arguments are those of `read_inputs`.
    """
    scores = change.flatten(1) @ slope.flatten(1).T
    for layer, (heads, norm) in _upstream(model, graph, len(change)).items():
        kept = (weight[heads].T @ change[heads].flatten(1)).view(slope.shape)
        behind = norm.backwards(without(layer) + kept, slope)
        scores[heads] = change[heads].flatten(1) @ behind.flatten(1).T
    return scores


def linear_changes(
    model: Model,
    graph: Graph,
    change: Float[Tensor, "src batch pos d_model"],
    z: ZOfLayer,
    *,
    constant_scale: bool = False,
) -> Float[Tensor, "src batch pos d_model"]:
    """Returns what each source's change does to the residual stream, to first order, where z is.

    With `constant_scale` the scales of the norms are those of the run, whatever changes.
    """
    return _behind(
        model,
        graph,
        change,
        z,
        lambda norm, total, part: norm.forwards(total, part, constant_scale=constant_scale),
    )


def lone_changes(
    model: Model, graph: Graph, change: Float[Tensor, "src batch pos d_model"], z: ZOfLayer
) -> Float[Tensor, "src batch pos d_model"]:
    """Returns how the residual stream differs from itself without each source, the others as z is.

    Without approximation: N of all heads minus N of all but one.
    """
    return _behind(
        model, graph, change, z, lambda norm, total, part: norm(total) - norm(total - part)
    )


def _behind(
    model: Model,
    graph: Graph,
    change: Float[Tensor, "src batch pos d_model"],
    z: ZOfLayer,
    through: Callable[[Norm, Tensor, Tensor], Tensor],
) -> Float[Tensor, "src batch pos d_model"]:
    """The changes of heads taken through the norms behind them; the same tensor without norms."""
    norms = _upstream(model, graph, graph.n_sources)
    if not norms:
        return change
    found = change.clone()
    for layer, (heads, norm) in norms.items():
        found[heads] = through(norm, heads_total(model, layer, z(layer)), change[heads])
    return found


def _upstream(model: Model, graph: Graph, n_upstream: int) -> dict[int, tuple[slice, Norm]]:
    """The layers with a norm behind their heads among the first sources, with rows and norm."""
    found: dict[int, tuple[slice, Norm]] = {}
    if norm_of(model, 0) is None:  # all layers are alike
        return found
    for layer in range(graph.n_layers):
        norm, heads = norm_of(model, layer), graph.head_sources(layer)
        if norm is not None and heads.start < n_upstream:
            found[layer] = (heads, norm)
    return found


def _beside(norms: dict[int, tuple[slice, Norm]], n_upstream: int) -> list[int]:
    """The sources that add what they write as it is."""
    behind = {row for heads, _ in norms.values() for row in range(heads.start, heads.stop)}
    return [row for row in range(n_upstream) if row not in behind]
