"""Low-rank training (LoRA, Hu et al. 2021, arXiv 2106.09685): a small update in place of a weight.

Each chosen matrix W becomes W + (alpha / rank) * down @ up, of which only `down` and `up` are
trained: the optimiser's state and the checkpoints shrink with them. Heads of a layer share one
matrix, as in a Hugging Face model. `merge_low_rank` adds the update to the weights for good, so
what is saved is an ordinary model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from circuits.choices import LOW_RANK_TARGETS, LowRankTargets, check_choice
from circuits.models.backend import backend_of
from circuits.seeds import sub_seed


class LowRank(nn.Module):
    """The update of one weight; as a parametrization, it gives the weight with the update added."""

    def __init__(self, weight: Tensor, *, rank: int, alpha: float, reads_heads: bool, seed: int):
        super().__init__()
        self._reads_heads, self._scale = reads_heads, alpha / rank
        self._n_heads = weight.shape[0] if weight.ndim == 3 else None
        rows, columns = self._as_matrix(weight).shape
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(rows, rank, generator=generator) / math.sqrt(rows)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(rank, columns, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight with the update added, in the weight's shape and dtype."""
        return weight + self._as_weight(self._scale * self.down @ self.up).to(weight.dtype)

    def _as_matrix(self, weight: Tensor) -> Float[Tensor, "rows columns"]:
        if weight.ndim == 2:
            return weight
        if self._reads_heads:
            return weight.flatten(0, 1)
        return weight.permute(1, 0, 2).flatten(1)

    def _as_weight(self, matrix: Float[Tensor, "rows columns"]) -> Tensor:
        if self._n_heads is None:
            return matrix
        if self._reads_heads:
            return matrix.unflatten(0, (self._n_heads, -1))
        return matrix.unflatten(1, (self._n_heads, -1)).permute(1, 0, 2)


def add_low_rank(
    model: nn.Module,
    rank: int,
    *,
    alpha: float = 16.0,
    targets: LowRankTargets | str = "all",
    seed: int = 0,
) -> dict[str, nn.Parameter]:
    """Puts an update on the weights of all layers, in place; returns what is to be trained.

    The update is nothing at first, so the model computes what it did.

    Raises:
        ValueError: the rank is below 1, the targets are unknown, or no such weight was found.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1")
    check_choice("low-rank targets", targets, LOW_RANK_TARGETS)
    parts = ("attention", "mlp") if targets == "all" else (targets,)
    part_of = backend_of(model).part_of_weight
    chosen = [
        (module, name)
        for path, module in model.named_modules()
        for name, weight in list(module.named_parameters(recurse=False))
        if part_of(f"{path}.{name}", weight) in parts
    ]
    if not chosen:
        raise ValueError(f"the model has no weights of the kind {targets!r} to put an update on")
    for number, (module, name) in enumerate(chosen):
        update = LowRank(
            getattr(module, name),
            rank=rank,
            alpha=alpha,
            reads_heads=name == "W_O",
            seed=sub_seed(seed * len(chosen) + number, f"{seed}/low rank/{number}"),
        )
        parametrize.register_parametrization(module, name, update)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if ".parametrizations." in name and name.endswith((".down", ".up"))
    }


def merge_low_rank(model: nn.Module) -> None:
    """Adds every update to its weight for good, in place; without updates nothing changes."""
    for module in list(model.modules()):
        # Not by getattr: a TransformerBridge's modules pass that on to the one they wrap.
        held: Any = module._modules.get("parametrizations")
        for name in list(held or ()):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
