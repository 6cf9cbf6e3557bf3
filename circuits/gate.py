"""The attention gate: each query-key pair of each head is open (1) or shut (0).

Sparse attention as in arXiv 2512.05865 (reference code: hrpan/splash_attention). With scores
s = q.k / sqrt(d_head), as `hook_attn_scores` gives them, and one number b for the whole model:

    A ~ Bernoulli(sigmoid(s + b))      training mode, straight-through gradient
    A = 1[s + b > 0]                   evaluation mode
    z_i = sum_j A_ij softmax(s)_ij v_j     not renormalised

The gate lives in hook points, so a gated model is an ordinary hooked model: `hook_attn_scores`
runs its hooks and remembers the result, `attn.hook_gate` turns it into A (read it, patch it), and
`hook_pattern` multiplies by A before its own hooks run. Since these are modules and not hooks,
`reset_hooks` leaves them in place, a deep copy has its own, and the model can be pickled. Masked
scores (-inf, or about the dtype's lowest number) are never open and never counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from circuits.gate_sampling import OpenGates

ModelT = TypeVar("ModelT", bound=nn.Module)

GateGradient = Literal["straight_through", "frozen"]
"""How A is differentiated: as the soft gate would be, or as a constant."""


class GatedScores(HookPoint):
    """`hook_attn_scores` of a gated model: runs its hooks, then remembers what they made of it."""

    def __init__(self) -> None:
        super().__init__()
        self._remembered: Tensor | None = None

    def __call__(self, scores: Tensor) -> Tensor:
        """Returns the hooked scores; hooks of a HookPoint run after its `forward`, so here."""
        hooked = super().__call__(scores)
        self._remembered = hooked
        return hooked

    def take(self) -> Tensor:
        """Returns the remembered scores and forgets them."""
        scores, self._remembered = self._remembered, None
        if scores is None:
            raise RuntimeError(f"{self.name} saw no scores before the pattern was gated")
        return scores

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state to copy or pickle, without activations of a broken-off run."""
        return self.__dict__ | {"_remembered": None}


