"""Models: what is known of one without loading its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig

from circuits.gate.card import GateCard, find_gate_card
from circuits.models.config_file import (
    CONFIG_FILE,
    check_config,
    check_sizes,
    hf_config,
    read_config_file,
)
from circuits.models.gguf_file import find_gguf, open_gguf
from circuits.models.hf_files import QUANTIZATION, is_tied, skeleton
from circuits.models.load import builder
from circuits.models.load_adapter import adapter_base
from circuits.models.load_checkpoint import checkpoint_config, checkpoint_gate
from circuits.models.names import CHECKPOINT_FILE, find_folder, hub_errors, hub_name, is_adapter
from circuits.models.weight_files import held_by, is_weight, read_checkpoint
from circuits.reading import is_there


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without loading its weights."""

    name: str
    architecture: str
    n_layers: int
    n_heads: int
    d_model: int
    d_vocab: int
    n_ctx: int
    n_parameters: int
    gate: GateCard | None
    quantization: str = ""
    """What its weights were quantised as before they were floats, such as `GGUF, Q4_1 100%`."""
    base: str = ""
    """For an adapter, the model that it is put on; all sizes are those of that model."""


def model_info(
    name_or_path: str | Path,
    *,
    trust_remote_code: bool = False,
    base: str | Path | None = None,
) -> ModelInfo:
    """Returns what the config of a model says, for every name that `load_model` takes.

    Of an adapter it is what the config of its base says, and its own gate.

    With `trust_remote_code`, code in the hub's repository of a name may be run to read its config.

    Raises:
        ValueError: an unknown name, or a config that cannot be read.
        FileNotFoundError: no such folder, or a hub that cannot be reached.
    """
    name = str(name_or_path)
    gguf = find_gguf(name_or_path)
    folder = find_folder(name_or_path) if gguf is None else None
    if folder is not None and is_adapter(folder):
        with adapter_base(folder, base) as named:
            info = model_info(named, trust_remote_code=trust_remote_code)
        return replace(info, name=name, gate=find_gate_card(folder), base=str(named))
    if base is not None:
        raise ValueError(f"{name} is not an adapter, so it has no base model; leave out base=")
    if gguf is not None:
        where = str(gguf)
        raw = open_gguf(gguf).raw
    elif folder is None:
        where = f"the config of {name!r}"
        with hub_errors(name):
            official = hub_name(name)
            found = AutoConfig.from_pretrained(official, trust_remote_code=trust_remote_code)
        raw = found.to_dict()
        check_config(raw, where)
    else:
        where = str(folder / CONFIG_FILE)
        raw = read_config_file(folder)
    names = raw.get("architectures")
    gate = None
    if folder is not None and is_there(folder / CHECKPOINT_FILE):
        state = read_checkpoint(folder / CHECKPOINT_FILE)
        gate = checkpoint_gate(raw, folder, name)
        raw = checkpoint_config(raw, state, where)
        check_sizes(raw, held_by(state, f"the weights in {folder / CHECKPOINT_FILE}"), where)
        n_parameters = sum(t.numel() for key, t in state.items() if is_weight(key))
    else:
        config = hf_config(raw, where)
        n_parameters = skeleton(config, tied=is_tied(config), where=where).num_parameters()
        gate = None if folder is None else find_gate_card(folder)
    cfg = builder.read_config(raw, torch.float32, name, where)
    return ModelInfo(
        name=name,
        architecture=(names or [cfg.original_architecture or "HookedTransformer"])[0],
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        d_model=cfg.d_model,
        d_vocab=cfg.d_vocab,
        n_ctx=cfg.n_ctx,
        n_parameters=n_parameters,
        gate=gate,
        quantization=str(raw.get(QUANTIZATION, "")),
    )
