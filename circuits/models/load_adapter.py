"""The Hugging Face model that an adapter makes of its base."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from circuits.gate.card import find_gate_card
from circuits.gate.gate import is_gated
from circuits.models.adapter import ADAPTER_CONFIG, base_of, merge_adapter, read_adapter
from circuits.models.backend import Model, backend_of
from circuits.models.config_file import CONFIG_FILE, check_sizes, hf_config, read_config_file
from circuits.models.gguf_file import find_gguf, open_gguf, read_gguf_model, read_gguf_tokenizer
from circuits.models.hf_files import read_weights
from circuits.models.hf_weights import to_hf_model
from circuits.models.names import CHECKPOINT_FILE, FETCHED, find_folder, is_adapter
from circuits.models.tokenizer_files import read_tokenizer
from circuits.models.weight_files import held_by, read_headers
from circuits.reading import is_there, refused_as

HFParts = tuple[PreTrainedModel, PreTrainedTokenizerBase | None]
"""A Hugging Face model and its tokenizer."""


def read_hf_folder(folder: Path, name: str, dtype: torch.dtype, build: ModuleType) -> HFParts:
    """Returns what a Hugging Face folder holds; what is wrong is said before weights are read."""
    raw, where = read_config_file(folder), str(folder / CONFIG_FILE)
    d_vocab = build.read_config(raw, dtype, name, where).d_vocab
    config = hf_config(raw, where)
    held = held_by(read_headers(folder), f"the weights in {folder}")
    check_sizes(raw, held, where)
    tokenizer = read_tokenizer(folder, d_vocab)
    return read_weights(folder, config, dtype, held), tokenizer


def read_gguf(path: Path, dtype: torch.dtype, build: ModuleType) -> HFParts:
    """Returns what a GGUF file holds; what is wrong is said before the weights are read."""
    file = open_gguf(path)
    build.read_config(file.raw, dtype, path.name, str(path))
    return read_gguf_model(file, dtype), read_gguf_tokenizer(file)


def read_adapted(
    folder: Path,
    base: str | Path | None,
    dtype: torch.dtype,
    build: ModuleType,
    load: Callable[[str | Path], Model],
) -> HFParts:
    """Returns the base model of an adapter with the updates added, which is done in float32.

    Args:
        folder: The adapter's folder.
        base: The base model; None for the one that the adapter names.
        dtype: The dtype of what is returned.
        build: One of the modules `build_hooked` and `build_bridge`.
        load: Loads a model in float32, where its files are not those of Hugging Face.

    Raises:
        ValueError: an adapter that is not read, or that is one for another model.
        FileNotFoundError: the base model is not there.
    """
    adapter = read_adapter(folder)
    with adapter_base(folder, base) as named:
        hf_model, tokenizer = _read_base(named, build, load)
    merge_adapter(hf_model, adapter, str(named))
    for weight in hf_model.parameters():  # not buffers: rotations stay in full precision
        weight.data = weight.data.to(dtype)
    hf_model.config.dtype = dtype
    return hf_model, tokenizer


@contextlib.contextmanager
def adapter_base(folder: Path, base: str | Path | None) -> Iterator[str | Path]:
    """Gives the name or folder of an adapter's base model: `base`, or else what the adapter says.

    What is wrong with it inside the context is said with what to give instead.

    Raises:
        ValueError: the adapter names none, or it is not a whole dense model.
        FileNotFoundError: it is not there.
    """
    named = base_of(folder) if base is None else base
    what_to_give = (
        "give the model that it was made from, load_model(folder, base=...), or write its name or "
        f"folder into {ADAPTER_CONFIG} (base_model_name_or_path)"
    )
    if not str(named):
        raise ValueError(f"the adapter {folder} names no base model; {what_to_give}")
    try:
        _check_base(named)
        yield named
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and named in FETCHED:  # which says what to do
            raise FileNotFoundError(f"{folder} is an adapter, and {error}") from error
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(
            f"{folder} is an adapter of the model {str(named)[:300]!r}, which cannot be loaded "
            f"({error}); {what_to_give}"
        ) from error


def _check_base(base: str | Path) -> None:
    folder = None if find_gguf(base) else find_folder(base)
    if folder is None:
        return
    # Its sum would not be the same to the bit on every machine, and its digest not either.
    if is_adapter(folder):
        raise ValueError(f"{base} is an adapter itself; an adapter is put on a whole model")
    if find_gate_card(folder) is not None:
        raise ValueError(f"{base} is gated; an adapter is put on a dense model")


def _read_base(base: str | Path, build: ModuleType, load: Callable[[str | Path], Model]) -> HFParts:
    gguf = find_gguf(base)
    if gguf is not None:
        return read_gguf(gguf, torch.float32, build)
    folder = find_folder(base)
    if folder is not None and not is_there(folder / CHECKPOINT_FILE):
        return read_hf_folder(folder, str(base), torch.float32, build)
    model: Any = load(base)
    if is_gated(model):
        raise ValueError(f"{base} is gated; an adapter is put on a dense model")
    source = getattr(model, "hf_source", None)
    if source is None:
        raise ValueError(f"{base} has no Hugging Face counterpart, to which an adapter is added")
    layout = backend_of(model).saved_parameters(model, source.config)
    found = to_hf_model(*layout, source.config)
    # That one has no memory for its buffers.
    with torch.random.fork_rng(devices=[]), refused_as(str(base), "transformers cannot run it"):
        hf_model = AutoModelForCausalLM.from_config(found.config, trust_remote_code=False)
        hf_model.load_state_dict(dict(found.named_parameters()), strict=False)
    return hf_model.eval(), source.tokenizer
