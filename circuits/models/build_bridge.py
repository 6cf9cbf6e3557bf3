"""TransformerBridges from configs and weights in memory, without any network.

A TransformerBridge wraps the Hugging Face model and offers the hook names of HookedTransformer, so
gates, post-training, attribution, circuits and comparison take either; tests hold the two to the
same numbers. It is the one class of TransformerLens 4.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import (
    build_bridge_config_from_hf,
    build_bridge_from_module,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from circuits.models.config_file import CONFIG_FILE, check_total, hf_config
from circuits.models.hf_files import (
    HFSource,
    check_same_logits,
    fitting,
    probe,
    probe_tokens,
    quiet_transformers,
    skeleton,
    with_bos,
)
from circuits.models.hf_weights import learn_rearrangement, to_hf_tensors
from circuits.models.names import hub_errors, hub_name
from circuits.models.weight_files import held_by
from circuits.reading import refused_as

# Where the Bridge names and lays out weights as HookedTransformer's checkpoints do (tests compare).
_SAME_WEIGHTS = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
)

# What a config of HookedTransformer's own says, or leaves out, where the model is a GPT-2.
_GPT2: dict[str, Any] = {
    "attention_dir": "causal",
    "attn_only": False,
    "attn_scores_soft_cap": -1.0,
    "final_rms": False,
    "gated_mlp": False,
    "n_key_value_heads": None,
    "normalization_type": "LN",
    "output_logits_soft_cap": -1.0,
    "parallel_attn_mlp": False,
    "positional_embedding_type": "standard",
    "scale_attn_by_inverse_layer_idx": False,
    "use_attn_scale": True,
    "use_local_attn": False,
    "use_normalization_before_and_after": False,
    "use_qk_norm": False,
}


def read_config(
    raw: dict[str, Any], dtype: torch.dtype, name: str, where: str = CONFIG_FILE
) -> TransformerBridgeConfig:
    """Returns the config of a TransformerBridge for a Hugging Face config.

    Raises:
        ValueError: an architecture that has no Bridge, or a config of HookedTransformer's own that
            is not a GPT-2's; `where` names the config.
    """
    config = _hf_config(raw, where)
    architecture = _architecture(config)
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise ValueError(
            f"{where}: {architecture}, which TransformerLens cannot read from a folder (it has no "
            "TransformerBridge)"
        )
    with refused_as(where, "TransformerLens refuses it"):
        return build_bridge_config_from_hf(config, architecture, Path(name).name, dtype)


def new_model(
    config: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> TransformerBridge:
    """Returns a model with random weights, for a config of HookedTransformer's own.

    Raises:
        ValueError: a config that is not a GPT-2's.
    """
    hf_model = AutoModelForCausalLM.from_config(_hf_config(config, "the config"))
    model = from_hf_model(hf_model.to(config.get("dtype", torch.float32)), tokenizer, "new")
    return model.to(config.get("device", "cpu"), print_details=False)


def from_hf_model(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str
) -> TransformerBridge:
    """Returns the TransformerBridge around a Hugging Face model, which it changes in place.

    Dropout is switched off, as a HookedTransformer has none.

    Raises:
        ValueError: TransformerLens does not know the architecture, reads it differently, or shows
            no layers of it.
    """
    config = hf_model.config
    cfg = read_config(config.to_dict(), hf_model.dtype, name)
    tokens = probe_tokens(cfg.n_ctx, cfg.d_vocab)
    theirs = probe(hf_model.cpu(), tokens)
    for module in hf_model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # pyright: ignore
    model = _around(hf_model, name, tokenizer)
    if not hasattr(model, "blocks"):
        raise ValueError(
            f"{name}: TransformerLens shows no layers (`blocks`) of {_architecture(config)}, so it "
            "has no attention to gate and no circuits"
        )
    check_same_logits(probe(model, tokens), theirs, hf_model.dtype, name)
    model.hf_source = HFSource(config, tokenizer)  # pyright: ignore
    return model.eval()


def from_checkpoint(
    raw: dict[str, Any],
    state: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype,
    name: str,
    where: str,
) -> TransformerBridge:
    """Returns the model of a Hugging Face config and of weights named as in HookedTransformer.

    Raises:
        ValueError: weights that do not fit the config (`where` begins the sentence), or an
            architecture that HookedTransformer laid out differently.
    """
    read_config(raw, dtype, name)
    config = _hf_config(raw, CONFIG_FILE)
    n_elements = skeleton(config, tied=False).num_parameters()
    check_total(n_elements, held_by(state, where), CONFIG_FILE)
    architecture = _architecture(config)
    if architecture not in _SAME_WEIGHTS:
        raise ValueError(
            f"{where} are HookedTransformer's, which a TransformerBridge of {architecture} does "
            "not read; save the model as a Hugging Face folder with transformer_lens<4"
        )
    wanted: dict[str, Tensor] = {}

    def convert(hf_model: PreTrainedModel) -> dict[str, Tensor]:
        wanted.update(_named_as_hooked(hf_model))
        return wanted

    layout = learn_rearrangement(config, None, convert, tied=False)
    held = fitting(state, wanted, where)
    tensors = to_hf_tensors(held, layout)
    config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        hf_model = AutoModelForCausalLM.from_config(config)
    hf_model.load_state_dict(tensors, strict=False)
    return from_hf_model(hf_model.to(dtype), tokenizer, name)


def from_hub(
    name: str, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> TransformerBridge:
    """Returns a model that TransformerLens knows by name, its weights unprocessed.

    Raises:
        FileNotFoundError: the hub cannot be reached, or the model's code is needed and not trusted.
    """
    official = hub_name(name)
    with hub_errors(name), quiet_transformers():
        config = AutoConfig.from_pretrained(official, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(official, trust_remote_code=trust_remote_code)
        hf_model = AutoModelForCausalLM.from_pretrained(
            official, config=config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return from_hf_model(hf_model, tokenizer, name)


def parameters_around(hf_model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns the parameters of the TransformerBridge around a Hugging Face model.

    The model is changed in place.
    """
    return dict(_around(hf_model, "numbers", None).named_parameters())


