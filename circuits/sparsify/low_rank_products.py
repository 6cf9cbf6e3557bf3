"""Low-rank training without the sums: x W + x D U in place of x (W + D U).

By itself a weight with an update is their sum, made anew wherever it is read, and a backward pass
takes the gradient of the whole sum before that of the factors. Inside `low_rank_products` MLPs and
linear modules have a `forward` that multiplies by both apart; attention does so in the forwards
that it has in `fused_attention` (circuits/gate/fused/forwards.py). The numbers are the same but
for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformer_lens.hook_points import HookPoint
from transformers.pytorch_utils import Conv1D

from circuits.gate.fused.forwards import has_update, product


@contextmanager
def low_rank_products(model: nn.Module) -> Iterator[None]:
    """Multiplies by weights and by the updates on them apart, inside the context.

    An MLP with a hook inside runs its own `forward`, as do all other modules.
    """
    with ExitStack() as back:
        for module in model.modules():
            kind = parametrize.type_before_parametrizations(module)
            forward, names = _FORWARDS.get(kind.__name__, (None, ()))
            if forward is None or not all(has_update(module, name) for name in names):
                continue
            held: Any = module
            if names != _LINEAR and held.cfg.is_layer_norm_activation():
                continue
            # Not by setattr: a TransformerBridge's modules pass that on to the one they wrap.
            module.__dict__["forward"] = _Forward(held, kind, forward)
            back.callback(module.__dict__.pop, "forward")
        yield


class _Forward:
    """The `forward` of one module inside the context."""

    def __init__(self, module: Any, kind: type[Any], forward: Callable[[Any, Tensor], Tensor]):
        self._module, self._kind, self._forward = module, kind, forward
        self._points = [one for one in module.modules() if isinstance(one, HookPoint)]

    def __call__(self, x: Tensor) -> Tensor:
        if any(point.fwd_hooks or point.bwd_hooks for point in self._points):
            return self._kind.forward(self._module, x)
        return self._forward(self._module, x)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the module made inside the context, or a pickle, has its class's `forward`."""
        return getattr, (self._module, "forward")


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    """HookedTransformer's `MLP.forward`."""
    return product(mlp, "W_out", mlp.act_fn(product(mlp, "W_in", x) + mlp.b_in)) + mlp.b_out


def _gated_mlp(mlp: Any, x: Tensor) -> Tensor:
    """HookedTransformer's `GatedMLP.forward`."""
    post = mlp.act_fn(product(mlp, "W_gate", x)) * product(mlp, "W_in", x) + mlp.b_in
    return product(mlp, "W_out", post) + mlp.b_out


def _linear(module: Any, x: Tensor) -> Tensor:
    """Of `nn.Linear`, and of transformers' `Conv1D`, which has inputs as rows."""
    found = product(module, "weight", x, transposed=isinstance(module, nn.Linear))
    return found if module.bias is None else found + module.bias


_LINEAR = ("weight",)
_FORWARDS: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[str, ...]]] = {
    "MLP": (_mlp, ("W_in", "W_out")),
    "GatedMLP": (_gated_mlp, ("W_gate", "W_in", "W_out")),
    nn.Linear.__name__: (_linear, _LINEAR),
    Conv1D.__name__: (_linear, _LINEAR),
}
"""By the name of the module's class: what it computes, and the weights that it reads."""
