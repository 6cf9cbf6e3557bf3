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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar, cast

from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from circuits.gate.density import OpenEdges
from circuits.gate.hook_points import in_place_of, refuse_hooks
from circuits.gate.sampling import OpenGates
from circuits.models.backend import attention_layers, backend_of

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
        self.recorder: OpenEdges | None = None

    def forward(
        self, scores: Float[Tensor, "batch head query_pos key_pos"]
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """Returns which query-key pairs are open: sampled in training mode, else g > 0."""
        logits = scores + self.bias if self.bias else scores
        frozen = self.gradient == "frozen"
        if self.training or self.recorder or (logits.requires_grad and not frozen):
            gate, expected, counts = OpenGates.apply(logits, self.training, frozen)
        else:
            return (logits > 0).to(logits.dtype)
        if self.recorder is not None:
            self.recorder.add(self.layer(), expected, counts)
        return gate

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state to copy or pickle: a copy does not report to the recorder."""
        return self.__dict__ | {"recorder": None}


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
        ValueError: the model is gated already, has hooks where the gate goes, or has attention
            whose scores cannot be acted on; or b is not finite.
    """
    if is_gated(model):
        raise ValueError("the model is gated already; call remove_gate(model) first")
    if not math.isfinite(bias):
        raise ValueError(f"gate bias is {bias}; it must be a finite number")
    _refuse_ungateable(model)
    refuse_hooks(model, ("hook_attn_scores", "hook_pattern"))
    for attn in attention_layers(model):
        scores, gate = GatedScores(), Gate(float(bias))
        pattern = GatedPattern(scores, gate)
        gate.training = attn.training
        attn.hook_attn_scores = in_place_of(attn.hook_attn_scores, scores)
        attn.hook_pattern = in_place_of(attn.hook_pattern, pattern)
        attn.hook_gate = gate
    backend_of(model).list_hook_points(model)
    return model


def _refuse_ungateable(model: nn.Module) -> None:
    for attn in attention_layers(model):
        if (reason := backend_of(model).why_not_gated(attn)) is not None:
            raise ValueError(
                f"no gate can be put on {reason}; where HookedTransformer knows the architecture, "
                "transformer_lens<4 loads it as one that can be gated"
            )


def remove_gate(model: ModelT) -> ModelT:
    """Takes the gate off the model, in place, and returns the model, which is then dense.

    Raises:
        ValueError: the model has no gate, or has hooks on the hook points that would go.
    """
    gates(model)
    refuse_hooks(model, ("hook_attn_scores", "hook_pattern", "hook_gate"))
    for attn in attention_layers(model):
        attn.hook_attn_scores = in_place_of(attn.hook_attn_scores, HookPoint())
        attn.hook_pattern = in_place_of(attn.hook_pattern, HookPoint())
        backend_of(model).drop_hook_point(attn, "hook_gate")
    backend_of(model).list_hook_points(model)
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
    return [attn.hook_gate for attn in attention_layers(model)]


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


@contextmanager
def hold_gates(
    model: nn.Module, held: Bool[Tensor, "layer batch head query_pos key_pos"]
) -> Iterator[None]:
    """Gives every gate a fixed value inside the context, whatever scores it sees.

    A run may be of several copies of the batch, one after the other. No gradient passes a gate
    that is held.

    Args:
        model: A gated model.
        held: Which query-key pairs are open.

    Raises:
        ValueError: the model has no gate.
    """

    def hold(values: Tensor) -> Callable[..., Tensor]:
        def value(_gate: nn.Module, _scores: object, gate: Tensor) -> Tensor:
            copies = len(gate) // len(values)
            return values.to(gate.dtype).repeat(copies, 1, 1, 1)

        return value

    with ExitStack() as stack:
        for gate, values in zip(gates(model), held, strict=True):
            stack.callback(gate.register_forward_hook(hold(values)).remove)
        yield
