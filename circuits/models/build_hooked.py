"""HookedTransformers from configs and weights in memory, without any network.

TransformerLens decides much by a model's name and fills what it misses. Here only the content of
a config decides, and every tensor must fit. TransformerLens 4 has no HookedTransformer any more;
there this module is not imported, and circuits/models/build_bridge.py, which offers the same
functions, makes all models.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.loading_from_pretrained import (
    NEED_REMOTE_CODE_MODELS,
    convert_hf_model_config,
    get_pretrained_state_dict,
)
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from circuits.models.config_file import CONFIG_FILE, hf_config
from circuits.models.hf_files import (
    HFSource,
    check_same_logits,
    fitting,
    probe,
    probe_tokens,
    quiet_transformers,
    with_bos,
)
from circuits.models.names import hub_errors, hub_name
from circuits.reading import refused_as

# TransformerLens sets trust_remote_code=True for these by itself: for the ones that it lists, and
# for the tokenizers of Phi.
_WITH_REMOTE_CODE = (*NEED_REMOTE_CODE_MODELS, "microsoft/phi-1")


def read_config(
    raw: dict[str, Any], dtype: torch.dtype, name: str, where: str = CONFIG_FILE
) -> HookedTransformerConfig:
    """Returns the HookedTransformer config for a Hugging Face config, or for one of its own.

    TransformerLens takes a path with "llama" or "gemma" in it for that model and ignores the
    config, so it is given a copy of the config in a folder with a name that means nothing.

    Raises:
        ValueError: TransformerLens does not know the architecture, or refuses a value; `where`
            names the config.
    """
    if "model_type" in raw:
        config = hf_config(raw, where)
        if config.model_type == "gpt2":
            config.n_ctx = config.n_positions  # an old name that only TransformerLens still reads
        architecture = (config.architectures or ["?"])[0]
        with (
            tempfile.TemporaryDirectory() as neutral,
            quiet_transformers(),
            refused_as(where, f"{architecture}, which TransformerLens cannot read from a folder"),
        ):
            config.to_json_file(Path(neutral) / CONFIG_FILE, use_diff=False)
            values = convert_hf_model_config(neutral)
    else:
        known = {f.name for f in fields(HookedTransformerConfig)}
        values = {key: value for key, value in raw.items() if key in known - {"n_params", "seed"}}
        sizes = ("d_head", "d_model", "d_vocab", "n_ctx", "n_layers")
        missing = [size for size in sizes if values.get(size) is None]
        if missing:
            raise ValueError(
                f"{where} is neither a Hugging Face config (no model_type) nor one of "
                f"HookedTransformer (lacks {missing})"
            )
    values |= {
        "model_name": Path(name).name,
        "tokenizer_name": None,  # a tokenizer is attached, never fetched by name
        "init_weights": False,
        "default_prepend_bos": True,
        "device": "cpu",
        "n_devices": 1,
        "dtype": dtype,
    }
    with refused_as(where, "TransformerLens refuses it"):
        return HookedTransformerConfig.from_dict(values)


def new_model(
    config: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> HookedTransformer:
    """Returns a model with random weights of a config of TransformerLens' own."""
    with _quiet():
        model = HookedTransformer(HookedTransformerConfig.from_dict(config))
    if tokenizer is not None:
        model.set_tokenizer(with_bos(tokenizer))
    return model


def from_hf_model(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str
) -> HookedTransformer:
    """Returns the HookedTransformer that computes what a Hugging Face model computes.

    TransformerLens reads some configs wrongly without a word (a rotary base it does not know), so
    both models are run on a few tokens and must agree.

    Raises:
        ValueError: TransformerLens does not know the architecture, or reads it differently.
    """
    dtype = hf_model.dtype
    cfg = read_config(hf_model.config.to_dict(), dtype, name)
    tokens = probe_tokens(cfg.n_ctx, cfg.d_vocab)
    theirs = probe(hf_model.cpu(), tokens)
    state = converted(hf_model, cfg, dtype)
    model = _filled(cfg, state, tokenizer, f"TransformerLens' reading of {name!r}")
    check_same_logits(probe(model, tokens), theirs, dtype, name)
    model.hf_source = HFSource(hf_model.config, tokenizer)  # pyright: ignore
    return model


