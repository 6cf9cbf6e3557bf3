"""Models: loading, saving, and the hook flags that attribution needs.

This is the one place that turns a name into a HookedTransformer and a HookedTransformer into
files. A model on disk is an ordinary Hugging Face folder; a sparse one has a `gate.json` beside
it, read here as a `GateCard`. Weights are never folded or centred: a loaded model computes what
its file says, and what it computes can be saved again (circuits/hf_weights.py holds the way back).

A model remembers the Hugging Face config and tokenizer it came from in `model.hf_source`; without
one (a model built by hand, a checkpoint with a config of HookedTransformer's own) it runs but
cannot be saved.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib.metadata
import importlib.resources
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.loading_from_pretrained import (
    get_official_model_name,
    get_pretrained_state_dict,
    make_model_alias_map,
)
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from circuits import hf_weights
from circuits.gate import add_gate, gate_bias, is_gated
from circuits.gate_card import GATE_FILE, GateCard, number, read_json
from circuits.hooked import (
    check_same_logits,
    hf_config,
    hooked_config,
    hooked_model,
    is_weight,
    quiet_hooked_transformer,
    quiet_transformers,
    refuse_misfits,
)
from circuits.top_k import is_top_k

EMBEDDED = ("dense", "sparse", "dense-finetuned", "sparse-seed1", "sparse-seed2")
"""The models shipped inside the package: the pair, its control, and twins from other seeds."""

CHECKPOINT_FILE = "final.pth"

# What a folder that save_model may replace can hold: the files of a Hugging Face model.
_MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "gate.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
]


@dataclass(frozen=True)
class HFSource:
    """The Hugging Face config and tokenizer that a model is saved with."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None


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


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> HookedTransformer:
    """Returns a model in evaluation mode, gated if it is a sparse one, its weights unprocessed.

    `name_or_path` is read in this order:

    - `dense` or `sparse`, the embedded pair, or beside it `dense-finetuned`, `sparse-seed1` and
      `sparse-seed2` (write `./dense` for a folder of that name);
    - a Hugging Face folder: read without any network;
    - a folder with `config.json` and `final.pth`, the published form of HookedTransformer
      weights: gated as its `gate.json` says; else as its config says (`gate_bias`,
      `sparse_attention` or `attention_type`); else gated with bias 0, unless the name of its
      folder or hub repository begins with "dense";
    - a name that TransformerLens knows, such as `gpt2`;
    - a hub repository `owner/name` with either kind of files.

    Text is tokenized with the begin-of-sequence token in front (`default_prepend_bos` is True)
    for every architecture. Files in lower precision are converted to `dtype`.

    Raises:
        ValueError: an unknown name, device or dtype; files that are damaged or do not fit.
        FileNotFoundError: no such folder, or a hub that cannot be reached.
    """
    target = _checked_device(device)
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    folder = find_folder(name_or_path)
    if folder is None:
        model = _load_hub_model(str(name_or_path), dtype)
    else:
        name = str(name_or_path)
        card = GateCard.load(folder) if (folder / GATE_FILE).is_file() else None
        if (folder / CHECKPOINT_FILE).is_file():
            model = _load_checkpoint(folder, name, dtype)
            bias = card.bias if card else _published_bias(read_json(folder / "config.json"), name)
        else:
            model = _load_hf_folder(folder, dtype)
            bias = card.bias if card else None
        if bias is not None:
            add_gate(model, bias)
    model.to(target, print_details=False)
    return model.eval()


def tokenizer_of(model: HookedTransformer | TransformerBridge) -> PreTrainedTokenizerBase:
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
) -> HookedTransformer:
    """Returns the HookedTransformer with the weights of a Hugging Face model, unprocessed.

    It is in the model's own dtype and in evaluation mode. TransformerLens reads some configs
    wrongly without a word (a rotary base it does not know), so both models are run on a few
    tokens and must agree. State changed: `hf_model` is put on the CPU.

    Raises:
        ValueError: TransformerLens does not know the architecture, or reads it differently.
    """
    dtype = hf_model.dtype
    cfg = hooked_config(hf_model.config.to_dict(), dtype, name)
    with torch.no_grad():
        # The weights are at hand, so the name is only compared with names of special cases.
        state = get_pretrained_state_dict(os.curdir, cfg, hf_model.cpu(), dtype=dtype)
    model = hooked_model(cfg, state, tokenizer, f"TransformerLens' reading of {name!r}")
    check_same_logits(model, hf_model, name)
    model.hf_source = HFSource(hf_model.config, tokenizer)  # pyright: ignore
    return model


