"""Writers of tiny GGUF files that share no code with what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

END = "<|end|>"
LLAMA_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT2_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


@cache
def vocabulary() -> tuple[list[str], list[str]]:
    """The tokens and merges of a byte-level BPE; the token that ends texts is token 0."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["When Mary met John in 1732"] * 9,
        vocab_size=280,
        show_progress=False,
        special_tokens=[END],
    )
    ids = bpe.get_vocab()
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return sorted(ids, key=lambda token: ids[token]), [" ".join(pair) for pair in merges]


def make_model(kind: str) -> PreTrainedModel:
    """A random model, no two parameters alike."""
    special: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    size = len(vocabulary()[0])
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=2, vocab_size=size, **special)
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                vocab_size=size,
                **special,
            )
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def tensors_of(model: PreTrainedModel, kind: str) -> dict[str, np.ndarray]:
    """The weights as llama.cpp names and lays them out."""
    names = GPT2_NAMES if kind == "gpt2" else LLAMA_NAMES
    found = {}
    for name, weight in model.state_dict().items():
        if kind == "gpt2" and name == "lm_head.weight":
            continue  # tied
        block, rest = "", name
        if ".h." in name or ".layers." in name:
            _, _, number, rest = name.split(".", 3)
            block = f"blk.{number}."
        module, _, leaf = rest.rpartition(".")
        matrix = weight.detach()
        if kind == "gpt2" and matrix.ndim == 2 and block:
            matrix = matrix.T  # its Conv1D has inputs first
        if module in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = 4 if module.endswith("q_proj") else 2
            matrix = rotary_in_pairs(matrix, heads)
        found[f"{block}{names[module]}.{leaf}"] = matrix.contiguous().numpy()
    return found


def rotary_in_pairs(matrix: Tensor, heads: int) -> Tensor:
    """Each head's rows with those that are rotated together side by side, as in llama.cpp."""
    d_head = len(matrix) // heads
    rows = [
        head * d_head + pair + half * d_head // 2
        for head in range(heads)
        for pair in range(d_head // 2)
        for half in range(2)
    ]
    return matrix[rows]


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    kind: str = "llama",
    types: Callable[[str], str] = lambda _name: "F32",
    left_out: str = "",
    pre: str = "gpt-2",
    architecture: str | None = None,
) -> Path:
    """Writes a model of `make_model` as llama.cpp does; `types` gives the type of each matrix."""
    writer = gguf.GGUFWriter(path, architecture or kind)
    config = model.config
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64 if kind == "llama" else 128)
    writer.add_head_count(config.num_attention_heads)
    if kind == "llama":
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(10000.0)
        writer.add_rope_dimension_count(8)
        writer.add_vocab_size(config.vocab_size)
    else:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, weight in tensors_of(model, kind).items():
        if name == left_out:
            continue
        chosen = gguf.GGMLQuantizationType[types(name) if weight.ndim == 2 else "F32"]
        packed = gguf.quants.quantize(weight, chosen)
        writer.add_tensor(name, packed, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
