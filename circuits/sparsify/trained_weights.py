"""Which weights a run trains, and how they and AdamW's state go to a checkpoint and come back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from circuits.sparsify.config import TrainConfig
from circuits.sparsify.low_rank import add_low_rank
from circuits.sparsify.sharding import placed_like


def choose_trained(model: Any, config: TrainConfig, frozen: Collection[str]) -> Any:
    """Lets what is to be trained require gradients, in place: weights, or updates put on them."""
    if config.lora_rank:
        trained: Collection[str] = add_low_rank(
            model,
            config.lora_rank,
            alpha=config.lora_alpha,
            targets=config.lora_targets,
            seed=config.seed,
        )
    else:
        trained = {name for name, _ in model.named_parameters() if name not in frozen}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the weights that are trained, by name."""
    return {name: held for name, held in model.named_parameters() if held.requires_grad}


def tensors_of(
    weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint: the weights and, if it is given, the optimiser's."""
    tensors: dict[str, Tensor] = {f"model/{name}": weight for name, weight in weights.items()}
    if optimizer is not None:
        for name, weight in weights.items():
            for key, value in optimizer.state[weight].items():
                tensors[f"optimizer/{key}/{name}"] = value
    return tensors


@torch.no_grad()
def set_weights(weights: dict[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Gives the weights the values of a checkpoint."""
    for name, weight in weights.items():
        weight.copy_(placed_like(tensors[f"model/{name}"], weight))


def set_optimizer(
    optimizer: torch.optim.Optimizer,
    weights: dict[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Gives the optimiser the state of a checkpoint."""
    for name, weight in weights.items():
        entries = {
            key.split("/")[1]: tensor
            for key, tensor in tensors.items()
            if key.startswith("optimizer/") and key.endswith(f"/{name}")
        }
        for key, tensor in entries.items():  # AdamW keeps its step count on the CPU
            entries[key] = tensor if key == "step" else placed_like(tensor, weight)
        optimizer.state[weight] = entries
