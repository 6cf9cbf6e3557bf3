"""Compiled MLPs and norms: torch.compile on what holds most of a block's weights and no gate.

Attention stays as it is: it is one call already (circuits/gate/fused), and around it
TransformerLens runs Python that the compiler would break at. Blocks of one shape share their code,
so a deep model takes no longer to compile than a shallow one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_PARTS = ("ln1", "mlp", "ln2")

CompiledParts = list[tuple[nn.Module, Any]]
"""Modules, and what is called in their place."""


def compile_parts(model: nn.Module) -> CompiledParts:
    """Returns compiled calls of the MLPs and norms of all blocks, to run inside `compiled`.

    The first calls take tens of seconds; on a CPU they need a C++ compiler.
    """
    blocks: Any = model.blocks
    parts = [block._modules[name] for block in blocks for name in _PARTS if name in block._modules]
    return [(part, torch.compile(part._call_impl)) for part in parts]


@contextmanager
def compiled(parts: CompiledParts) -> Iterator[None]:
    """Runs these modules compiled inside the context; hooks put on inside may not run."""
    try:
        for part, call in parts:
            part._compiled_call_impl = call
        yield
    finally:
        for part, _ in parts:
            part._compiled_call_impl = None
