"""Builders of small models and tokenizers that tests share."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Collection, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import circuits.models.bridge as bridge
from circuits.models.backend import backend_of
from circuits.models.load import named_weights, new_model
from circuits.models.names import find_folder
from circuits.prompts import Prompts
from circuits.sparsify.data import TokenStream
from circuits.sparsify.loss import cross_entropy

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

HAS_HOOKED_TRANSFORMER = int(version("transformer_lens").partition(".")[0]) < 4
needs_hooked_transformer = pytest.mark.skipif(
    not HAS_HOOKED_TRANSFORMER, reason="there is no HookedTransformer in this TransformerLens"
)
END, PAD = "<|endoftext|>", "<|pad|>"


GROUPED: dict[str, Any] = {
    "positional_embedding_type": "rotary",
    "rotary_dim": 8,
    "n_heads": 4,
    "d_head": 8,
    "n_key_value_heads": 2,
    "normalization_type": "RMS",
    "gated_mlp": True,
    "act_fn": "silu",
}
"""What `make_tiny_model` takes for a model like Llama, in which two heads share keys and values."""


def make_tiny_model(
    *, tokenizer: PreTrainedTokenizerBase | None = None, seed: int = 0, **overrides: Any
) -> HookedTransformer:
    """Returns a random model in evaluation mode; `overrides` go into its config.

    Biases and norms are random too, so that a test notices when one is left out. Where there is no
    HookedTransformer, the model is a TransformerBridge, and a test of a config that has none is
    skipped.
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: Any = new_model(cfg | overrides, tokenizer)  # see above: of either class
        except ValueError as error:
            if HAS_HOOKED_TRANSFORMER:
                raise
            pytest.skip(str(error))
        with torch.no_grad():
            for name, weight in named_weights(model).items():
                # A TransformerBridge of a GPT-2 has no place for an unembedding bias.
                if "W_" not in name and (HAS_HOOKED_TRANSFORMER or name != "unembed.b_U"):
                    weight.add_(0.1 * torch.randn_like(weight))
    return model


def teach(model: Any, stream: TokenStream, *, frozen: Collection[str] = ()) -> None:
    """Lets a model see a little of a stream, in place, so that it is better than guessing.

    A random model is worse, and post-training refuses it.
    """
    taught = [weight for name, weight in model.named_parameters() if name not in frozen]
    optimizer = torch.optim.AdamW(taught, lr=1e-2)
    for step in range(12):
        tokens = stream.batch(10**6 + step, 8)
        model.zero_grad()
        cross_entropy(model(tokens), tokens).backward()
        optimizer.step()
    model.zero_grad()


@functools.cache
def _taught(stream: TokenStream, overrides: tuple[tuple[str, Any], ...]) -> dict[str, Tensor]:
    model = make_tiny_model(**dict(overrides))
    teach(model, stream)
    return copy.deepcopy(model.state_dict())


def make_taught_model(stream: TokenStream, **overrides: Any) -> HookedTransformer:
    """Returns a tiny model after `teach`; the same for the same arguments."""
    model = make_tiny_model(**overrides)
    model.load_state_dict(_taught(stream, tuple(overrides.items())))
    return model


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    for (name, weight), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(weight, other), name


def folder_of(name: str) -> Path:
    """Returns the folder of a model that lies in one."""
    folder = find_folder(name)
    assert folder is not None
    return folder


def query_weight(model: HookedTransformer, layer: int) -> Tensor:
    """Returns the parameter that makes a layer's queries; it has the gradient."""
    attn: Any = model.blocks[layer].attn
    return attn.q.original_component.weight if backend_of(model) is bridge else attn.W_Q


def query_gradient(model: HookedTransformer, layer: int) -> Tensor:
    """Returns the gradient of the parameter that makes a layer's queries."""
    gradient = query_weight(model, layer).grad
    assert gradient is not None
    return gradient


def skip_file_without_hooked_transformer() -> None:
    """Skips the tests of a file: they are of models that only HookedTransformer can be."""
    if not HAS_HOOKED_TRANSFORMER:
        pytest.skip("there is no HookedTransformer", allow_module_level=True)


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


def pad_together(*parts: Prompts) -> Prompts:
    """Returns prompts of several lengths as one batch; no two parts share a template."""
    width = max(part.clean.shape[1] for part in parts)

    def padded(rows: list[Tensor]) -> Tensor:
        pad = torch.nn.functional.pad
        return torch.cat([pad(part, (0, width - part.shape[1]), value=1) for part in rows])

    return Prompts(
        clean=padded([part.clean for part in parts]),
        corrupted=padded([part.corrupted for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        answers=torch.cat([part.answers for part in parts]),
        wrong_answers=torch.cat([part.wrong_answers for part in parts]),
        templates=tuple(f"{n}.{name}" for n, part in enumerate(parts) for name in part.templates),
    )


@dataclasses.dataclass(frozen=True)
class CountingStream:
    """Each sequence counts upwards from a random token, so the next token is easy to learn."""

    context: int = 8
    seed: int = 0
    d_vocab: int = 30

    def batch(self, step: int, batch_size: int) -> Tensor:
        return self._rows(f"{self.seed}{step}", batch_size)

    def held_out(self, part: str, n_sequences: int) -> Tensor:
        return self._rows({"control": "8", "selection": "9"}[part] * 9, n_sequences)

    def describe(self) -> dict[str, Any]:
        return {"kind": "counting", **dataclasses.asdict(self)}

    def _rows(self, seed: str, n_rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(seed))
        starts = torch.randint(self.d_vocab, (n_rows, 1), generator=generator)
        return (starts + torch.arange(self.context)) % self.d_vocab
