"""Changing the hook points of attention layers in place."""

from __future__ import annotations

from torch import nn
from transformer_lens.hook_points import HookPoint

from circuits.models.backend import attention_layers


def in_place_of(old: HookPoint, new: HookPoint) -> HookPoint:
    """Returns `new` with what the model keeps on its hook points copied over from `old`."""
    new.training, new.name, new.hook_conversion = old.training, old.name, old.hook_conversion
    return new


def refuse_hooks(model: nn.Module, names: tuple[str, ...]) -> None:
    """Refuses to replace hook points that have hooks.

    Raises:
        ValueError: there are hooks on one of them.
    """
    points = [getattr(attn, name) for attn in attention_layers(model) for name in names]
    busy = [str(point.name) for point in points if point.fwd_hooks or point.bwd_hooks]
    if busy:
        raise ValueError(
            f"hooks on {', '.join(busy)} would be lost; take them off first, for example with "
            "model.reset_hooks(including_permanent=True)"
        )
