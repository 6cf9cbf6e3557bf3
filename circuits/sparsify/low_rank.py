"""Low-rank training (LoRA, Hu et al. 2021, arXiv 2106.09685): a small update in place of a weight.

Each chosen matrix W becomes W + (alpha / rank) * down @ up, of which only `down` and `up` are
trained: the optimiser's state and the checkpoints shrink with them. Heads of a layer share one
matrix, as in a Hugging Face model. `merge_low_rank` adds the update to the weights for good, so
what is saved is an ordinary model; `low_rank_updates` are what an adapter is made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from circuits.choices import LOW_RANK_TARGETS, LowRankTargets, check_choice
from circuits.models.backend import backend_of
from circuits.models.save_adapter import LowRankUpdate, as_matrix
from circuits.seeds import sub_seed


class LowRank(nn.Module):
    """The update of one weight; as a parametrization, it gives the weight with the update added."""

    def __init__(self, weight: Tensor, *, rank: int, alpha: float, reads_heads: bool, seed: int):
        super().__init__()
        self._reads_heads, self._scale = reads_heads, alpha / rank
        self._n_heads = weight.shape[0] if weight.ndim == 3 else None
        rows, columns = as_matrix(weight, reads_heads=reads_heads).shape
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(rows, rank, generator=generator) / math.sqrt(rows)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(rank, columns, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight with the update added, in the weight's shape and dtype."""
        return weight + self._as_weight(self._scale * self.down @ self.up).to(weight.dtype)

    def product(
        self, x: Float[Tensor, "*batch d_in"], weight: Tensor, *, transposed: bool = False
    ) -> Float[Tensor, "*batch d_out"]:
        """Returns x times the weight with the update added, the heads of either side in one row.

        The two are multiplied apart: the sum is not made, and a backward pass takes no gradient of
        the whole weight, which costs as much as one with respect to x.

        Args:
            x: what the weight is applied to.
            weight: the weight without its update.
            transposed: the weight's rows are outputs, as those of `nn.Linear`.
        """
        matrix = as_matrix(weight, reads_heads=self._reads_heads)
        if transposed:
            return x @ matrix.T + self._scale * ((x @ self.up.T) @ self.down.T)
        return x @ matrix + self._scale * ((x @ self.down) @ self.up)

    def update(self) -> LowRankUpdate:
        """Returns a copy of the update on the CPU."""
        down, up = (held.detach().cpu().clone() for held in (self.down, self.up))
        return LowRankUpdate(down, up, self._scale, self._reads_heads)

    def set(self, update: LowRankUpdate, name: str) -> None:
        """Takes on the values of an update; `name` is what an error calls the weight."""
        if update.down.shape != self.down.shape or update.up.shape != self.up.shape:
            raise ValueError(
                f"the update of {name} to begin with has rank {update.down.shape[1]}, but "
                f"{self.down.shape[1]} is trained; let lora_rank (--lora-rank) be that rank"
            )
        self.down.copy_(update.down)
        self.up.copy_(update.up * (update.scale / self._scale))

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
    chosen = _chosen(model, targets)
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


@torch.no_grad()
def set_updates(model: nn.Module, updates: Mapping[str, LowRankUpdate]) -> None:
    """Gives the updates on a model's weights other values, by the names that these have merged.

    A weight without one keeps what it has.

    Raises:
        ValueError: an update of another rank, or of a weight that has none here.
    """
    held = _updates(model)
    for name, update in updates.items():
        if name not in held:
            raise ValueError(f"there is no update on {name} to begin with")
        held[name].set(update, name)


def updated_weights(model: nn.Module, targets: LowRankTargets | str = "all") -> list[str]:
    """Returns the names of the weights that `add_low_rank` puts an update on."""
    names = _names(model)
    return [names[getattr(module, name)] for module, name in _chosen(model, targets)]


def low_rank_updates(model: nn.Module) -> dict[str, LowRankUpdate]:
    """Returns copies of the updates on a model's weights, by the names that these have merged."""
    return {name: held.update() for name, held in _updates(model).items()}


def _updates(model: nn.Module) -> dict[str, LowRank]:
    """The modules of the updates, by the names of their weights."""
    found, names = {}, _names(model)
    for module in model.modules():
        held: Any = module._modules.get("parametrizations")
        updates: dict[str, Any] = dict(held.items()) if held is not None else {}
        for name, puts_on in updates.items():
            path = names[puts_on.original].removesuffix(f"parametrizations.{name}.original")
            found[path + name] = puts_on[0]
    return found


def _chosen(model: nn.Module, targets: LowRankTargets | str) -> list[tuple[nn.Module, str]]:
    """The weights to update, as modules and names in them."""
    parts = ("attention", "mlp") if targets == "all" else (targets,)
    part_of = backend_of(model).parts_of_weights(model)
    return [
        (module, name)
        for module in model.modules()
        for name, weight in list(module.named_parameters(recurse=False))
        if part_of.get(weight) in parts
    ]


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    """The names of parameters; those of a TransformerBridge are not the paths of its modules."""
    return {parameter: name for name, parameter in model.named_parameters()}


def merge_low_rank(model: nn.Module) -> None:
    """Adds every update to its weight for good, in place; without updates nothing changes."""
    for module in list(model.modules()):
        # Not by getattr: a TransformerBridge's modules pass that on to the one they wrap.
        held: Any = module._modules.get("parametrizations")
        for name in list(held or ()):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
