"""The bilinear form that a model makes an attention score of: score = q^T M k + constant.

M holds what happens to a query and a key between their hook points and the score: a scale,
rotations by position, norms of single queries and keys, whose scales are held at what they are in
the run. It is read off the model's own run, with unit vectors as queries and the gradient at the
key, so rotary embeddings of any kind are applied as the model applies them. Shared keys are handed
out to the heads that read them. The constant is what the distance of the positions adds (ALiBi).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits.attribute.gradients import parameters_without_gradient
from circuits.models.anatomy import norm_gain
from circuits.models.backend import Hooks, Model, component_hooks

_AT_ONCE = 32
"""Copies of the prompt that are run at once."""


def product_of_scores(
    model: Model, tokens: Int[Tensor, "1 pos"], layer: int, head: int, query: int, key: int
) -> tuple[Float[Tensor, "d_head d_head"], float]:
    """Returns the matrix between a query and a key at their hook points, and a zero query's score.

    The query is that of one head at one position, the key what it meets at another.
    """
    d_head, block = model.cfg.d_head, f"blocks.{layer}.attn"
    units = torch.eye(d_head + 1, d_head, device=tokens.device, dtype=model.W_E.dtype)
    slopes, scores = [], []
    with (
        component_hooks(model, split_heads=False),
        _held_norms(model, tokens, layer),
        torch.enable_grad(),
        parameters_without_gradient(model),
    ):
        for queries in units.split(_AT_ONCE):
            found: dict[str, Tensor] = {}

            def put(act: Tensor, hook: object, *, queries: Tensor = queries) -> Tensor:
                act = act.clone()
                act[:, query, head] = queries
                return act

            def differentiate(act: Tensor, hook: object, *, found: dict = found) -> Tensor:
                found["k"] = act.detach().requires_grad_()
                return found["k"]

            def note(act: Tensor, hook: object, *, found: dict = found) -> None:
                found["score"] = act[:, head, query, key]

            hooks: Hooks = [
                (f"{block}.hook_q", put),
                (f"{block}.hook_k", differentiate),
                (f"{block}.hook_attn_scores", note),
            ]
            model.run_with_hooks(
                tokens.repeat(len(queries), 1), fwd_hooks=hooks, stop_at_layer=layer + 1
            )
            (slope,) = torch.autograd.grad(found["score"].sum(), found["k"])
            slopes.append(slope[:, key, head])
            scores.append(found["score"].detach())
    return torch.cat(slopes)[:-1], float(torch.cat(scores)[-1])


@contextmanager
def _held_norms(model: Model, tokens: Int[Tensor, "1 pos"], layer: int) -> Iterator[None]:
    """Holds the scales of norms of queries and keys at what they are for one prompt.

    Runs may be of several copies of it.
    """
    attn: Any = model.blocks[layer].attn
    norms = [norm for part in "qk" if (norm := getattr(attn, f"{part}_norm", None)) is not None]
    factors: dict[nn.Module, Tensor] = {}

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...], found: Tensor) -> None:
        gain = norm_gain(model.cfg, norm)
        scale = (inputs[0].square().mean(dim=-1, keepdim=True) + model.cfg.eps).sqrt()
        factors[norm] = (torch.ones_like(found) if gain is None else gain.expand_as(found)) / scale

    def hold(norm: nn.Module, inputs: tuple[Tensor, ...], _found: Tensor) -> Tensor:
        factor = factors[norm]
        copies = len(inputs[0]) // len(factor)
        return inputs[0] * factor.repeat(copies, *[1] * (factor.ndim - 1))

    handles = [norm.register_forward_hook(measure) for norm in norms]
    try:
        if norms:
            with torch.no_grad():
                model.run_with_hooks(tokens, stop_at_layer=layer + 1)
        for handle in handles:
            handle.remove()
        handles = [norm.register_forward_hook(hold) for norm in norms]
        yield
    finally:
        for handle in handles:
            handle.remove()
