"""Checkpoints as the authors publish them: `config.json` of either kind, and `final.pth`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config

from circuits.gate.card import GateCard
from circuits.gate.gate import gate_bias, is_gated
from circuits.models.info import model_info
from circuits.models.load import load_model, named_weights
from tests.helpers import make_tiny_model, needs_hooked_transformer, word_tokenizer

TOKENS = torch.tensor([[0, 5, 9, 3, 22, 7, 2, 14], [0, 1, 1, 28, 6, 6, 19, 4]])
SIZES = {"n_layers": 2, "d_model": 16, "d_head": 8, "d_mlp": 64, "d_vocab": 30, "n_ctx": 24}
OWN: dict[str, Any] = SIZES | {"act_fn": "gelu_new", "normalization_type": "LN", "eps": 1e-3}
THEIRS: dict[str, Any] = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_embd": 16,
    "n_head": 2,
    "n_inner": 64,
    "n_positions": 24,
    "vocab_size": 27,  # the published GPT-2 says 50257, and has 50304
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-3,
}
KINDS: dict[str, dict[str, Any]] = {
    "HookedTransformer's": OWN,
    "Hugging Face's": THEIRS,
    "both": THEIRS | OWN,
    "both, heads to be worked out": THEIRS | OWN | {"n_heads": -1, "d_vocab": -1},
    # AutoConfig fills what it is not told: 12 layers of 12 heads of 768 numbers.
    "HookedTransformer's, saved by AutoConfig": GPT2Config(**OWN).to_dict(),
    "epsilon by the other name": THEIRS | {key: OWN[key] for key in OWN if key != "eps"},
}


def write(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Writes a checkpoint and returns its weights."""
    model = make_tiny_model(seed=5, **OWN)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: weight.detach().clone() for name, weight in named_weights(model).items()}
    torch.save(state, folder / "final.pth")
    word_tokenizer(f"w{n}" for n in range(25)).save_pretrained(folder)
    return state


