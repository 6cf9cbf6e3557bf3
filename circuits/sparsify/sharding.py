"""Fully sharded training: every process holds a part of each weight, gradient and moment of AdamW.

A model of a few billion weights fits one GPU, but not together with its gradients and the
optimiser's state. torch's FSDP cuts every parameter along one of its axes, a part a process. Before
a block runs, forward or backward, its weights are gathered from all processes; behind it they are
dropped, and its gradients are summed and cut up in the same way. So are the embedding and the
unembedding, and what is left.

The sharded parameters are DTensors under the names that they had. `whole` gathers one, and
`placed_like` cuts one up, so checkpoints are the same files whether a run is sharded or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from circuits.models.backend import backend_of

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class Sharding:
    """Where the parts of a model go.

    Attributes:
        device: This process's own, for its part and for what it computes.
        count: The number of processes.
    """

    device: torch.device
    count: int


def why_not_sharded(count: int) -> str | None:
    """Returns why a model can't be sharded over so many processes; None if it can."""
    if count == 1:
        return (
            "a model is sharded over several processes, and there is one; start more with "
            "accelerate launch or torchrun, or leave sharding (--shard) away"
        )
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        return f"sharding needs a newer torch than {torch.__version__}, which cannot sum gradients"
    return None


def shard_model(model: ModelT, sharding: Sharding) -> ModelT:
    """Leaves this process its part of the model, in place, on its device; returns the model.

    All processes must call this alike. One block at a time goes to the device. Gradients of a
    backward pass are sums over the processes.

    Args:
        model: A HookedTransformer or TransformerBridge on the CPU; its parameters are replaced,
            and what else holds the old ones keeps them as they were.
        sharding: Where the parts go.
    """
    mesh = init_device_mesh(sharding.device.type, (sharding.count,))
    held = cast(Any, model)

    def place(parameter: nn.Parameter) -> Shard:
        return _even_axis(parameter, sharding.count)

    spare = backend_of(model).spare_parameters(model)
    for module in _groups(held):
        for parameter in module.parameters():
            if not parameter.is_contiguous():  # a TransformerBridge's may be views
                parameter.data = parameter.data.contiguous()
        # The outer group too is dropped after the forward pass: weights that are set while it is
        # gathered would not be seen by the next one.
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=True,
            shard_placement_fn=place,
            ignored_params=spare,
        )
        # By default FSDP averages; and gloo can sum only.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    held.cfg.device = str(sharding.device)  # where TransformerLens puts tokens and activations
    return model


@contextmanager
def views_are_read_only() -> Iterator[None]:
    """Silences FSDP's warning that a module's output is a view, inside the context.

    FSDP could miss a change of it in place. Logits are such views, and are only read.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
        yield


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor gathered from its parts; one that has none is returned as it is.

    All processes must ask for the same tensors in the same order.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns a whole tensor as `like` lies: on its device, and cut up if that is cut up.

    Every process takes its part of its own copy; nothing is sent.
    """
    tensor = tensor.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales gradients down to a norm, taken over all parts of all of them.

    Returns:
        The norm before, the same in every process.
    """
    return whole(nn.utils.clip_grad_norm_(parameters, max_norm))


def _groups(model: Any) -> list[Any]:
    """The modules whose weights are gathered at once; the last gathers what is in no other."""
    ends = [model.embed, model.unembed]
    first, last = ({id(weight) for weight in end.parameters()} for end in ends)
    # Tied embeddings are one weight, so they stay together, in the last group.
    return [*model.blocks, *(ends if first.isdisjoint(last) else ()), model]


def _even_axis(parameter: nn.Parameter, count: int) -> Shard:
    """The first axis that falls into equal parts; without one, the first, into unequal parts.

    The first axis alone would not do: that of a HookedTransformer's W_Q are its heads, of which
    there may be fewer than processes.
    """
    even = (axis for axis, size in enumerate(parameter.shape) if size % count == 0)
    return Shard(next(even, 0))
