"""Naive sparse attention, as a baseline: every query keeps its k highest scores, untrained.

The other scores are masked before the softmax, so that what is kept adds up to 1. What training
with a gate gains is what it does better than this at the same density.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from circuits.gate.density import OpenEdges
from circuits.gate.gate import is_gated
from circuits.gate.hook_points import in_place_of, refuse_hooks
from circuits.gate.sampling import masked_below
from circuits.models.backend import attention_layers, backend_of

ModelT = TypeVar("ModelT", bound=nn.Module)


class TopKScores(HookPoint):
    """`hook_attn_scores` that runs its hooks and then masks all but the k highest of each query.

    Attributes:
        k: How many scores of a query are kept; more where several are equal to the k-th.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.recorder: OpenEdges | None = None

    def __call__(
        self, scores: Float[Tensor, "batch head query_pos key_pos"]
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """Returns the hooked scores, -inf where they are not among the highest."""
        scores = super().__call__(scores)
        allowed = scores > masked_below(scores.dtype)
        lowest = scores.topk(min(self.k, scores.shape[-1]), dim=-1).values[..., -1:]
        kept = allowed & (scores >= lowest)
        if self.recorder is not None:
            counts = torch.stack([gates.sum(dim=(0, 2, 3)) for gates in (kept, allowed)])
            self.recorder.add(self.layer(), counts[0].to(scores.dtype), counts)
        # A query with nothing allowed stays as it is, or its softmax would be NaN.
        return scores.masked_fill(allowed & ~kept, -torch.inf)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state to copy or pickle: a copy does not report to the recorder."""
        return self.__dict__ | {"recorder": None}


def add_top_k(model: ModelT, k: int) -> ModelT:
    """Lets every query attend to its k highest scores only, in place, and returns the model.

    Raises:
        ValueError: k is below 1, the model is gated or has a top-k mask already, or has hooks on
            `hook_attn_scores`.
    """
    if k < 1:
        raise ValueError(f"k is {k}; a query must keep at least 1 score")
    if is_gated(model) or is_top_k(model):
        raise ValueError("the model's attention is sparse already; give a dense model")
    refuse_hooks(model, ("hook_attn_scores",))
    for attn in attention_layers(model):
        attn.hook_attn_scores = in_place_of(attn.hook_attn_scores, TopKScores(k))
    backend_of(model).list_hook_points(model)
    return model


def is_top_k(model: nn.Module) -> bool:
    """Returns whether the model keeps only the highest attention scores."""
    return any(isinstance(module, TopKScores) for module in model.modules())
