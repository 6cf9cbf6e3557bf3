"""An adapter's factors as low-rank updates of a hooked model: the way back from `save_adapter`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from circuits.models.adapter import read_adapter, weights_digest
from circuits.models.backend import Model, backend_of
from circuits.models.hf_files import skeleton
from circuits.models.hf_weights import to_hf_model
from circuits.models.save_adapter import LowRankUpdate, empty_update, place_updates
from circuits.models.saving import source_of


def read_updates(
    base: Model, folder: str | Path, weights: Iterable[str]
) -> dict[str, LowRankUpdate]:
    """Returns the updates that an adapter's folder holds, by the names of the model's parameters.

    Args:
        base: The model that the adapter was made from.
        folder: The adapter's folder.
        weights: Names of the parameters that may have an update; those without one are left out.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a damaged adapter, one of other weights or another model, one that updates more
            than these parameters, or one whose factors belong to several of them at once.
    """
    adapter, config = read_adapter(Path(folder)), source_of(base).config
    parameters, layout = backend_of(base).saved_parameters(base, config)
    if adapter.digest is not None:
        found = weights_digest(to_hf_model(parameters, layout, config))
        if found != adapter.digest:
            raise ValueError(
                f"{folder} is an adapter for other weights than those of this model: its base has "
                f"the SHA-256 digest {adapter.digest[:12]}..., these have {found[:12]}...; give "
                "the model that it was made from"
            )
    names = {name: empty_update(name) for name in weights}
    placed = place_updates(names, layout, skeleton(config, tied=layout.tied))
    name_of = {id(update): name for name, update in names.items()}
    if unknown := sorted(set(adapter.factors) - set(placed)):
        raise ValueError(
            f"{folder} has updates that are not trained here ({', '.join(unknown[:3])}); choose "
            "other targets (--lora-targets all), or the model that it was made from"
        )
    updates: dict[str, LowRankUpdate] = {}
    for module, factors in adapter.factors.items():
        # Side by side, as several updates of one matrix are saved.
        parts = factors.a.float().split(len(factors.a) // len(placed[module]))
        columns = factors.b.float().split(len(factors.a) // len(placed[module]), dim=1)
        if len(parts) != len(placed[module]):
            raise _not_apart(folder, module)
        for place, a, b in zip(placed[module], parts, columns, strict=True):
            outside = torch.ones(len(b), dtype=torch.bool)
            outside[place.outputs] = False
            if b[outside].any():
                raise _not_apart(folder, module)
            reads, writes = a[:, place.inputs], b[place.outputs]
            down, up = (reads.T, writes.T) if place.rows_are_inputs else (writes, reads)
            updates[name_of[id(place.update)]] = LowRankUpdate(
                down.contiguous(), up.contiguous(), factors.scale, place.update.reads_heads
            )
    return updates


def _not_apart(folder: str | Path, module: str) -> ValueError:
    return ValueError(
        f"{folder}: the factors of {module} belong to queries, keys and values together, and "
        "cannot be trained as updates of each; begin with an adapter that was trained here"
    )
