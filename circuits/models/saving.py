"""Saving: a hooked model as an ordinary Hugging Face folder, with a `gate.json` if gated.

What a model computes is saved as it is: weights are neither folded nor centred, and every one goes
back to the place in the Hugging Face model that it came from (circuits/models/hf_weights.py).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from circuits.files import replace_folder
from circuits.gate.card import GateCard
from circuits.gate.gate import gate_bias, is_gated
from circuits.gate.top_k import is_top_k
from circuits.models import hf_weights
from circuits.models.backend import Model, backend_of
from circuits.models.hf_files import HFSource, quiet_transformers
from circuits.models.load import versions
from circuits.models.names import MODEL_FILES


def check_saveable(model: Model) -> None:
    """Checks that `save_model` can write this model; call it before a long training.

    Raises:
        ValueError: the model has no Hugging Face counterpart, or there is no way back to it.
    """
    _layout(model)


def frozen_parameters(model: Model) -> set[str]:
    """Returns the names of parameters that must not be trained.

    Those of a HookedTransformer that hold constants and have no place in a Hugging Face model
    (GPT-2's zero `unembed.b_U`, the zero biases of Llama; `save_model` refuses a model in which
    they moved), and those of a TransformerBridge that are not used.
    """
    parameters, layout = _layout(model)
    unused = {name for name, _ in model.named_parameters()} - set(parameters)
    return set(layout.constants) | unused


def check_trainable(model: Model, frozen: Collection[str] = ()) -> None:
    """Checks that `save_model` can write this model after all but the frozen parameters moved.

    Raises:
        ValueError: it cannot (see `check_saveable`); or one that must keep its value is not frozen.
    """
    _, layout = _layout(model)
    moved = sorted(set(layout.constants) - set(frozen))
    if moved:
        raise ValueError(
            f"{len(moved)} parameters would be trained that have no place in a Hugging Face model, "
            f"so that the result could not be saved: {', '.join(moved[:5])}; freeze "
            "frozen_parameters(model)"
        )


def save_model(
    model: Model,
    folder: str | Path,
    *,
    gate: GateCard | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes `model` as a Hugging Face folder that any tool opens, with `gate.json` if gated.

    The folder is written next to its place and renamed, so a crash leaves no half-written one. An
    existing folder is replaced only if it holds nothing but a model. Word embeddings that were
    tied and have drifted apart in training are saved untied. In float32, loading gives back the
    same logits to the bit.

    Raises:
        ValueError: the model cannot be saved (see `check_saveable`), the card does not fit the
            model, or `folder` holds other things.
    """
    folder = Path(folder)
    gate = _checked_card(model, gate)
    check_replaceable(folder)
    source = source_of(model)
    hf_model = hf_weights.to_hf_model(*_layout(model), source.config, dtype=dtype)
    with replace_folder(folder) as new:
        with quiet_transformers():
            hf_model.save_pretrained(new)
            if source.tokenizer is not None:
                source.tokenizer.save_pretrained(new)
        if gate is not None:
            gate.save(new)


def hf_model_of(model: Model) -> PreTrainedModel:
    """Returns a Hugging Face model that computes what `model` does, but for a gate.

    It has a copy of the weights, in their dtype, on the CPU, and is in evaluation mode.

    Raises:
        ValueError: the model has no Hugging Face counterpart.
    """
    dtype = model.W_E.dtype
    # Models are made on the way, which draw their weights before they are given others.
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        parameters, layout = _layout(model)
        held = hf_weights.to_hf_model(parameters, layout, source_of(model).config, dtype=dtype)
        runs = AutoModelForCausalLM.from_config(held.config, dtype=dtype, trust_remote_code=False)
    runs.load_state_dict(held.state_dict())
    return runs.eval()


def source_of(model: Model) -> HFSource:
    """Returns the Hugging Face config and tokenizer that a model came from.

    Raises:
        ValueError: it has none.
    """
    source = getattr(model, "hf_source", None)
    if source is None:
        raise ValueError(
            f"the model {model.cfg.model_name!r} has no Hugging Face counterpart and cannot be "
            "saved; start from a Hugging Face model, with load_model or from_hf"
        )
    return source


def _layout(
    model: Model,
) -> tuple[dict[str, nn.Parameter], hf_weights.Rearrangement]:
    """The parameters that are saved, and where they lie in the Hugging Face model."""
    config = source_of(model).config
    return backend_of(model).saved_parameters(model, config)


def _checked_card(model: nn.Module, gate: GateCard | None) -> GateCard | None:
    if is_top_k(model):
        raise ValueError(
            "the folder could not say that the model keeps its highest scores only; save the model "
            "without add_top_k and put the mask on after loading"
        )
    if not is_gated(model):
        if gate is not None:
            raise ValueError("a gate card was given, but the model has no gate; add_gate first")
        return None
    if gate is None:
        return GateCard(bias=gate_bias(model), versions=versions())
    if gate.bias != gate_bias(model):
        raise ValueError(
            f"the gate card has bias {gate.bias}, the model's gate {gate_bias(model)}; they must "
            "be the same"
        )
    return gate


def check_replaceable(folder: Path) -> None:
    """Refuses a folder to write a model into that holds anything but a model.

    Raises:
        ValueError: it does, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; give a folder for the model")
    held = sorted(folder.iterdir()) if folder.is_dir() else []
    foreign = [p.name for p in held if not any(p.match(pattern) for pattern in MODEL_FILES)]
    is_model = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    if foreign or (held and not is_model):
        raise ValueError(
            f"the folder {str(folder)!r} is not replaced, because it holds more than a model "
            f"({', '.join(foreign[:5]) or 'no config.json'}); give a new or empty folder"
        )
