"""Adapters: low-rank updates in a small file of their own, as the `peft` package writes them.

A folder holds `adapter_config.json`, `adapter_model.safetensors` with two factors A and B for each
updated matrix, and no other weights: the model is W + scale B A of a base model (LoRA, Hu et al.
2021, arXiv 2106.09685), scale = alpha / rank or, rank-stabilised, alpha / sqrt(rank) (Kalajdzievski
2023, arXiv 2312.03732). Next to them lie `gate.json` where the model is gated, and `base.json` with
a digest of the base's weights, which other programs do not read. An adapter that computes more than
this is refused: to leave a part out would make another model of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from circuits.models.hf_files import refuse_misfits
from circuits.models.names import is_adapter
from circuits.reading import is_there, number, read_json, shown

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_FILE = "base.json"
DIGEST = "weights_sha256"
"""The entry of `base.json` with `weights_digest` of the base model."""

PREFIX = "base_model.model."
"""What peft puts before the names of the base model's modules."""

# Entries of adapter_config.json that are read here, or that change nothing once it is trained. Any
# other one that is set to something changes what is computed, now or in a later peft.
_READ = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora")
_READ += ("rank_pattern", "alpha_pattern", "target_modules", "bias", "revision")
_READ += ("init_lora_weights",)
_HARMLESS = ("auto_mapping", "peft_version", "inference_mode", "lora_dropout", "fan_in_fan_out")
_HARMLESS += ("exclude_modules", "layers_to_transform", "layers_pattern")
_HARMLESS += ("megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying")
# The entries of one value only, or of a few; PiSSA and its like also change the base's weights.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none", None),
    "revision": ("main", "", None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
    "use_rslora": (True, False, None),
}
_MERGED = "merge it with peft (merge_and_unload), save the whole model, and give that folder"


@dataclass(frozen=True)
class Factors:
    """The update of one matrix of a Hugging Face model: scale B A, outputs by inputs."""

    a: Float[Tensor, "rank d_in"]
    b: Float[Tensor, "d_out rank"]
    scale: float


@dataclass(frozen=True)
class Adapter:
    """What an adapter's folder holds.

    Attributes:
        folder: The folder.
        digest: `weights_digest` of the base model, None where it is not known.
        factors: The updates, by the names of the base model's modules.
        targets: The ends of names of the modules that must have an update; None if not known.
    """

    folder: Path
    digest: str | None
    factors: Mapping[str, Factors]
    targets: tuple[str, ...] | None


def base_of(folder: Path) -> str:
    """Returns the name or folder of the base model that an adapter names; empty if it has none.

    Raises:
        ValueError: `adapter_config.json` cannot be read, or is of an adapter that is not read here.
    """
    return str(_config(folder).get("base_model_name_or_path") or "")


def read_adapter(folder: Path) -> Adapter:
    """Returns what an adapter's folder holds, checked as far as it can be without its base.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a damaged file, an adapter that computes more than a low-rank update, or factors
            that do not fit each other or the config.
    """
    config = _config(folder)
    pairs = _pairs(folder / ADAPTER_WEIGHTS)
    where, factors = folder / ADAPTER_CONFIG, {}
    for name, (a, b) in pairs.items():
        rank = _of_pattern(config, "rank_pattern", "r", name, where)
        alpha = _of_pattern(config, "alpha_pattern", "lora_alpha", name, where)
        if rank < 1 or rank != int(rank):
            raise ValueError(f"{where}: the rank of {name} is {rank:g}; it must be at least 1")
        if [a.shape[0], b.shape[1]] != [rank, rank]:
            raise ValueError(
                f"{folder / ADAPTER_WEIGHTS}: the factors of {name} are {list(a.shape)} and "
                f"{list(b.shape)}, but its rank is {rank:g} by {ADAPTER_CONFIG}"
            )
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        factors[name] = Factors(a, b, scale)
    named = config.get("target_modules")
    is_part = any(config.get(key) for key in ("layers_to_transform", "exclude_modules"))
    targets = tuple(named) if isinstance(named, list) and not is_part else None
    digest = None
    if is_there(folder / BASE_FILE):
        digest = read_json(folder / BASE_FILE).get(DIGEST)
        if not isinstance(digest, str):
            raise ValueError(f"{folder / BASE_FILE}: {DIGEST} is {shown(digest)}; it must be text")
    return Adapter(folder, digest, factors, targets)