def from_checkpoint(
    raw: dict[str, Any],
    state: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype,
    name: str,
    where: str,
) -> HookedTransformer:
    """Returns the model of a config, Hugging Face's or its own, and of HookedTransformer weights.

    Raises:
        ValueError: weights that do not fit the config; `where` begins the sentence.
    """
    cfg = read_config(raw, dtype, name)
    with torch.device("meta"), _quiet():  # without memory, which a wrong config may not deserve
        shapes = dict(HookedTransformer(cfg, move_to_device=False).named_parameters())
    fitting(state, shapes, where)
    model = _filled(cfg, state, tokenizer, where)
    if "model_type" in raw:
        model.hf_source = HFSource(hf_config(raw), tokenizer)  # pyright: ignore
    return model


def from_hub(
    name: str, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> HookedTransformer:
    """Returns a model that TransformerLens knows by name, its weights unprocessed.

    Raises:
        ValueError: a model that TransformerLens loads with code from the hub, without
            `trust_remote_code`.
        FileNotFoundError: the hub cannot be reached.
    """
    official = hub_name(name)
    if official.startswith(_WITH_REMOTE_CODE) and not trust_remote_code:
        raise ValueError(
            f"TransformerLens loads {official!r} with trust_remote_code=True: it would run Python "
            "code from the model's repository on this machine. If you trust that repository, say "
            "so with --trust-remote-code, in Python load_model(..., trust_remote_code=True); else "
            "download the model and give its folder, from which no code is run"
        )
    with hub_errors(name), quiet_transformers(), _quiet(), _no_pickled_code():
        model = HookedTransformer.from_pretrained_no_processing(
            name,
            device="cpu",
            dtype=dtype,
            default_prepend_bos=True,
            trust_remote_code=trust_remote_code,
        )
        # Some names stand for TransformerLens' own files, which have no Hugging Face config.
        with contextlib.suppress(OSError, ValueError):
            config = AutoConfig.from_pretrained(official, trust_remote_code=trust_remote_code)
            if model.cfg.positional_embedding_type == "standard":
                # TransformerLens cuts the position table of some models.
                config.max_position_embeddings = model.cfg.n_ctx
            tokenizer = AutoTokenizer.from_pretrained(official, trust_remote_code=trust_remote_code)
            model.hf_source = HFSource(config, tokenizer)  # pyright: ignore
    return model


@torch.no_grad()
def converted(
    hf_model: PreTrainedModel, cfg: HookedTransformerConfig, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Returns the weights of a Hugging Face model as TransformerLens lays them out."""
    cfg = copy.copy(cfg)
    cfg.dtype, cfg.device = dtype, "cpu"
    # The weights are in memory; the name, "." here, is only compared with names of special cases.
    return get_pretrained_state_dict(os.curdir, cfg, hf_model, dtype=dtype)


def _filled(
    cfg: HookedTransformerConfig,
    state: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase | None,
    where: str,
) -> HookedTransformer:
    """The HookedTransformer with exactly the weights in `state`, in evaluation mode."""
    with _quiet():
        model = HookedTransformer(cfg)
    state = fitting(state, dict(model.named_parameters()), where)
    model.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    if tokenizer is not None:
        model.set_tokenizer(with_bos(tokenizer))
    return model.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what HookedTransformer says when built: its deprecation, and prints.

    The warning is for us, not for our users, and is met by keeping to the hook names that
    TransformerBridge shares.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings(
            "ignore", message="HookedTransformer.* is deprecated", category=DeprecationWarning
        )
        yield


@contextlib.contextmanager
def _no_pickled_code() -> Iterator[None]:
    """Lets torch.load build tensors only; TransformerLens asks it to run what a file says.

    It does so for the models whose files are its own, such as `gelu-1l`. State changed, and put
    back: an environment variable that torch reads on every load.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
