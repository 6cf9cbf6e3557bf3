"""Checkpoints as they are published with the paper: `config.json` and `final.pth`.

The weights have HookedTransformer's names. The config next to them may be HookedTransformer's
own, Hugging Face's, or hold the keys of both, since it is read there through AutoConfig, which
keeps what it does not know. HookedTransformer's keys then decide: the weights were made by them,
while transformers fills a config of its own with defaults. Where the two say different things, and
no default explains it, nothing can tell which is meant, and the file is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from circuits.gate.card import GATE_FILE, GateCard, find_gate_card
from circuits.models.config_file import CONFIG_FILE, check_sizes, is_hooked_config
from circuits.models.names import CHECKPOINT_FILE, hub_errors
from circuits.models.tokenizer_files import check_vocabulary, read_tokenizer
from circuits.models.weight_files import held_by, read_checkpoint
from circuits.reading import number, refused_as, shown

# What HookedTransformer calls a setting, and what configs of Hugging Face call it. Vocabularies are
# left out: the published GPT-2 pads its own to 50304, so there the weights decide.
_SAME = {
    "d_model": ("n_embd", "hidden_size"),
    "n_layers": ("n_layer", "num_layers", "num_hidden_layers"),
    "n_heads": ("n_head", "num_heads", "num_attention_heads"),
    "d_head": ("head_dim",),
    "n_key_value_heads": ("num_key_value_heads",),
    "d_mlp": ("n_inner", "intermediate_size"),
    "n_ctx": ("n_positions", "max_position_embeddings"),
    "eps": ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps"),
    "act_fn": ("activation_function", "hidden_act"),
}

# The entries that say whether attention is gated. The first is what the authors' configs have.
_SPARSE = ("use_sparse_attn", "sparse_attention")


def load_checkpoint(
    folder: Path, raw: Mapping[str, Any], name: str, dtype: torch.dtype, build: ModuleType
) -> Any:
    """Returns the model in a folder of `config.json` and `final.pth`, not yet gated.

    Args:
        folder: The folder.
        raw: What its config says.
        name: What the model is called.
        dtype: The dtype of the weights.
        build: One of the modules `build_hooked` and `build_bridge`.

    Raises:
        ValueError: files that are damaged, contradict each other or do not fit.
        FileNotFoundError: the tokenizer that the config names cannot be had.
    """
    where = str(folder / CONFIG_FILE)
    state = read_checkpoint(folder / CHECKPOINT_FILE)
    held = held_by(state, f"the weights in {folder / CHECKPOINT_FILE}")
    config = checkpoint_config(raw, state, where)
    check_sizes(config, held, where)
    d_vocab = build.read_config(config, dtype, name, where).d_vocab
    tokenizer = _tokenizer(folder, raw, d_vocab)
    with refused_as(where, "no model can be run by it"):
        return build.from_checkpoint(config, state, tokenizer, dtype, name, held.where)


def checkpoint_config(
    raw: Mapping[str, Any], state: Mapping[str, Tensor], where: str
) -> dict[str, Any]:
    """Returns the config that a checkpoint is read by: HookedTransformer's own, or Hugging Face's.

    It is HookedTransformer's if all its sizes are there by its names. The number of heads is then
    d_model // d_head where it is left out, and the vocabulary, of either, that of the weights.

    Raises:
        ValueError: an entry that contradicts another or cannot be worked out; `where` begins it.
    """
    config = dict(raw)
    n_vocab = len(state["embed.W_E"]) if "embed.W_E" in state else None
    if not is_hooked_config(raw):
        if n_vocab is not None:
            config["vocab_size"] = n_vocab
        _settle_twins(config, where)
        return config
    if config.get("d_vocab") in (None, -1):
        config["d_vocab"] = n_vocab
    width, d_head = config.get("d_model"), config.get("d_head")
    if config.get("n_heads") in (None, -1) and width and d_head:
        if width % d_head:
            raise ValueError(
                f"{where}: n_heads is missing, and d_model {width} is not a multiple of d_head "
                f"{d_head}, so it cannot be worked out; write the number of heads into it"
            )
        config["n_heads"] = width // d_head
    config |= _settle_twins(config, where)
    theirs = ("model_type", "vocab_size", *(name for names in _SAME.values() for name in names))
    return {key: value for key, value in config.items() if key not in theirs}


def checkpoint_gate(raw: Mapping[str, Any], folder: Path, name: str) -> GateCard | None:
    """Returns the gate of a published checkpoint, None for a dense one.

    It is what `gate.json` says; else what the config says by `gate_bias`, `use_sparse_attn`,
    `sparse_attention` or `attention_type`, with bias 0 where no bias is given. A config that says
    nothing is a dense model's, unless "sparse" is part of the folder's or the repository's name.

    Raises:
        ValueError: an entry that is none, or two that contradict each other.
    """
    where, card = folder / CONFIG_FILE, find_gate_card(folder)
    says: dict[str, bool] = {}
    for key in _SPARSE:
        value = raw.get(key)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"{where}: {key} is {shown(value)}; it must be true or false")
        says |= {} if value is None else {key: value}
    if raw.get("attention_type") is not None:
        says["attention_type"] = "sparse" in str(raw["attention_type"]).lower()
    bias = raw.get("gate_bias")
    if bias is not None:
        bias = number(bias, f"{where}: gate_bias")
        says["gate_bias"] = True
    dense = [f"{key} is {shown(raw[key])}" for key, sparse in says.items() if not sparse]
    sparse = [f"{key} is {shown(raw[key])}" for key, sparse in says.items() if sparse]
    sparse += [] if card is None else [f"{GATE_FILE} lies next to it"]
    if dense and sparse:
        raise ValueError(
            f"{where}: {dense[0]}, a dense model's, but {sparse[0]}, a gated model's; remove the "
            "one that is wrong"
        )
    if card is not None:
        return card
    if sparse or (not dense and "sparse" in Path(name).name.lower()):
        return GateCard(bias=bias or 0.0)
    return None


def _settle_twins(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the settings that stand in a config by Hugging Face's names only, by the others.

    Values that transformers fills in by itself count for nothing.

    Raises:
        ValueError: a setting stands there under both names, with two values.
    """
    kind = config.get("model_type")
    filled_in: Mapping[str, Any] = {}
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        with refused_as(where, "transformers has no defaults for it"):
            filled_in = CONFIG_MAPPING[kind]().to_dict()
    found: dict[str, Any] = {}
    for ours, others in _SAME.items():
        for theirs in others:
            one, other = config.get(ours), config.get(theirs)
            if other is None or one == other or other == filled_in.get(theirs):
                continue
            if one is not None:
                raise ValueError(
                    f"{where}: {ours} is {shown(one)}, but {theirs}, which is the same setting, "
                    f"is {shown(other)}; remove the one that is wrong"
                )
            found[ours] = other
    return found


