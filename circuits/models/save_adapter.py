"""Saving low-rank updates as an adapter, which `load_model` and `peft` put on their base model.

An update belongs to a matrix of the hooked model. Where its elements lie in the Hugging Face model
is known from saving (circuits/models/hf_weights.py); if its rows lie along one side of one matrix
there and its columns along the other, the factors are the same with their rows and columns moved.
Several updates can share a matrix (GPT-2's queries, keys and values are one, `c_attn`): then their
factors stand side by side, the rank is the sum of theirs, and so is alpha, which keeps the
scale alpha / rank.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from circuits.files import replace_folder, write_json
from circuits.gate.card import GateCard
from circuits.models.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_FILE,
    DIGEST,
    PREFIX,
    weights_digest,
)
from circuits.models.backend import Model, backend_of
from circuits.models.hf_files import HFSource, skeleton
from circuits.models.hf_weights import Rearrangement, to_hf_model
from circuits.models.saving import check_replaceable, source_of


@dataclass(frozen=True)
class LowRankUpdate:
    """The update of one weight of a hooked model: scale down up, laid out as `as_matrix` does."""

    down: Float[Tensor, "rows rank"]
    up: Float[Tensor, "rank columns"]
    scale: float
    reads_heads: bool


def as_matrix(weight: Tensor, *, reads_heads: bool) -> Tensor:
    """Returns a weight as one matrix for all heads: their inputs, or what reads them, as rows."""
    if weight.ndim != 3:
        return weight
    if reads_heads:
        return weight.flatten(0, 1)
    return weight.permute(1, 0, 2).flatten(1)


def save_adapter(
    base: Model,
    updates: Mapping[str, LowRankUpdate],
    folder: str | Path,
    *,
    gate: GateCard | None = None,
    dtype: torch.dtype = torch.float32,
    base_name: str | None = None,
) -> None:
    """Writes low-rank updates of `base` as a PEFT adapter, with `gate.json` if a card is given.

    Next to it `base.json` holds a digest of the base's weights. The folder is written and replaced
    as `save_model` does it. Loading adds the updates in float32; the sum is that of training but
    for rounding, of the factors too where they are saved in bfloat16.

    Args:
        base: The model that was updated, as it was before.
        updates: The updates, by the names of its parameters: `TrainResult.updates`.
        folder: The folder to write.
        gate: The card of the gate that the updated model has: `TrainResult.card()`.
        dtype: The dtype of the factors, float32 or bfloat16.
        base_name: What others load the base by; by default what it was loaded by itself.

    Raises:
        ValueError: see `check_adapter`; or `folder` holds other things.
    """
    folder = Path(folder)
    check_replaceable(folder)
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    name = _base_name(base, base_name)
    config = source_of(base).config
    parameters, layout = backend_of(base).saved_parameters(base, config)
    hf_model = skeleton(config, tied=layout.tied)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module, placed in place_updates(updates, layout, hf_model).items():
        a, b = _joined(placed, _sides(hf_model.get_submodule(module)))
        ranks[module] = len(a)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.to(dtype)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.to(dtype)
    written = _adapter_config(name, updates, ranks, hf_model)
    digest = weights_digest(to_hf_model(parameters, layout, config))
    with replace_folder(folder) as new:
        write_json(new / ADAPTER_CONFIG, written)
        save_file(tensors, new / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_json(new / BASE_FILE, {DIGEST: digest})
        if gate is not None:
            gate.save(new)


def check_adapter(base: Model, weights: Iterable[str], *, base_name: str | None = None) -> None:
    """Checks that `save_adapter` can write updates of these parameters; call it before training.

    Raises:
        ValueError: no name is known for the base, it has no Hugging Face counterpart, or an update
            is not one of a single matrix there.
    """
    _base_name(base, base_name)
    _, layout = backend_of(base).saved_parameters(base, source_of(base).config)
    hf_model = skeleton(source_of(base).config, tied=layout.tied)
    place_updates({name: empty_update(name) for name in weights}, layout, hf_model)


def empty_update(name: str) -> LowRankUpdate:
    """Returns an update of rank 0 of the weight of this name."""
    return LowRankUpdate(torch.empty(0, 0), torch.empty(0, 0), 1.0, name.endswith("W_O"))


@dataclass(frozen=True)
class Placed:
    """An update, and where it lies in its matrix of the Hugging Face model."""

    update: LowRankUpdate
    inputs: Int[Tensor, " d_in"]
    outputs: Int[Tensor, " d_out"]
    rows_are_inputs: bool


def _base_name(base: Model, given: str | None) -> str:
    source: HFSource = source_of(base)
    name = given or source.name
    if not name:
        raise ValueError(
            "it is not known what the base model is loaded by (it was made by from_hf, or is an "
            "adapter itself), so an adapter of it would be of no use; give base_name, or save the "
            "merged model with save_model"
        )
    return name


def place_updates(
    updates: Mapping[str, LowRankUpdate], layout: Rearrangement, hf_model: PreTrainedModel
) -> dict[str, list[Placed]]:
    """Returns the updates of each module of the Hugging Face model.

    Raises:
        ValueError: an update is not one of a single matrix there.
    """
    owners = list(layout.shapes)
    ends = list(itertools.accumulate(shape.numel() for shape in layout.shapes.values()))
    found: dict[str, list[Placed]] = {}
    for name, update in updates.items():
        if name not in layout.places:
            raise ValueError(f"the base model has no weight {name!r} that an adapter could update")
        numbers = as_matrix(layout.places[name], reads_heads=update.reads_heads)
        number = bisect.bisect_right(ends, int(numbers.min()))
        owner, end = owners[number], ends[number]
        module, _, leaf = owner.rpartition(".")
        local = numbers - (end - layout.shapes[owner].numel())
        kind = hf_model.get_submodule(module)
        if (
            numbers.ndim != 2
            or leaf != "weight"
            or not isinstance(kind, nn.Linear | Conv1D)
            or int(numbers.max()) >= end
        ):
            raise _no_matrix(name)
        i, j = local // layout.shapes[owner][1], local % layout.shapes[owner][1]
        inputs, outputs = (i, j) if isinstance(kind, Conv1D) else (j, i)
        for rows_are_inputs, rows, columns in ((True, inputs, outputs), (False, outputs, inputs)):
            if (rows == rows[:, :1]).all() and (columns == columns[:1]).all():
                sides = (rows[:, 0], columns[0]) if rows_are_inputs else (columns[0], rows[:, 0])
                found.setdefault(module, []).append(Placed(update, *sides, rows_are_inputs))
                break
        else:
            raise _no_matrix(name)
    return found


def _no_matrix(name: str) -> ValueError:
    return ValueError(
        f"the update of {name} is not one of a single matrix of the Hugging Face model, so an "
        "adapter cannot hold it; save the merged model with save_model (--save merged)"
    )


def _joined(
    placed: list[Placed], sides: tuple[int, int]
) -> tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]:
    """The factors of all updates of one matrix, side by side."""
    d_in, d_out = sides
    a_parts, b_parts = [], []
    for place in placed:
        down, up = place.update.down.float().cpu(), place.update.up.float().cpu()
        reads, writes = (down.T, up.T) if place.rows_are_inputs else (up, down)
        a, b = torch.zeros(len(reads), d_in), torch.zeros(d_out, len(reads))
        a[:, place.inputs], b[place.outputs] = reads, writes
        a_parts.append(a)
        b_parts.append(b)
    return torch.cat(a_parts).contiguous(), torch.cat(b_parts, dim=1).contiguous()


def _sides(module: nn.Module) -> tuple[int, int]:
    weight: Any = module.weight
    rows, columns = weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def _adapter_config(
    base_name: str,
    updates: Mapping[str, LowRankUpdate],
    ranks: dict[str, int],
    hf_model: PreTrainedModel,
) -> dict[str, Any]:
    """What `adapter_config.json` says, in the entries of peft's `LoraConfig`."""
    scales = {update.scale for update in updates.values()}
    if len(scales) != 1:
        raise ValueError(f"the updates have {len(scales)} different scales; an adapter has one")
    (scale,), rank = scales, min(ranks.values())
    more: dict[str, int] = {}
    for other in sorted(set(ranks.values()) - {rank}):
        modules = {module for module, held in ranks.items() if held == other}
        more |= dict.fromkeys(_ends(modules, hf_model), other)
    is_conv = any(isinstance(hf_model.get_submodule(module), Conv1D) for module in ranks)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": scale * rank,
        "rank_pattern": more,
        "alpha_pattern": {end: scale * held for end, held in more.items()},
        "target_modules": _ends(set(ranks), hf_model),
        "fan_in_fan_out": is_conv,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _ends(chosen: set[str], hf_model: PreTrainedModel) -> list[str]:
    """The shortest ends of names that fit the chosen modules and no other one."""
    names = {n for n, m in hf_model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    for length in (1, 2):
        ends = {".".join(name.split(".")[-length:]) for name in chosen}
        if {n for n in names if any(f".{n}".endswith(f".{end}") for end in ends)} == chosen:
            return sorted(ends)
    return sorted(chosen)
