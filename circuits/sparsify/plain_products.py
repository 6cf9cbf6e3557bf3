"""Products with weights as they lie: no sum with an update is made, and no transposed copy.

By itself a weight with a low-rank update is their sum, made anew wherever it is read, and a
backward pass takes the gradient of the whole sum before that of the factors; x W + x D U in place
of x (W + D U) needs neither. And HookedTransformer's gated MLPs and its unembedding copy each
weight, transposed, wherever they read it, which for a vocabulary of 49,152 takes longer than the
product. Inside `plain_products` MLPs, the unembedding and linear modules with updates have a
`forward` without either; attention has its own in `fused_attention`
(circuits/gate/fused/forwards.py). The numbers are the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformer_lens.hook_points import HookPoint
from transformers.pytorch_utils import Conv1D

from circuits.gate.fused.forwards import has_update, product


@contextmanager
def plain_products(model: nn.Module) -> Iterator[None]:
    """Multiplies by weights as they lie, and by the updates on them apart, inside the context.

    A module with a hook inside runs its own `forward`, as do all modules of other kinds. It is made
    for frozen weights: with others a run would round differently from one without the context.
    """
    with ExitStack() as back:
        for module in model.modules():
            kind = parametrize.type_before_parametrizations(module)
            forward = _FORWARDS.get(kind.__name__)
            held: Any = module
            if forward is None or (forward is _linear and not has_update(module, "weight")):
                continue
            if forward in (_mlp, _gated_mlp) and held.cfg.is_layer_norm_activation():
                continue
            # Not by setattr: a TransformerBridge's modules pass that on to the one they wrap.
            module.__dict__["forward"] = _Forward(held, kind, forward)
            back.callback(module.__dict__.pop, "forward")
        yield


class _Forward:
    """The `forward` of one module inside the context."""

    def __init__(self, module: Any, kind: type[Any], forward: Callable[[Any, Tensor], Tensor]):
        self._module, self._kind, self._forward = module, kind, forward
        self._points = [part for part in module.modules() if isinstance(part, HookPoint)]

    def __call__(self, x: Tensor) -> Tensor:
        if any(point.fwd_hooks or point.bwd_hooks for point in self._points):
            return self._kind.forward(self._module, x)
        return self._forward(self._module, x)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the module made inside the context, or a pickle, has its class's `forward`."""
        return getattr, (self._module, "forward")


def _times(x: Tensor, module: Any, name: str) -> Tensor:
    """Multiplies by a weight of rows for its inputs, and by its update if it has one."""
    return product(module, name, x) if has_update(module, name) else x @ getattr(module, name)


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    """HookedTransformer's `MLP.forward`."""
    return _times(mlp.act_fn(_times(x, mlp, "W_in") + mlp.b_in), mlp, "W_out") + mlp.b_out


def _gated_mlp(mlp: Any, x: Tensor) -> Tensor:
    """HookedTransformer's `GatedMLP.forward`."""
    post = mlp.act_fn(_times(x, mlp, "W_gate")) * _times(x, mlp, "W_in") + mlp.b_in
    return _times(post, mlp, "W_out") + mlp.b_out


def _unembed(unembed: Any, x: Tensor) -> Tensor:
    """HookedTransformer's `Unembed.forward`."""
    logits = torch.addmm(unembed.b_U, x.flatten(0, -2), unembed.W_U)
    return logits.unflatten(0, x.shape[:-1])


def _linear(module: Any, x: Tensor) -> Tensor:
    """Of `nn.Linear`, and of transformers' `Conv1D`, which has inputs as rows."""
    found = product(module, "weight", x, transposed=isinstance(module, nn.Linear))
    return found if module.bias is None else found + module.bias


_FORWARDS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "MLP": _mlp,
    "GatedMLP": _gated_mlp,
    "Unembed": _unembed,
    nn.Linear.__name__: _linear,
    Conv1D.__name__: _linear,
}
"""By the name of the module's class: what it computes."""