def by_hand(state: dict[str, Tensor], tokens: Tensor, *, gated: bool) -> Tensor:
    """The logits of one prompt, in loops: a gate is open where its score is above zero."""

    def norm(stream: Tensor, name: str) -> Tensor:
        centred = stream - stream.mean(-1, keepdim=True)
        scale = (centred.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()
        return centred / scale * state[f"{name}.w"] + state[f"{name}.b"]

    stream = state["embed.W_E"][tokens] + state["pos_embed.W_pos"][: len(tokens)]
    for layer in range(2):
        at = f"blocks.{layer}.attn"
        read, written = (
            norm(stream, f"blocks.{layer}.ln1"),
            state[f"{at}.b_O"].repeat(len(tokens), 1),
        )
        for head in range(2):
            q, k, v = (
                read @ state[f"{at}.W_{part}"][head] + state[f"{at}.b_{part}"][head]
                for part in "QKV"
            )
            for i in range(len(tokens)):
                scores = [float(q[i] @ k[j]) / math.sqrt(8) for j in range(i + 1)]
                total = sum(math.exp(score) for score in scores)
                for j, score in enumerate(scores):
                    if score > 0 or not gated:
                        z = math.exp(score) / total * v[j]
                        written[i] = written[i] + z @ state[f"{at}.W_O"][head]
        stream = stream + written
        mlp = f"blocks.{layer}.mlp"
        inner = norm(stream, f"blocks.{layer}.ln2") @ state[f"{mlp}.W_in"] + state[f"{mlp}.b_in"]
        inner = functional.gelu(inner, approximate="tanh")
        stream = stream + inner @ state[f"{mlp}.W_out"] + state[f"{mlp}.b_out"]
    return norm(stream, "ln_final") @ state["unembed.W_U"] + state["unembed.b_U"]


@pytest.mark.parametrize("says", [{"use_sparse_attn": True}, {"use_sparse_attn": False}, {}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_config_of_either_kind_or_both_gives_the_model_that_was_saved(tmp_path, kind, says):
    state = write(tmp_path / "m", KINDS[kind] | says)
    model = load_model(tmp_path / "m")
    gated = says.get("use_sparse_attn", False)
    assert is_gated(model) == gated and (not gated or gate_bias(model) == 0)
    expected = torch.stack([by_hand(state, tokens, gated=gated) for tokens in TOKENS])
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, by_hand(state, TOKENS[1], gated=not gated), atol=1e-3)
    info = model_info(tmp_path / "m")
    assert (info.n_heads, info.d_vocab, info.n_ctx) == (2, 30, 24)
    assert info.gate == (GateCard(bias=0.0) if gated else None)


@needs_hooked_transformer
def test_a_llama_with_shared_keys_is_read_by_its_own_keys(tmp_path):
    config: dict[str, Any] = OWN | {
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "gated_mlp": True,
        "act_fn": "silu",
        "n_heads": 2,
        "n_key_value_heads": 1,
    }
    model = make_tiny_model(**config)
    theirs = {"model_type": "llama", "hidden_size": 16, "rope_theta": 500000.0}
    (tmp_path / "config.json").write_text(json.dumps(theirs | config))
    torch.save(model.state_dict(), tmp_path / "final.pth")
    assert torch.equal(load_model(tmp_path)(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    ("changes", "card", "message"),
    [
        ({"use_sparse_attn": 1}, None, "use_sparse_attn is 1; it must be true or false"),
        ({"use_sparse_attn": "true"}, None, "use_sparse_attn is 'true'; it must be true"),
        (
            {"use_sparse_attn": False},
            GateCard(bias=0.0),
            "use_sparse_attn is False, a dense model's, but gate.json lies next to it",
        ),
        (
            {"use_sparse_attn": False, "gate_bias": 0.5},
            None,
            "use_sparse_attn is False, a dense model's, but gate_bias is 0.5, a gated model's",
        ),
        (
            {"use_sparse_attn": True, "sparse_attention": False},
            None,
            "sparse_attention is False, a dense model's, but use_sparse_attn is True",
        ),
        ({"n_layers": 3}, None, "n_layers is 3, but n_layer, which is the same setting, is 2"),
        ({"eps": 1e-6}, None, "eps is 1e-06, but layer_norm_epsilon, .*, is 0.001; remove"),
        (
            {"activation_function": "silu"},
            None,
            "act_fn is 'gelu_new', but activation_fun.* 'silu'",
        ),
        (
            {"d_head": 5},
            None,
            "n_heads is missing, and d_model 16 is not a multiple of d_head 5, so",
        ),
        ({"d_head": 4}, None, "n_heads is 4, but n_head, which is the same setting, is 2"),
        ({"n_heads": 0}, None, "n_heads is 0; it must be a whole number"),
        ({"tokenizer_name": 3}, None, "tokenizer_name is 3; it must be a folder or a name"),
        (
            {"tokenizer_name": "./words"},
            None,
            "tokenizer_name is './words', but there is no folder .*words",
        ),
        (
            {"tokenizer_name": "someone/words"},
            None,
            "config.json: tokenizer_name: .*someone/words.*from the Hugging Face hub.*the network",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_by_file_and_field(tmp_path, changes, card, message):
    write(tmp_path / "m", KINDS["both"] | changes)
    for path in (tmp_path / "m").glob("*token*"):
        path.unlink()
    if card is not None:
        card.save(tmp_path / "m")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
        load_model(tmp_path / "m")
    assert str(tmp_path / "m/config.json") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_gate_file_goes_before_a_config_that_agrees(tmp_path):
    write(tmp_path / "m", KINDS["both"] | {"use_sparse_attn": True})
    GateCard(bias=0.5).save(tmp_path / "m")
    assert gate_bias(load_model(tmp_path / "m")) == 0.5
    assert model_info(tmp_path / "m").gate == GateCard(bias=0.5)


def test_the_tokenizer_may_lie_in_a_folder_that_the_config_names(tmp_path):
    write(tmp_path / "m", KINDS["both"] | {"tokenizer_name": "../words"})
    for path in (tmp_path / "m").glob("*token*"):
        path.unlink()
    word_tokenizer(["to", "be"]).save_pretrained(tmp_path / "words")
    assert load_model(tmp_path / "m").to_tokens("be to").tolist() == [[0, 3, 2]]
    word_tokenizer(f"w{n}" for n in range(40)).save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match=r"words gives ids up to 41 .*vocabulary of 30"):
        load_model(tmp_path / "m")
    for path in (tmp_path / "words").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer_name: the folder .*words holds no tok"):
        load_model(tmp_path / "m")
