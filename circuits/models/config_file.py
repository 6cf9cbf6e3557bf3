"""A model's `config.json`: read, and its sizes checked before anything is built by them.

transformers and TransformerLens believe a config. Asked for 10^9 layers they build layers until
the memory is full; asked for no heads they divide by zero. So the sizes in a config are checked
here first: each alone, then against what the weight files hold (their headers say it, without any
weight being read).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from circuits.reading import read_json, refused_as, shown

CONFIG_FILE = "config.json"

# What transformers' causal models, and HookedTransformer (d_..., n_layers), call sizes.
_LAYERS = ("n_layer", "n_layers", "num_layers", "num_hidden_layers", "num_decoder_layers")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_WIDTHS = tuple(
    "n_embd hidden_size d_model n_head n_heads num_heads num_attention_heads n_key_value_heads "
    "num_key_value_heads n_inner intermediate_size ffn_dim ffn_hidden_size d_mlp d_ff head_dim "
    "d_head d_kv word_embed_proj_dim embedding_size rotary_dim vocab_size d_vocab d_vocab_out "
    "experts_per_token num_experts_per_tok".split()
)
_CONTEXTS = ("n_positions", "n_ctx", "max_position_embeddings", "seq_length", "max_seq_len")

# The least and the most of each. Far above every model there is, and few enough layers to build one
# without its weights in a minute.
_LIMITS = {
    **dict.fromkeys(_LAYERS, (1, 4096)),
    **dict.fromkeys(_EXPERTS, (0, 4096)),  # 0 in a model without experts
    **dict.fromkeys(_WIDTHS, (1, 2**31 - 1)),
    **dict.fromkeys(_CONTEXTS, (1, 2**24)),
    "num_labels": (0, 2**16),  # of classifiers; transformers makes a name for each
}

# What HookedTransformer writes -1 for, "work it out": heads from widths, the vocabulary from the
# tokenizer, outputs from inputs.
_WORKED_OUT = ("n_heads", "d_vocab", "d_vocab_out")

# A model of this many times the numbers in its files does not fit them. Up to here the tensors that
# do not fit are named one by one; word embeddings that are untied from a tied file are twice there.
_TOO_MANY = 8


@dataclass(frozen=True)
class Held:
    """How much the weight files of a model hold.

    Attributes:
        where: What errors call them.
        n_tensors: The number of tensors.
        n_elements: The numbers in all of them.
    """

    where: str
    n_tensors: int
    n_elements: int


def read_config_file(folder: Path) -> dict[str, Any]:
    """Returns what the config of a model's folder says, each size in it checked alone.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: it is not JSON, or a size in it is none.
    """
    path = folder / CONFIG_FILE
    raw = read_json(path)
    check_config(raw, str(path))
    return raw


def is_hooked_config(raw: Mapping[str, Any]) -> bool:
    """Returns whether a config is HookedTransformer's, whatever else it holds besides."""
    sizes = [raw.get(name) for name in ("d_head", "d_model", "n_layers", "n_ctx")]
    return "model_type" not in raw or None not in sizes


def check_config(raw: Mapping[str, Any], where: str) -> None:
    """Refuses a config with sizes that no model has, or with values of the wrong kind.

    Raises:
        ValueError: the error begins with `where` and names the entry, its value, what is allowed.
    """
    for name, (least, most) in _LIMITS.items():
        value = raw.get(name)
        if value is None or (value == -1 and name in _WORKED_OUT and is_hooked_config(raw)):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(
                f"{where}: {name} is {shown(value)}; it must be a whole number from {least} to "
                f"{most:,}"
            )
    for name in ("dtype", "torch_dtype"):
        value = raw.get(name)
        known = isinstance(value, str) and isinstance(
            getattr(torch, value.removeprefix("torch."), None), torch.dtype
        )
        if value is not None and not known:
            raise ValueError(f"{where}: {name} is {shown(value)}; it must be one such as 'float32'")
    names = raw.get("architectures")
    if names is not None and not (
        isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(
            f"{where}: architectures is {shown(names)}; it must be a list of names, or not be there"
        )
    _check_attention_types(raw.get("attention_types"), where)


def check_sizes(raw: Mapping[str, Any], held: Held, where: str) -> None:
    """Refuses a config that asks for more than its weight files can hold.

    Every layer has a tensor of its own, and every width is a side of one.

    Raises:
        ValueError: the error begins with `where`, names the entry and says what the files hold.
    """
    for name in (*_LAYERS, *_WIDTHS):
        value = raw.get(name)
        most = held.n_tensors if name in _LAYERS else held.n_elements
        if isinstance(value, int) and value > most:
            holds = (
                f"{most:,} tensors, less than one a layer"
                if name in _LAYERS
                else f"{most:,} numbers in all"
            )
            raise ValueError(
                f"{where}: {name} is {value}, but {held.where} hold {holds}; config and weights "
                "are not of one model, or one of them is damaged"
            )


def check_total(n_elements: int, held: Held, where: str) -> None:
    """Refuses a model of many more weights than its files hold, before memory is taken for it.

    Raises:
        ValueError: the error begins with `where` and gives both numbers.
    """
    if n_elements > _TOO_MANY * held.n_elements:
        raise ValueError(
            f"{where} describes a model of {n_elements:,} weights, but {held.where} hold "
            f"{held.n_elements:,}; config and weights are not of one model, or one is damaged"
        )


def hf_config(raw: Mapping[str, Any], where: str = CONFIG_FILE) -> PretrainedConfig:
    """Returns the Hugging Face config with its architecture filled in.

    What it says about code to be run (`auto_map`) is left out: no such code is ever fetched or run.

    Raises:
        ValueError: no causal language model that transformers knows, or values that it refuses;
            the error begins with `where`.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{where} names the model_type {shown(model_type)}, which is not a causal "
            "language model "
            "that transformers knows"
        )
    values = {key: value for key, value in raw.items() if key not in ("model_type", "auto_map")}
    with refused_as(where, "transformers refuses it"):
        config = CONFIG_MAPPING[model_type](**values)
    if not config.architectures:
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    return config


def _check_attention_types(value: Any, where: str) -> None:
    """Checks GPT-Neo's entry: patterns, and how many layers each is repeated for."""
    if value is None:
        return
    is_known = isinstance(value, list) and all(
        isinstance(part, list)
        and len(part) == 2
        and isinstance(part[0], list)
        and isinstance(part[1], int)
        and 0 <= part[1] <= _LIMITS["num_layers"][1]
        for part in value
    )
    if not is_known:
        raise ValueError(
            f"{where}: attention_types is {shown(value)}; it must be a list of pairs of a pattern "
            f"and the number of its repetitions, up to {_LIMITS['num_layers'][1]:,}"
        )