def copy_model(model: HookedTransformer) -> HookedTransformer:
    """Returns a copy with weights of its own; the tokenizer and `hf_source` are shared."""
    shared: list[Any] = [model.tokenizer, getattr(model, "hf_source", None)]
    return copy.deepcopy(model, {id(value): value for value in shared})


def check_saveable(model: HookedTransformer) -> None:
    """Checks that `save_model` can write this model; call it before a long training.

    Raises:
        ValueError: the model has no Hugging Face counterpart, or there is no way back to it.
    """
    hf_weights.learn_rearrangement(model, _source(model).config)


def frozen_parameters(model: HookedTransformer) -> set[str]:
    """Returns the names of parameters that a Hugging Face model has no place for.

    They hold constants (GPT-2's zero `unembed.b_U`, the zero biases of Llama) and must not be
    trained; `save_model` refuses a model in which they moved.
    """
    return set(hf_weights.learn_rearrangement(model, _source(model).config).constants)


def save_model(
    model: HookedTransformer,
    folder: str | Path,
    *,
    gate: GateCard | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes `model` as a Hugging Face folder that any tool opens, with `gate.json` if gated.

    The folder is written beside its place and renamed, so a crash leaves no half-written one. An
    existing folder is replaced only if it holds nothing but a model. Word embeddings that were
    tied and have drifted apart in training are saved untied. In float32, loading gives back the
    same logits to the bit.

    Raises:
        ValueError: the model cannot be saved (see `check_saveable`), the card does not fit the
            model, or `folder` holds other things.
    """
    folder = Path(folder)
    gate = _checked_card(model, gate)
    _check_replaceable(folder)
    source = _source(model)
    hf_model = hf_weights.to_hf_model(model, source.config, dtype=dtype)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with quiet_transformers():
            hf_model.save_pretrained(beside)
            if source.tokenizer is not None:
                source.tokenizer.save_pretrained(beside)
        if gate is not None:
            gate.save(beside)
        _put_in_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def component_hooks(
    model: HookedTransformer | TransformerBridge, *, split_heads: bool = True
) -> Iterator[None]:
    """Gives every head its own q, k and v and every MLP its `hook_mlp_in`.

    Grouped keys and values are handed out to the heads that share them. With `split_heads` every
    head also has its own `hook_q_input`, `hook_k_input` and `hook_v_input`, which costs a copy of
    the residual stream and a layer norm for each. The flags return to what they were, also after
    an exception.

    Raises:
        ValueError: a TransformerBridge with grouped keys and values.
    """
    grouped = model.cfg.n_key_value_heads not in (None, model.cfg.n_heads)
    if grouped and not hasattr(model, "set_ungroup_grouped_query_attention"):
        raise ValueError(
            f"{model.cfg.model_name} shares keys and values between heads, which a "
            "TransformerBridge cannot take apart; load the model with circuits.load_model"
        )
    flags: dict[str, Callable[[bool], None]] = {}
    if split_heads:
        flags["use_split_qkv_input"] = model.set_use_split_qkv_input
    if not model.cfg.attn_only:
        flags["use_hook_mlp_in"] = model.set_use_hook_mlp_in
    if grouped:
        flags["ungroup_grouped_query_attention"] = model.set_ungroup_grouped_query_attention
    before = {name: getattr(model.cfg, name) for name in flags}
    try:
        for switch in flags.values():
            switch(True)
        yield
    finally:
        for name, switch in flags.items():
            switch(before[name])


def model_info(name_or_path: str | Path) -> ModelInfo:
    """Returns what the config of a model says, for every name that `load_model` takes.

    Raises:
        ValueError: an unknown name, or a config that cannot be read.
        FileNotFoundError: no such folder, or a hub that cannot be reached.
    """
    name = str(name_or_path)
    folder = find_folder(name_or_path)
    if folder is None:
        with _hub_errors(name):
            raw = AutoConfig.from_pretrained(get_official_model_name(name)).to_dict()
    else:
        raw = read_json(folder / "config.json")
    cfg = hooked_config(raw, torch.float32, name)
    gate = None
    if folder is not None and (folder / CHECKPOINT_FILE).is_file():
        state = _read_checkpoint(folder / CHECKPOINT_FILE)
        n_parameters = sum(t.numel() for key, t in state.items() if is_weight(key))
        bias = _published_bias(raw, name)
        gate = None if bias is None else GateCard(bias=bias)
    else:
        config = hf_config(raw)
        tied = bool(config.tie_word_embeddings)
        n_parameters = hf_weights.skeleton(config, tied=tied).num_parameters()
    if folder is not None and (folder / GATE_FILE).is_file():
        gate = GateCard.load(folder)
    return ModelInfo(
        name=name,
        architecture=cfg.original_architecture or "HookedTransformer",
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        d_model=cfg.d_model,
        d_vocab=cfg.d_vocab,
        n_ctx=cfg.n_ctx,
        n_parameters=n_parameters,
        gate=gate,
    )


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


# ---- finding -------------------------------------------------------------------------------


def find_folder(name_or_path: str | Path) -> Path | None:
    """Returns the local folder of a model, or None for a name that TransformerLens fetches."""
    name = str(name_or_path)
    if name in EMBEDDED and not isinstance(name_or_path, Path):
        folder = Path(str(importlib.resources.files("circuits") / "assets" / name))
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"the embedded model {name!r} is missing from this installation (looked in "
                f"{folder}); install circuits again, or give a folder or a hub name"
            )
        return folder
    path = Path(name_or_path).expanduser()
    if path.is_file():
        raise ValueError(f"{name!r} is a file; give the model's folder, {str(path.parent)!r}")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"the folder {name!r} holds no config.json; a model folder holds config.json and "
                f"model.safetensors (Hugging Face) or {CHECKPOINT_FILE}"
            )
        return path
    if name.lower() in make_model_alias_map():
        return None
    is_repository = name.count("/") == 1 and all(name.split("/")) and name[0] not in "./~"
    if isinstance(name_or_path, str) and is_repository:
        with _hub_errors(name):
            return Path(snapshot_download(name, allow_patterns=[*_MODEL_FILES, CHECKPOINT_FILE]))
    if "/" in name or os.sep in name or isinstance(name_or_path, Path):
        raise FileNotFoundError(f"there is no folder {name!r}")
    near = difflib.get_close_matches(name, [*EMBEDDED, *make_model_alias_map()], n=3)
    raise ValueError(
        f"unknown model {name!r}; the embedded models are {', '.join(EMBEDDED)}; anything else "
        "is a folder or a hub name"
        + (f"; did you mean {', '.join(repr(match) for match in near)}?" if near else "")
    )


@contextlib.contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # transformers and huggingface_hub raise only kinds of OSError
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"could not get the model {name!r} from the Hugging Face hub ({reason}); check the "
            "name and the network, or download it elsewhere and give its folder"
        ) from error


def _checked_device(device: str | torch.device) -> torch.device:
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


def _load_hf_folder(folder: Path, dtype: torch.dtype) -> HookedTransformer:
    config = hf_config(read_json(folder / "config.json"))
    hooked_config(config.to_dict(), dtype, str(folder))  # refuse before reading the weights
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, all at once
            )
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(
            f"the weights in {folder} cannot be read ({error}); the file is missing, cut off or "
            "damaged: copy or download it again"
        ) from error
    hf_model, report = loaded
    misfits = [
        f"{name} is {list(got)} in the file, {list(wanted)} by the config"
        for name, got, wanted in sorted(report["mismatched_keys"])
    ]
    misfits += [f"{name} is missing from the file" for name in sorted(report["missing_keys"])]
    misfits += [f"{name} is not in the model" for name in sorted(report["unexpected_keys"])]
    refuse_misfits(misfits, f"the weights in {folder} do not fit its config.json")
    return from_hf(hf_model, _local_tokenizer(folder), name=folder.name)


def _load_hub_model(name: str, dtype: torch.dtype) -> HookedTransformer:
    official = get_official_model_name(name)
    with _hub_errors(name), quiet_transformers(), quiet_hooked_transformer():
        model = HookedTransformer.from_pretrained_no_processing(
            name, device="cpu", dtype=dtype, default_prepend_bos=True
        )
        # Some names stand for TransformerLens' own files, which have no Hugging Face config.
        with contextlib.suppress(OSError, ValueError):
            config = AutoConfig.from_pretrained(official)
            if model.cfg.positional_embedding_type == "standard":
                # TransformerLens cuts the position table of some models.
                config.max_position_embeddings = model.cfg.n_ctx
            tokenizer = AutoTokenizer.from_pretrained(official)
            model.hf_source = HFSource(config, tokenizer)  # pyright: ignore
    return model


def _load_checkpoint(folder: Path, name: str, dtype: torch.dtype) -> HookedTransformer:
    """Returns the model in a folder of `config.json` and `final.pth`.

    The config is HookedTransformer's own, or a Hugging Face one; then the number of tokens is
    that of the weights, since the published GPT-2 pads its vocabulary to 50304.
    """
    raw = read_json(folder / "config.json")
    state = _read_checkpoint(folder / CHECKPOINT_FILE)
    if "model_type" in raw and "embed.W_E" in state:
        raw["vocab_size"] = state["embed.W_E"].shape[0]
    cfg = hooked_config(raw, dtype, name)
    tokenizer = _local_tokenizer(folder)
    if tokenizer is None:
        tokenizer_name = raw.get("tokenizer_name") or raw.get("model_type")
        if tokenizer_name in ("gpt2", raw.get("tokenizer_name")) and tokenizer_name is not None:
            with _hub_errors(f"{tokenizer_name} (the tokenizer of {name})"):
                tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    where = f"the weights in {folder / CHECKPOINT_FILE}"
    model = hooked_model(cfg, state, tokenizer, where)
    if "model_type" in raw:
        model.hf_source = HFSource(hf_config(raw), tokenizer)  # pyright: ignore
    return model


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or an unsafe file
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path} cannot be read as plain tensors ({reason}); it is cut off, damaged, or holds "
            "code, which is never run: copy or download it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{path} must hold a dict of tensors named as in HookedTransformer")
    return state


def _published_bias(raw: dict[str, Any], name: str) -> float | None:
    """Returns the gate bias of a published checkpoint, None for a dense one; see `load_model`."""
    if raw.get("gate_bias") is not None:
        return number(raw["gate_bias"], "the entry gate_bias of config.json")
    if "sparse_attention" in raw:
        return 0.0 if raw["sparse_attention"] else None
    if "attention_type" in raw:
        return 0.0 if "sparse" in str(raw["attention_type"]).lower() else None
    return None if Path(name).name.lower().startswith("dense") else 0.0


def _local_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer in a folder; None if there is none, the model then takes tokens."""
    if not any((folder / name).is_file() for name in _MODEL_FILES if name.startswith("tokenizer")):
        return None
    with quiet_transformers():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


# ---- saving --------------------------------------------------------------------------------


def _source(model: HookedTransformer) -> HFSource:
    source = getattr(model, "hf_source", None)
    if source is None:
        raise ValueError(
            f"the model {model.cfg.model_name!r} has no Hugging Face counterpart and cannot be "
            "saved; start from a Hugging Face model, with load_model or from_hf"
        )
    return source


def _checked_card(model: HookedTransformer, gate: GateCard | None) -> GateCard | None:
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


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; give a folder for the model")
    held = sorted(folder.iterdir()) if folder.is_dir() else []
    foreign = [p.name for p in held if not any(p.match(pattern) for pattern in _MODEL_FILES)]
    if foreign or (held and not (folder / "config.json").is_file()):
        raise ValueError(
            f"the folder {str(folder)!r} is not replaced, because it holds more than a model "
            f"({', '.join(foreign[:5]) or 'no config.json'}); give a new or empty folder"
        )


def _put_in_place(beside: Path, folder: Path) -> None:
    """Renames `beside` to `folder` when its files are on disk, replacing an older model."""
    beside.chmod(0o755)  # mkdtemp makes it private
    for path in [*beside.iterdir(), beside]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if not folder.exists():
        beside.rename(folder)
        return
    # A folder with files cannot be renamed over: for a moment the old one has another name.
    older = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(older)
    try:
        beside.rename(folder)
    except BaseException:
        older.rename(folder)
        raise
    shutil.rmtree(older, ignore_errors=True)
