"""A small random model of each architecture of transformers, and prompts for it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from circuits.models.backend import Model
from circuits.prompts import Prompts

D_VOCAB, N_CTX = 48, 32
# What configs call their sizes, and what these become. Halves of head_dim must be even (rotations).
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_size", "global_head_dim"), 8),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size",
         "shared_expert_intermediate_size", "intermediate_size_mlp", "word_embed_proj_dim",
         "ffn_hidden_size", "lru_width"), 32,
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), N_CTX),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("sliding_window", "local_attention", "attention_window_size"), 4),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), D_VOCAB),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "mamba_d_ssm", "ssm_state_size"), 16),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    **dict.fromkeys(("first_k_dense_replace", "num_kv_shared_layers"), 1),
    "rotary_dim": 4,
    "kv_channels": 8,
    "num_shared_experts": 1,
}  # fmt: skip
# Lists with one entry a layer are made anew from the number of layers where a config allows None.
LISTS = ("layer_types", "attention_types", "layers_block_type", "block_types", "mlp_layer_types")
# What an architecture needs besides, to be small.
OF_BOTH_KINDS = ["linear_attention", "full_attention"]
EVERY_HEAD = {"num_key_value_heads": 4}
BESIDES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    # Only the largest of these share keys between heads.
    **dict.fromkeys(("olmo2", "olmo3"), EVERY_HEAD),
    # Keys and values of these come from one latent vector, so that each head has its own.
    **dict.fromkeys(("deepseek_v3", "glm4_moe_lite", "glm_moe_dsa", "youtu"), EVERY_HEAD),
    "deepseek_v2": EVERY_HEAD | {"num_experts_per_tok": 2},
    # Hybrids have one layer of each kind.
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "granitemoehybrid": {"layer_types": OF_BOTH_KINDS},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "mamba2": {"head_dim": 16, "n_groups": 1},
    "zamba2": {"attention_head_dim": 16},
    # What these leave open, transformers does not work out.
    "hunyuan_v1_dense": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    # No layer before the first reads keys and values of its own.
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), {"num_kv_shared_layers": 0}),
    "gemma3": {"mm_tokens_per_image": 4},
    "siglip_vision_model": {"image_size": 8, "patch_size": 4},
}


def tiny_config(kind: str) -> PretrainedConfig:
    """Returns a small config of a model type, every size that its own default has made small."""
    return CONFIG_MAPPING[kind](**_shrunk(CONFIG_MAPPING[kind]().to_dict(), kind))


def _shrunk(values: dict[str, Any], kind: str) -> dict[str, Any]:
    """What is small of a config's values; the rest is left to be worked out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in BESIDES.get(kind, {}):
            found[key] = BESIDES[kind][key]
        elif key in ("text_config", "vision_config") and isinstance(value, dict):
            found[key] = _shrunk(value, value.get("model_type", kind))
        elif key in SIZES and (value is not None or key.endswith("token_id")):
            found[key] = SIZES[key]
        elif key in LISTS and isinstance(value, list):
            # Two layers of as different kinds as there are.
            found[key] = list(dict.fromkeys(value))[-2:] if len(set(value)) > 1 else value[:2]
    return found


def tiny_model(kind: str) -> Any:
    """Returns a random model of a small config, with large enough weights to matter."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(tiny_config(kind)).float().eval()
    with contextlib.suppress(ValueError):  # The faster ways through experts know no float64.
        model.set_experts_implementation("eager")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    n_weights = sum(weight.numel() for weight in model.parameters())
    if n_weights > 2_000_000:
        raise ValueError(f"its default config is not made small: {n_weights:,} weights")
    return model


def tokens(batch: int = 4, pos: int = 9) -> Tensor:
    """Returns random tokens, the same each time."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, D_VOCAB, (batch, pos), generator=generator)


def prompts_for(model: Model) -> Prompts:
    """Returns random pairs; the answer is the token whose logit falls most when corrupted."""
    clean = tokens()
    corrupted = clean.clone()
    corrupted[:, 2:] = (clean[:, 2:] + 5) % (D_VOCAB - 2) + 2
    with torch.no_grad():
        change = (model(clean) - model(corrupted))[:, -1]
    return Prompts(
        clean=clean,
        corrupted=corrupted,
        lengths=torch.full((len(clean),), clean.shape[1]),
        answers=change.argmax(dim=-1, keepdim=True),
        wrong_answers=change.argmin(dim=-1, keepdim=True),
        templates=("all",) * len(clean),
    )