def _tokenizer(
    folder: Path, raw: Mapping[str, Any], d_vocab: int
) -> PreTrainedTokenizerBase | None:
    """The tokenizer whose files lie in the folder, or else the one that the config names.

    That is a folder, from the checkpoint's own if its path is relative, or a name on the hub. A
    GPT-2 without any has GPT-2's; another model without any takes tokens.
    """
    found = read_tokenizer(folder, d_vocab)
    named = raw.get("tokenizer_name")
    if found is not None or (named is None and raw.get("model_type") != "gpt2"):
        return found
    where = f"{folder / CONFIG_FILE}: tokenizer_name"
    if named is None:
        named, where = "gpt2", f"{folder / CONFIG_FILE}: model_type gpt2, no tokenizer_name"
    if not isinstance(named, str) or not named or "\0" in named:
        raise ValueError(f"{where} is {shown(named)}; it must be a folder or a name on the hub")
    with refused_as(where, f"{shown(named)} is not a path on this machine"):
        path = folder / Path(named).expanduser()
        is_folder = path.is_dir()
    if is_folder:
        found = read_tokenizer(path, d_vocab)
        if found is None:
            raise FileNotFoundError(f"{where}: the folder {path} holds no tokenizer.json")
        return found
    if named[0] in "./~":
        raise FileNotFoundError(f"{where} is {shown(named)}, but there is no folder {path}")
    try:
        with hub_errors(f"{named} (a tokenizer)"):
            found = AutoTokenizer.from_pretrained(named, trust_remote_code=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}, here as tokenizer_name") from error
    check_vocabulary(found, d_vocab, f"the tokenizer {named!r} ({where})")
    return found
