"""Models: loading.

This is the one place that turns a name into a hooked model. It is a HookedTransformer, or with
TransformerLens 4, which has none, a TransformerBridge. A model on disk is an ordinary Hugging Face
folder; a sparse one has a `gate.json` next to it, read here as a `GateCard`. Weights are never
folded or centred: a loaded model computes what its file says, and what it computes can be saved
again (circuits/models/saving.py).

A model remembers the Hugging Face config and tokenizer it came from in `model.hf_source`; without
one (a model built by hand, a checkpoint with a config of HookedTransformer's own) it runs but
cannot be saved.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import platform
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from circuits.gate.card import find_gate_card
from circuits.gate.gate import add_gate
from circuits.models import build_bridge
from circuits.models.backend import HAS_HOOKED_TRANSFORMER, Model, backend_of
from circuits.models.config_file import (
    CONFIG_FILE,
    read_config_file,
)
from circuits.models.gguf_file import find_gguf
from circuits.models.load_adapter import (
    HFParts,
    read_adapted,
    read_gguf,
    read_hf_folder,
)
from circuits.models.load_checkpoint import checkpoint_gate, load_checkpoint
from circuits.models.names import (
    CHECKPOINT_FILE,
    find_folder,
    hub_errors,
    is_adapter,
    lasting_name,
)
from circuits.models.tokenizer_files import check_vocabulary
from circuits.reading import is_there, refused_as

builder = importlib.import_module(
    "circuits.models.build_hooked" if HAS_HOOKED_TRANSFORMER else "circuits.models.build_bridge"
)
"""What makes models of the class that the installed TransformerLens prefers."""

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ModelT = TypeVar("ModelT", bound=nn.Module)


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    base: str | Path | None = None,
) -> Model:
    """Returns a model in evaluation mode, gated if it is a sparse one, its weights unprocessed.

    It is a HookedTransformer, or with TransformerLens 4 a TransformerBridge.

    `name_or_path` is read in this order:

    - `dense` or `sparse`, the embedded pair, or `dense-finetuned`, `sparse-seed1` and
      `sparse-seed2`; `code-dense` or `code-sparse`, a pair of models of Python code (write
      `./dense` for a folder of that name);
    - `smollm2`, once `circuits models get smollm2` has fetched it; and then `smollm2-sparse` and
      `smollm2-control`, its embedded sparse twin and control, which are adapters of it;
    - a GGUF file, `x.gguf`, of an architecture that transformers reads: dequantised;
    - a Hugging Face folder: read without any network;
    - the folder of an adapter (`adapter_config.json`), as `peft` and `circuits train --lora-rank`
      write them: its base model, loaded by the name that stands there or as `base`, with the
      low-rank updates added in float32;
    - a folder with `config.json` and `final.pth`, the published form of HookedTransformer
      weights, the config HookedTransformer's, Hugging Face's or both in one: gated as its
      `gate.json` says; else as its config says (`use_sparse_attn`, `gate_bias`,
      `sparse_attention` or `attention_type`); a config that says nothing is a dense model's,
      unless the name of its folder or hub repository has "sparse" in it;
    - a name that TransformerLens knows, such as `gpt2`;
    - a hub repository `owner/name` with either kind of files.

    Text is tokenized with the begin-of-sequence token in front (`default_prepend_bos` is True)
    for every architecture. Files in lower precision are converted to `dtype`.

    An adapter says in its `base.json` by a digest which weights it was made for; others are
    refused, whatever `base` is. Where there is no such file, only names and shapes are checked.

    With `trust_remote_code`, Python code from the hub's repository of a name that TransformerLens
    knows may be run. From a folder, and from `owner/name`, no code is run in any case.

    Raises:
        ValueError: an unknown name, device or dtype; files that are damaged or do not fit; a name
            that TransformerLens loads with code from the hub, without `trust_remote_code`.
        FileNotFoundError: no such folder, or a hub that cannot be reached.
    """
    return _load(name_or_path, device, dtype, trust_remote_code, builder, base)


def as_model(model: Model | PreTrainedModel | str | Path) -> Model:
    """Returns a model that can be run here, for whatever a user has of it.

    Args:
        model: A model as `load_model` returns it, which stays as it is; a name or folder for
            `load_model`; or a Hugging Face model, whose tokenizer is read from where it came from
            and which is copied (`from_hf` takes a tokenizer of your own, and makes no copy).

    Raises:
        ValueError: what is given is none of these, or as `load_model` and `from_hf`.
        FileNotFoundError: as `load_model`.
    """
    if isinstance(model, str | Path):
        return load_model(model)
    if isinstance(model, PreTrainedModel):
        name = model.config.name_or_path
        if not name:
            raise ValueError(
                "this Hugging Face model was made without a name, so its tokenizer is not known; "
                "give circuits.from_hf(model, tokenizer)"
            )
        with hub_errors(f"{name} (the tokenizer of the given model)"):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return from_hf(copy.deepcopy(model), tokenizer, name=Path(name).name).eval()
    if not hasattr(model, "hook_dict"):
        raise ValueError(
            f"a {type(model).__name__} is not a model; give a name, a folder, a HookedTransformer, "
            "a TransformerBridge or a Hugging Face model"
        )
    return model


def load_bridge(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    base: str | Path | None = None,
) -> TransformerBridge:
    """Returns a model as `load_model` does, as a TransformerBridge in every TransformerLens.

    Raises:
        ValueError: as `load_model`; also a checkpoint with a config of HookedTransformer's own,
            which has no Hugging Face model to wrap.
        FileNotFoundError: no such folder, or a hub that cannot be reached.
    """
    return _load(name_or_path, device, dtype, trust_remote_code, build_bridge, base)


def new_model(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None = None) -> Model:
    """Returns a model with random weights, for a dict of TransformerLens' own config."""
    return builder.new_model(config, tokenizer).eval()


