"""What makes a run the run that it is, which a resumed one must agree with, and where it ran."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuits.gate.fused import choose_path
from circuits.models.load import versions
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import TokenStream
from circuits.sparsify.sharding import Sharding
from circuits.workers import Workers

if TYPE_CHECKING:
    from circuits.models.backend import Model
    from circuits.models.save_adapter import LowRankUpdate


def attention_path(
    dense: Model, stream: TokenStream, config: TrainConfig, sharding: Sharding | None
) -> str:
    """Returns how gated attention is computed in the run.

    Raises:
        ValueError: the way that the config asks for does not work; see `circuits.gate.fused`.
    """
    if not config.gate or config.cuda_graph:
        return "hooks"
    return choose_path(
        dense,
        config.attention,
        stream.context,
        device=sharding.device if sharding else None,
        autocast=config.precision == "bfloat16",
    )


def identify(
    model: Model,
    stream: TokenStream,
    config: TrainConfig,
    frozen: Collection[str],
    attention: str,
    workers: Workers,
    updates: Mapping[str, LowRankUpdate] | None = None,
) -> dict[str, Any]:
    """Returns what must be equal for a run to be resumed, in groups, as JSON."""
    weights = {name: held.detach() for name, held in model.named_parameters()}
    begun: dict[str, Any] = {}
    if updates is not None:
        factors = {
            f"{name}/{factor}": getattr(updates[name], factor)
            for name in sorted(updates)
            for factor in ("down", "up")
        }
        begun = {"updates": _digest(factors)}
    # The parts of a batch are the same however many processes share them, and steps are the same
    # bits only with the same way of attention.
    same = {"accumulate": config.accumulate * workers.count, "attention": attention}
    return {
        "config": asdict(config) | same,
        "data": stream.describe(),
        "model": {"weights": _digest(weights), "frozen": sorted(frozen), **begun},
    }


def circumstances(device: torch.device, workers: Workers) -> dict[str, Any]:
    """Returns what is noted of how a run was begun, or gone on with: nothing that must agree."""
    return {
        "versions": versions(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "processes": workers.count,
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