@torch.no_grad()
def merge_adapter(hf_model: PreTrainedModel, adapter: Adapter, base: str) -> None:
    """Adds an adapter's updates to the weights of its base model, in place.

    Args:
        hf_model: The base model, in float32.
        adapter: The adapter.
        base: What errors call the base model.

    Raises:
        ValueError: it is an adapter for another model.
    """
    modules = dict(hf_model.named_modules())
    matrices = {n: m for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D)}
    tied = hf_model.get_input_embeddings().weight
    misfits = []
    for name, factors in adapter.factors.items():
        if name not in matrices:
            misfits.append(f"{base} has no matrix {name}")
        elif matrices[name].weight is tied:
            misfits.append(f"{name} is the word embedding too in {base}")
        elif (wanted := _shape(matrices[name])) != _shape(factors):
            misfits.append(f"{name} has an update of {_shape(factors)}, {wanted} in {base}")
    if adapter.targets is not None:
        targets = {n for n in matrices if any(_ends_with(n, key) for key in adapter.targets)}
        misfits += [f"{name} has no factors" for name in sorted(targets - set(adapter.factors))]
        unnamed = sorted(set(adapter.factors) & set(matrices) - targets)
        misfits += [f"{name} is not in target_modules" for name in unnamed]
    refuse_misfits(misfits, f"the adapter {adapter.folder} does not fit its base model")
    if adapter.digest is not None and (found := weights_digest(hf_model)) != adapter.digest:
        raise ValueError(
            f"{adapter.folder} is an adapter for other weights than those of {base}: its base has "
            f"the SHA-256 digest {adapter.digest[:12]}..., these have {found[:12]}...; give the "
            "model that it was made from: load_model(folder, base=...)"
        )
    for name, factors in adapter.factors.items():
        module = matrices[name]
        update = factors.scale * factors.b.float() @ factors.a.float()
        module.weight.add_(update.T if isinstance(module, Conv1D) else update)


def weights_digest(hf_model: nn.Module) -> str:
    """Returns the SHA-256 digest of a model's parameters, in float32 and in order of their names.

    What is tied counts once, so the digest does not depend on how a file holds it.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(hf_model.named_parameters()):
        digest.update(f"{name} {list(weight.shape)}\n".encode())
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _config(folder: Path) -> dict[str, Any]:
    """The entries of `adapter_config.json`, if they describe a plain low-rank update."""
    if not is_adapter(folder):
        raise FileNotFoundError(f"the folder {str(folder)!r} holds no {ADAPTER_CONFIG}")
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    for key, allowed in _ALLOWED.items():
        value = config.get(key)
        if not any(
            value is choice or (isinstance(choice, str) and value == choice) for choice in allowed
        ):
            known = ", ".join(repr(choice) for choice in allowed if choice)
            raise ValueError(f"{path}: {key} is {shown(value)}; only {known} is read: {_MERGED}")
    for key, value in config.items():
        if value and key not in _READ + _HARMLESS:
            raise ValueError(
                f"{path}: {key} is {shown(value)}, by which peft computes more than a low-rank "
                f"update; this is not read: {_MERGED}"
            )
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise ValueError(f"{path}: base_model_name_or_path is {shown(base)}; it must be text")
    named = config.get("target_modules")
    if isinstance(named, list) and not all(isinstance(name, str) for name in named):
        raise ValueError(f"{path}: target_modules is {shown(named)}; it must be a list of names")
    return config


def _pairs(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors in a file, by the names of the modules that they belong to."""
    if not is_there(path):
        raise FileNotFoundError(f"there is no file {path}; copy or download the adapter again")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); the file is cut off or damaged: copy or download it "
            "again"
        ) from error
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, leaf = key.removeprefix(PREFIX).rpartition(".lora_")
        if not key.startswith(PREFIX) or not name or leaf not in ("A.weight", "B.weight"):
            raise ValueError(
                f"{path}: {key!r} is not a factor of a matrix ({PREFIX}<module>.lora_A.weight or "
                f"lora_B.weight); such an adapter is not read: {_MERGED}"
            )
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise ValueError(
                f"{path}: {key!r} is a tensor of {list(tensor.shape)}, {tensor.dtype}; a factor is "
                "a matrix of floats"
            )
        found.setdefault(name, {})[leaf[0]] = tensor
    for name, pair in found.items():
        if missing := {"A", "B"} - set(pair):
            raise ValueError(
                f"{path}: {name} has no lora_{missing.pop()}; the file is not whole: copy or "
                "download it again"
            )
    if not found:
        raise ValueError(f"{path} holds no factors, so it changes nothing")
    return {name: (pair["A"], pair["B"]) for name, pair in found.items()}


def _of_pattern(config: dict[str, Any], pattern: str, key: str, name: str, where: Path) -> float:
    """What holds for one module: the entry of the first name that its own ends with, or `key`."""
    entries = config.get(pattern) or {}
    if not isinstance(entries, dict):
        raise ValueError(f"{where}: {pattern} is {shown(entries)}; it must be an object")
    for end, value in entries.items():
        if not end.replace(".", "").replace("_", "").isalnum():
            raise ValueError(
                f"{where}: {pattern} has the entry {shown(end)}; only names of modules are read, "
                f"no regular expressions: {_MERGED}"
            )
        if _ends_with(name, end):
            return number(value, f"{where}: {pattern}: {end}")
    return number(config.get(key), f"{where}: {key}")


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _shape(held: Factors | nn.Module) -> list[int]:
    """Outputs and inputs."""
    if isinstance(held, Factors):
        return [held.b.shape[0], held.a.shape[1]]
    shape = list(held.weight.shape)  # pyright: ignore
    return shape[::-1] if isinstance(held, Conv1D) else shape