def named_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns a model's weights under HookedTransformer's names, to look at or to write into."""
    return backend_of(model).named_weights(model)


def tokenizer_of(model: Model) -> PreTrainedTokenizerBase:
    """Returns the model's tokenizer.

    Raises:
        ValueError: the model has none.
    """
    if model.tokenizer is None:
        raise ValueError(
            f"the model {model.cfg.model_name!r} has no tokenizer, so no prompts can be made for "
            "it; put the tokenizer's files into its folder, or call model.set_tokenizer(...)"
        )
    return model.tokenizer


def from_hf(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str = "custom",
) -> Model:
    """Returns the HookedTransformer with the weights of a Hugging Face model, unprocessed.

    It is in the model's own dtype and in evaluation mode. TransformerLens reads some configs
    wrongly without a word (a rotary base it does not know), so both models are run on a few
    tokens and must agree. State changed: `hf_model` is put on the
    CPU, and wrapped where the result is a TransformerBridge.

    Raises:
        ValueError: TransformerLens does not know the architecture, or reads it differently; or the
            tokenizer gives ids beyond the model's vocabulary.
    """
    check_vocabulary(tokenizer, hf_model.config.vocab_size, f"the tokenizer given with {name!r}")
    return builder.from_hf_model(hf_model, tokenizer, name)


def copy_model(model: ModelT, *, share_weights: bool = False) -> ModelT:
    """Returns a copy with weights of its own; the tokenizer and `hf_source` are shared.

    With `share_weights` it has parameters of its own, but they lie in the memory of the model's.
    """
    backend = backend_of(model)
    backend.forget_activations(model)
    shared: list[Any] = [getattr(model, "tokenizer", None), getattr(model, "hf_source", None)]
    instead: dict[int, Any] = {id(value): value for value in shared}
    if share_weights:
        for weight in model.parameters():
            instead[id(weight)] = nn.Parameter(weight.detach(), weight.requires_grad)
    copied = copy.deepcopy(model, instead)
    backend.own_hooks(copied)
    return copied


def versions() -> dict[str, str]:
    """Returns the versions that decide a result: Python and the packages below and including us."""
    distributions = {
        "torch": "torch",
        "transformer_lens": "transformer-lens",
        "transformers": "transformers",
        "circuits": "sparse-circuits",
    }
    found = {"python": platform.python_version()}
    for package, distribution in distributions.items():
        try:
            found[package] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout, not installed
            found[package] = "0"
    return found


def checked_device(device: str | torch.device) -> torch.device:
    """Returns a device that is here.

    Raises:
        ValueError: there is none of that name; the text lists those that there are.
    """
    available = ["cpu"]
    available += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    available += ["mps"] if torch.backends.mps.is_available() else []
    try:
        target = torch.device(device)
    except RuntimeError:
        target = None
    if target is None or not any(
        str(target) in (name, name.partition(":")[0]) for name in available
    ):
        raise ValueError(f"device {str(device)!r} is not available; available: {available}")
    return target


# ---- loading -------------------------------------------------------------------------------


def _load(
    name_or_path: str | Path,
    device: str | torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
    build: ModuleType,
    base: str | Path | None,
) -> Any:
    """The model as `build`, one of the modules `build_hooked` and `build_bridge`, makes it."""
    target = checked_device(device)
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    name, gguf = str(name_or_path), find_gguf(name_or_path)
    folder = find_folder(name_or_path) if gguf is None else None
    adapted = folder is not None and is_adapter(folder)
    if base is not None and not adapted:
        raise ValueError(f"{name} is not an adapter, so it has no base model; leave out base=")
    if gguf is not None:
        model = _built(read_gguf(gguf, dtype, build), str(gguf), gguf.stem, build)
    elif folder is None:
        model = build.from_hub(name, dtype, trust_remote_code=trust_remote_code)
    elif adapted:

        def load(whole: str | Path) -> Any:
            return _load(whole, "cpu", torch.float32, trust_remote_code, build, None)

        card = find_gate_card(folder)
        parts = read_adapted(folder, base, dtype, build, load)
        model = _built(parts, str(folder), folder.name, build)
        if card is not None:
            add_gate(model, card.bias)
    else:
        raw = read_config_file(folder)
        if is_there(folder / CHECKPOINT_FILE):
            card = checkpoint_gate(raw, folder, name)
            model = load_checkpoint(folder, raw, name, dtype, build)
        else:
            card = find_gate_card(folder)
            parts = read_hf_folder(folder, name, dtype, build)
            model = _built(parts, str(folder / CONFIG_FILE), folder.name, build)
        if card is not None:
            add_gate(model, card.bias)
    if not adapted and (source := getattr(model, "hf_source", None)) is not None:
        model.hf_source = replace(source, name=lasting_name(name_or_path))
    # By name: TransformerLens would keep the kind of a torch.device, and lose its number.
    model.to(str(target), print_details=False)
    return model.eval()


def _built(parts: HFParts, where: str, name: str, build: ModuleType) -> Any:
    """The model of a Hugging Face model and tokenizer; `where` is what errors call their place."""
    with refused_as(where, "no model can be run by it"):
        return build.from_hf_model(*parts, name)