def _hf_config(raw: dict[str, Any], where: str) -> PretrainedConfig:
    """The Hugging Face config; of one of HookedTransformer's own, that of the same GPT-2."""
    if "model_type" in raw:
        return hf_config(raw, where)
    sizes = ("d_head", "d_model", "d_vocab", "n_ctx", "n_layers")
    missing = [size for size in sizes if raw.get(size) is None]
    if missing:
        raise ValueError(
            f"{where} is neither a Hugging Face config (no model_type) nor one of "
            f"HookedTransformer (lacks {missing})"
        )
    n_heads = raw.get("n_heads", raw["d_model"] // raw["d_head"])
    unlike = [key for key, value in _GPT2.items() if raw.get(key, value) != value]
    unlike += ["d_head"] if n_heads * raw["d_head"] != raw["d_model"] else []
    unlike += [] if raw.get("act_fn") in ("gelu", "gelu_new", "relu") else ["act_fn"]
    if unlike:
        raise ValueError(
            f"{where} is HookedTransformer's own and not a GPT-2's ({', '.join(unlike)}): it "
            "needs HookedTransformer, which transformer_lens<4 has"
        )
    return GPT2Config(
        vocab_size=raw["d_vocab"],
        n_positions=raw["n_ctx"],
        n_embd=raw["d_model"],
        n_layer=raw["n_layers"],
        n_head=n_heads,
        n_inner=raw.get("d_mlp"),
        activation_function=raw["act_fn"],
        layer_norm_epsilon=raw.get("eps", 1e-5),
        initializer_range=0.8 / math.sqrt(raw["d_model"]),  # HookedTransformer's
        tie_word_embeddings=False,
        architectures=["GPT2LMHeadModel"],
    )


def _around(
    hf_model: PreTrainedModel, name: str, tokenizer: PreTrainedTokenizerBase | None
) -> TransformerBridge:
    with _quiet():
        model = build_bridge_from_module(
            hf_model,
            _architecture(hf_model.config),
            hf_config=hf_model.config,
            tokenizer=tokenizer and with_bos(tokenizer),
            model_name=Path(name).name,
        )
    model.cfg.default_prepend_bos = True
    # TransformerLens reads it from the Hugging Face module; circuits/models/anatomy.py asks here.
    limit = getattr(hf_model.config, "clip_qkv", None)
    model.cfg.clip_qkv = limit  # pyright: ignore[reportAttributeAccessIssue]
    return model


def _named_as_hooked(hf_model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights under HookedTransformer's names; shared keys and values stand there once."""
    model = _around(hf_model, "numbers", None)
    found = {name: tensor.detach() for name, tensor in model.tl_named_parameters()}
    n_shared = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)
    if n_shared > 1:
        for name in [name for name in found if name.endswith((".W_K", ".W_V", ".b_K", ".b_V"))]:
            block, _, leaf = name.rpartition(".")
            found[f"{block}._{leaf}"] = found.pop(name)[::n_shared]
    return found


def _architecture(config: PretrainedConfig) -> str:
    if config.architectures:
        return config.architectures[0]
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
