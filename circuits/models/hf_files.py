"""Hugging Face models from folders, without any network.

What does not fit is named in one error. How a model computes is not decided here: that is
circuits/models/build_hooked.py (HookedTransformer) and circuits/models/build_bridge.py
(TransformerBridge).
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from circuits.models.config_file import CONFIG_FILE, Held, check_total
from circuits.models.weight_files import is_weight
from circuits.reading import refused_as

QUANTIZATION = "dequantized_from"
"""The entry of a config that says what its weights were quantised as, before they were floats."""


@dataclass(frozen=True)
class HFSource:
    """The Hugging Face config and tokenizer that a model is saved with.

    Attributes:
        config: The config.
        tokenizer: The tokenizer; None for a model without one.
        name: What `load_model` loads the same weights by; empty where nothing is known to.
    """

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    name: str = ""


def quantization_of(model: Any) -> str:
    """Returns what a hooked model's weights were quantised as (`GGUF, Q4_1 100%`), if they were."""
    source: HFSource | None = getattr(model, "hf_source", None)
    return str(getattr(source.config, QUANTIZATION, "")) if source is not None else ""


def read_weights(
    folder: Path,
    config: PretrainedConfig,
    dtype: torch.dtype,
    held: Held,
    *,
    gguf_file: str | None = None,
    where: str | None = None,
) -> PreTrainedModel:
    """Returns the model in a folder, every tensor of which must fit the config.

    Args:
        folder: The folder.
        config: The model's config.
        dtype: The dtype of the weights.
        held: How much the files hold.
        gguf_file: The name of the GGUF file to read, in place of the weights of a folder.
        where: What errors call the place of the config and of the weights; the folder if left out.

    Raises:
        ValueError: files that cannot be read, or do not fit.
    """
    weights, settings = (where, where) if where else (str(folder), str(folder / CONFIG_FILE))
    size = skeleton(config, tied=is_tied(config), where=settings).num_parameters()
    check_total(size, held, settings)
    source = {} if gguf_file is None else {"gguf_file": gguf_file}
    with quiet_transformers(), refused_as(weights, "transformers cannot read its weights"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            **source,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, all at once
        )
    hf_model, report = loaded
    misfits = [
        f"{name} is {list(got)} in the file, {list(wanted)} by the config"
        for name, got, wanted in sorted(report["mismatched_keys"])
    ]
    misfits += [f"{name} is missing from the file" for name in sorted(report["missing_keys"])]
    misfits += [f"{name} is not in the model" for name in sorted(report["unexpected_keys"])]
    which = "its own config" if where else f"its {CONFIG_FILE}"
    refuse_misfits(misfits, f"the weights in {weights} do not fit {which}")
    return hf_model


def with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Returns a copy that adds the begin-of-sequence token itself, as TransformerLens wants it.

    TransformerLens would look an in-memory tokenizer up on the hub to change this; a copy on disk
    is read back instead, so nothing leaves the machine and the caller's tokenizer stays as it is.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            add_bos_token=tokenizer.bos_token is not None,
        )


def skeleton(config: PretrainedConfig, *, tied: bool, where: str = CONFIG_FILE) -> PreTrainedModel:
    """Returns the Hugging Face model of `config` without memory for its weights.

    Raises:
        ValueError: transformers makes no model of the config; the error begins with `where`.
    """
    config = copy.deepcopy(config)
    config.tie_word_embeddings = tied
    with (
        refused_as(where, "transformers makes no model of it"),
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
    ):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def is_tied(config: PretrainedConfig) -> bool:
    """Returns whether input and output embeddings are one parameter."""
    return bool(getattr(config, "tie_word_embeddings", False))


def probe_tokens(n_ctx: int, d_vocab: int) -> Int[Tensor, "1 pos"]:
    """Returns a few tokens to compare two readings of a model on."""
    return torch.arange(1, min(16, n_ctx) + 1)[None] * 7 % d_vocab


@torch.no_grad()
def probe(model: nn.Module, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "1 pos d_vocab"]:
    """Returns what a Hugging Face or a hooked model predicts for the tokens, in evaluation mode."""
    was_training = model.training
    try:
        found = model.eval()(tokens)
    finally:
        model.train(was_training)
    return getattr(found, "logits", found).float()


def check_same_logits(ours: Tensor, theirs: Tensor, dtype: torch.dtype, name: str) -> None:
    """Refuses a model that computes something else than the Hugging Face model it came from."""
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    error = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
    if not error <= tolerance:
        raise ValueError(
            f"TransformerLens computes {name!r} differently from transformers (logits differ by "
            f"{error:.2g} of their size): a setting in its config.json is unknown to it, or the "
            "weights hold NaN"
        )


def fitting(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint that a model wants, named as in HookedTransformer.

    Biases and norms that the checkpoint lacks are zeros and ones. A tensor of zeros that has no
    place is left out: HookedTransformer gives every model biases.

    Raises:
        ValueError: tensors of other shapes, missing weights, or weights that the model has no
            place for; `where` begins the sentence.
    """
    misfits = [
        f"{name} is {list(state[name].shape)}, {list(tensor.shape)} by the config"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    misfits += [
        f"{name} is missing"
        for name in wanted
        if name not in state and "W_" in name.rpartition(".")[2]
    ]
    misfits += [
        f"{name} is not in the model"
        for name in sorted(set(state) - set(wanted))
        if is_weight(name) and state[name].any()
    ]
    refuse_misfits(misfits, f"{where} does not fit the config")
    made_up = {
        name: (torch.ones if name.endswith(".w") else torch.zeros)(tensor.shape)
        for name, tensor in wanted.items()
        if name not in state
    }
    return {name: state[name] if name in state else made_up[name] for name in wanted}


def refuse_misfits(misfits: list[str], what: str) -> None:
    """Raises a ValueError that lists the first few misfits, if there are any."""
    if misfits:
        more = f"; and {len(misfits) - 5} more" if len(misfits) > 5 else ""
        raise ValueError(f"{what}: {'; '.join(misfits[:5])}{more}")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' progress bars and reports; what they would say is checked here."""
    log = transformers.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
