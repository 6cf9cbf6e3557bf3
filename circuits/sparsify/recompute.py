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

from circuits.models.backend import backend_of


@contextmanager
def recomputed_blocks(model: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Runs the blocks of the model under checkpointing inside the context.

    The backward pass may be outside of it.
    """
    if not enabled:
        yield
        return
    blocks: Any = model.blocks
    with backend_of(model).without_cache(model):
        try:
            for block in blocks:
                # Not by setattr: a TransformerBridge's block passes that on to the one it wraps.
                block.__dict__["forward"] = partial(
                    checkpoint, type(block).forward.__get__(block), use_reentrant=False
                )
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)
