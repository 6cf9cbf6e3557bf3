"""Activation checkpointing: less memory for one more forward pass.

Of each block only the input is kept for the backward pass; what happens inside is computed again
when it is needed, with the same random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from circuits.models.build_bridge import is_bridge


@contextmanager
def recomputed_blocks(model: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Runs the blocks of the model under checkpointing inside the context.

    The backward pass may be outside of it.
    """
    blocks: Any = model.blocks if enabled else ()
    # A Hugging Face model keeps keys and values for generation; computed again, they would be
    # added to those that it holds.
    config: Any = model.original_model.config if enabled and is_bridge(model) else None
    keeps = getattr(config, "use_cache", False)
    try:
        if keeps:
            config.use_cache = False
        for block in blocks:
            # Not by setattr: a TransformerBridge's block passes that on to the one it wraps.
            block.__dict__["forward"] = partial(
                checkpoint, type(block).forward.__get__(block), use_reentrant=False
            )
        yield
    finally:
        if keeps:
            config.use_cache = True
        for block in blocks:
            block.__dict__.pop("forward", None)
