"""HookedTransformers from configs and weights that are at hand, without any network.

TransformerLens decides much by a model's name and fills what it misses. Here only the content of
a config decides, and every tensor must fit: what does not is named in one error.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.loading_from_pretrained import convert_hf_model_config
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def hf_config(raw: dict[str, Any]) -> PretrainedConfig:
    """Returns the Hugging Face config with its architecture filled in."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"config.json names the model_type {model_type!r}, which is no causal language model "
            "that transformers knows"
        )
    values = {key: value for key, value in raw.items() if key != "model_type"}
    config = AutoConfig.for_model(model_type, **values)
    if not config.architectures:
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    return config


def hooked_config(raw: dict[str, Any], dtype: torch.dtype, name: str) -> HookedTransformerConfig:
    """Returns the HookedTransformer config for a Hugging Face config, or for one of its own.

    TransformerLens takes a path with "llama" or "gemma" in it for that model and ignores the
    config, so it is given a copy of the config in a folder with a name that means nothing.
    """
    if "model_type" in raw:
        config = hf_config(raw)
        if config.model_type == "gpt2":
            config.n_ctx = config.n_positions  # an old name that only TransformerLens still reads
        with tempfile.TemporaryDirectory() as neutral, quiet_transformers():
            config.to_json_file(Path(neutral) / "config.json", use_diff=False)
            try:
                values = convert_hf_model_config(neutral)
            except (NotImplementedError, AttributeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{name!r} has the architecture {(config.architectures or ['?'])[0]}, which "
                    f"TransformerLens cannot read from a folder ({error})"
                ) from error
    else:
        known = {f.name for f in fields(HookedTransformerConfig)}
        values = {key: value for key, value in raw.items() if key in known - {"n_params", "seed"}}
        missing = sorted({"d_model", "d_head", "n_layers", "n_ctx", "d_vocab"} - set(values))
        if missing:
            raise ValueError(
                f"the config of {name!r} is neither a Hugging Face config (no model_type) nor one "
                f"of HookedTransformer (lacks {missing})"
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
    try:
        return HookedTransformerConfig.from_dict(values)
    except (AssertionError, TypeError) as error:
        raise ValueError(f"TransformerLens refuses the config of {name!r}: {error}") from error


def hooked_model(
    cfg: HookedTransformerConfig,
    state: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase | None,
    where: str,
) -> HookedTransformer:
    """Returns the HookedTransformer with exactly the weights in `state`, in evaluation mode.

    Biases and norms that `state` lacks are zeros and ones, as TransformerLens has it.

    Raises:
        ValueError: tensors of other shapes, missing weights, or weights the model has no place
            for; `where` begins the sentence.
    """
    with quiet_hooked_transformer():
        model = HookedTransformer(cfg)
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    misfits = [
        f"{name} is {list(state[name].shape)}, {list(shape)} by the config"
        for name, shape in wanted.items()
        if name in state and state[name].shape != shape
    ]
    misfits += [
        f"{name} is missing"
        for name in wanted
        if name not in state and "W_" in name.rpartition(".")[2]
    ]
    extra = set(state) - set(model.state_dict())
    misfits += [f"{name} is not in the model" for name in sorted(extra) if is_weight(name)]
    refuse_misfits(misfits, f"{where} does not fit the config")
    state = {name: tensor for name, tensor in state.items() if name in wanted}
    model.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    if tokenizer is not None:
        attach_tokenizer(model, tokenizer)
    return model.eval()


@torch.no_grad()
def check_same_logits(model: HookedTransformer, hf_model: PreTrainedModel, name: str) -> None:
    """Refuses a model that computes something else than the Hugging Face model it came from."""
    length = min(16, model.cfg.n_ctx)
    tokens = torch.arange(1, length + 1)[None] * 7 % model.cfg.d_vocab
    was_training = hf_model.training
    try:
        theirs = hf_model.eval()(tokens).logits.float()
    finally:
        hf_model.train(was_training)
    ours = model(tokens).float()
    tolerance = 1e-3 if hf_model.dtype == torch.float32 else 0.1
    error = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
    if not error <= tolerance:
        raise ValueError(
            f"TransformerLens computes {name!r} differently from transformers (logits differ by "
            f"{error:.2g} of their size): a setting in its config.json is unknown to it, or the "
            "weights hold NaN"
        )


def attach_tokenizer(model: HookedTransformer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Sets a tokenizer as TransformerLens wants it, adding the begin-of-sequence token itself.

    TransformerLens would look an in-memory tokenizer up on the hub to change this; a copy on disk
    is read back instead, so nothing leaves the machine and the caller's tokenizer stays as it is.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        tokenizer.save_pretrained(folder)
        copy = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, add_bos_token=tokenizer.bos_token is not None
        )
    model.set_tokenizer(copy)


@contextlib.contextmanager
def quiet_hooked_transformer() -> Iterator[None]:
    """Silences what HookedTransformer says when built: its deprecation, and prints.

    It is removed in TransformerLens 4; the warning is for us, not for our users, and is met by
    keeping to the hook names that TransformerBridge shares.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings(
            "ignore", message="HookedTransformer.* is deprecated", category=DeprecationWarning
        )
        yield


def is_weight(name: str) -> bool:
    """Returns whether a tensor of a HookedTransformer is trained: its leaf is a W, w or b."""
    return name.rpartition(".")[2].lstrip("_").split("_")[0] in ("W", "w", "b")


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
