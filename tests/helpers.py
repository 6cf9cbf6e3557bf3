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
from circuits.tasks.prompts import Prompts

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


def make_prompts(
    model: HookedTransformer, *, batch: int = 6, pos: int = 7, templates: int = 2, seed: int = 1
) -> Prompts:
    """Returns random prompt pairs whose answers the model prefers on clean, not on corrupted.

    The corrupted prompt differs in one position. The answer is the token whose logit falls most
    when the prompt is corrupted, the wrong answer the one whose logit rises most.
    """
    generator = torch.Generator().manual_seed(seed)
    d_vocab = model.cfg.d_vocab
    clean = torch.randint(2, d_vocab, (batch, pos), generator=generator)
    corrupted = clean.clone()
    corrupted[:, pos - 1] = (clean[:, pos - 1] - 2 + 7) % (d_vocab - 2) + 2
    with torch.no_grad():
        change = model(clean)[:, -1] - model(corrupted)[:, -1]
    return Prompts(
        clean=clean,
        corrupted=corrupted,
        lengths=torch.full((batch,), pos),
        answers=change.argmax(dim=-1, keepdim=True),
        wrong_answers=change.argmin(dim=-1, keepdim=True),
        templates=tuple(f"t{i % templates}" for i in range(batch)),
    )