class Gate(HookPoint):
    """`hook_gate`: attention scores in, A out, in {0, 1} and of the scores' dtype.

    Attributes:
        bias: b, added to the scores to give the gate logits.
        gradient: how A is differentiated.
    """

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = bias
        self.gradient: GateGradient = "straight_through"
        self._recorder: OpenEdges | None = None

    def forward(
        self, scores: Float[Tensor, "batch head query_pos key_pos"]
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """Returns which query-key pairs are open: sampled in training mode, else g > 0."""
        logits = scores + self.bias if self.bias else scores
        frozen = self.gradient == "frozen"
        if self.training or self._recorder or (logits.requires_grad and not frozen):
            gate, expected, counts = OpenGates.apply(logits, self.training, frozen)
        else:
            return (logits > 0).to(logits.dtype)
        if self._recorder is not None:
            self._recorder.add(self.layer(), expected, counts)
        return gate

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state to copy or pickle: a copy does not report to the recorder."""
        return self.__dict__ | {"_recorder": None}


class GatedPattern(HookPoint):
    """`hook_pattern` of a gated model: the pattern times A, on which its hooks then run."""

    def __init__(self, scores: GatedScores, gate: Gate) -> None:
        super().__init__()
        # In a tuple, so that the siblings are not registered as children a second time; a deep
        # copy or a pickle of the attention layer still keeps the three together.
        self._siblings = (scores, gate)

    def forward(self, pattern: Tensor) -> Tensor:
        """Returns the gated pattern, not renormalised."""
        scores, gate = self._siblings
        return pattern * gate(scores.take()).to(pattern.dtype)


def add_gate(model: ModelT, bias: float = 0.0) -> ModelT:
    """Puts a gate on every attention layer of the model, in place, and returns the model.

    Args:
        model: a HookedTransformer or TransformerBridge without gate and without hooks on
            `hook_attn_scores` and `hook_pattern`.
        bias: b of the gate logits; positive numbers open the gate.

    Raises:
        ValueError: the model is gated already, has hooks where the gate goes, or b is not finite.
    """
    if is_gated(model):
        raise ValueError("the model is gated already; call remove_gate(model) first")
    if not math.isfinite(bias):
        raise ValueError(f"gate bias is {bias}; it must be a finite number")
    _refuse_hooks(model, ("hook_attn_scores", "hook_pattern"))
    for attn in _attention_layers(model):
        scores, gate = GatedScores(), Gate(float(bias))
        pattern = GatedPattern(scores, gate)
        gate.training = attn.training
        attn.hook_attn_scores = _in_place_of(attn.hook_attn_scores, scores)
        attn.hook_pattern = _in_place_of(attn.hook_pattern, pattern)
        attn.hook_gate = gate
    _list_hook_points(model)
    return model


def remove_gate(model: ModelT) -> ModelT:
    """Takes the gate off the model, in place, and returns the model, which is then dense.

    Raises:
        ValueError: the model has no gate, or has hooks on the hook points that would go.
    """
    gates(model)
    _refuse_hooks(model, ("hook_attn_scores", "hook_pattern", "hook_gate"))
    for attn in _attention_layers(model):
        attn.hook_attn_scores = _in_place_of(attn.hook_attn_scores, HookPoint())
        attn.hook_pattern = _in_place_of(attn.hook_pattern, HookPoint())
        del attn.hook_gate
    _list_hook_points(model)
    return model


def is_gated(model: nn.Module) -> bool:
    """Returns whether the model's attention runs through a gate."""
    return any(isinstance(module, Gate) for module in model.modules())


def gates(model: nn.Module) -> list[Gate]:
    """Returns the model's gates, layer 0 first.

    Raises:
        ValueError: the model has no gate.
    """
    if not is_gated(model):
        raise ValueError("the model has no attention gate; put one on with add_gate(model)")
    return [attn.hook_gate for attn in _attention_layers(model)]


def gate_bias(model: nn.Module) -> float:
    """Returns b, the number added to the scores to give the gate logits."""
    return gates(model)[0].bias


@contextmanager
def gate_gradient(model: nn.Module, gradient: GateGradient | str) -> Iterator[None]:
    """Differentiates the gate as asked inside the context; outside it is as it was.

    `"straight_through"`: dA/dg as described in the module docstring. `"frozen"`: A is a constant.
    """
    if gradient not in ("straight_through", "frozen"):
        raise ValueError(f"gate gradient {gradient!r} is not 'straight_through' or 'frozen'")
    found = gates(model)
    before: list[GateGradient] = [gate.gradient for gate in found]
    try:
        for gate in found:
            gate.gradient = cast(GateGradient, gradient)
        yield
    finally:
        for gate, old in zip(found, before, strict=True):
            gate.gradient = old


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

    def _stacked(self, counts: list[Tensor | None]) -> Tensor:
        seen = [count for count in counts if count is not None]
        if len(seen) < len(counts):
            raise ValueError(f"only {len(seen)} of {len(counts)} layers ran while recording")
        return torch.stack(seen)


@contextmanager
def record_open_edges(model: nn.Module) -> Iterator[OpenEdges]:
    """Counts the open edges of every forward pass inside the context; they may not be nested."""
    found = gates(model)
    recorder = OpenEdges(len(found))
    if any(gate._recorder is not None for gate in found):
        raise ValueError("open edges of this model are being recorded already")
    try:
        for gate in found:
            gate._recorder = recorder
        yield recorder
    finally:
        for gate in found:
            gate._recorder = None


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

    names = [attn.hook_attn_scores.name for attn in _attention_layers(model)]
    with cast(Any, model).hooks(fwd_hooks=[(name, mask_queries) for name in names]):
        yield


def density_of(edges: OpenEdges, *, context: int) -> Density:
    """Returns the recorded open edges as fractions of the allowed ones."""
    allowed = edges.allowed.cpu()
    return Density(edges.open.cpu() / allowed.clamp(min=1), context, allowed)


def _attention_layers(model: nn.Module) -> list[Any]:
    if not hasattr(model, "blocks"):
        raise ValueError(f"a {type(model).__name__} has no transformer blocks to gate")
    return [block.attn for block in cast(Any, model).blocks]


def _list_hook_points(model: Any) -> None:
    """Names the new hook points and lists them in `hook_dict`."""
    if hasattr(model, "setup"):
        model.setup()
        return
    model.clear_hook_registry()  # a TransformerBridge
    model._initialize_hook_registry()


def _in_place_of(old: HookPoint, new: HookPoint) -> HookPoint:
    """`new` with what the model keeps on its hook points copied over from `old`."""
    new.training, new.name, new.hook_conversion = old.training, old.name, old.hook_conversion
    return new


def _refuse_hooks(model: nn.Module, names: tuple[str, ...]) -> None:
    points = [getattr(attn, name) for attn in _attention_layers(model) for name in names]
    busy = [str(point.name) for point in points if point.fwd_hooks or point.bwd_hooks]
    if busy:
        raise ValueError(
            f"hooks on {', '.join(busy)} would be lost; take them off first, for example with "
            "model.reset_hooks(including_permanent=True)"
        )
