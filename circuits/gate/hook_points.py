"""Changing the hook points of attention layers in place, on both of TransformerLens's classes."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from transformer_lens.hook_points import HookPoint


def attention_layers(model: nn.Module) -> list[Any]:
    """Returns the attention modules, layer 0 first.

    Raises:
        ValueError: the model has no transformer blocks, or some without attention.
    """
    if not hasattr(model, "blocks"):
        raise ValueError(f"a {type(model).__name__} has no transformer blocks with attention")
    blocks = list(cast(Any, model).blocks)
    without = [number for number, block in enumerate(blocks) if not hasattr(block, "attn")]
    if without:
        raise ValueError(
            f"blocks {without} of the model have no attention with scores (a recurrent or "
            "convolutional layer?); only models with attention in every block are supported"
        )
    return [block.attn for block in blocks]


def list_hook_points(model: Any) -> None:
    """Names the new hook points and lists them in `hook_dict`."""
    if hasattr(model, "setup"):
        model.setup()
        return
    model.clear_hook_registry()  # a TransformerBridge
    model._initialize_hook_registry()


def drop(attn: Any, name: str) -> None:
    """Takes a hook point off an attention module; a TransformerBridge's lists its own."""
    delattr(attn, name)
    getattr(attn, "_hook_registry", {}).pop(name, None)


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
