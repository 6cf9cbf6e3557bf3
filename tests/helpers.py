"""Builders of small models and tokenizers that tests share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from circuits.hooked import attach_tokenizer, quiet_hooked_transformer

END, PAD = "<|endoftext|>", "<|pad|>"


def make_tiny_model(
    *, tokenizer: PreTrainedTokenizerBase | None = None, seed: int = 0, **overrides: Any
) -> HookedTransformer:
    """Returns a random HookedTransformer in evaluation mode; `overrides` go into its config.

    Biases and norms are random too, so that a test notices when one is left out.
    """
    cfg = {
        "n_layers": 2,
        "n_heads": 2,
        "d_model": 16,
        "d_head": 8,
        "d_mlp": 32,
        "d_vocab": 30,
        "n_ctx": 32,
        "act_fn": "gelu",
        "normalization_type": "LN",
        "device": "cpu",
    }
    if tokenizer is not None:
        cfg["d_vocab"] = len(tokenizer)
    with torch.random.fork_rng(devices=[]), quiet_hooked_transformer():
        torch.manual_seed(seed)
        model = HookedTransformer(HookedTransformerConfig.from_dict(cfg | overrides))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "W_" not in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    if tokenizer is not None:
        attach_tokenizer(model, tokenizer)
    return model.eval()


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token a word; unknown words are an error, as in circuits.

    Token 0 begins, ends and separates, token 1 pads, the words follow in their order.
    """
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([END, PAD, *words]))}
    # WordLevel needs an unk_token only to encode unknown words; without one it drops them.
    backend = Tokenizer(WordLevel(vocabulary, unk_token=END))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=PAD
    )
