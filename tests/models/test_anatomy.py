"""The facts of architectures, read off configs with TransformerLens' names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from circuits.models import anatomy


def config(**values: Any) -> SimpleNamespace:
    """A GPT-2's, as both classes have it, with some values changed."""
    return SimpleNamespace(
        **{
            "model_name": "tiny",
            "attn_only": False,
            "parallel_attn_mlp": False,
            "n_heads": 4,
            "n_key_value_heads": None,
            "positional_embedding_type": "standard",
            "attention_dir": "causal",
            "normalization_type": "LN",
            "attn_scores_soft_cap": -1.0,
            "output_logits_soft_cap": -1.0,
        }
        | values
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, None),
        ({"positional_embedding_type": "rotary"}, None),
        ({"positional_embedding_type": "alibi"}, "positions are added to its scores (alibi)"),
        (
            {"positional_embedding_type": "relative_positional_bias"},
            "positions are added to its scores (relative_positional_bias)",
        ),
        ({"attention_dir": "bidirectional"}, "it is not causal"),
        ({"attn_scores_soft_cap": 50.0}, "its scores are capped"),
        ({"use_attention_sinks": True}, "it has attention sinks"),
        ({"clip_qkv": 8.0}, None),
        ({"use_local_attn": True}, None),
    ],
)
def test_what_attention_does_beyond_a_softmax(values: dict[str, Any], reason: str | None) -> None:
    assert anatomy.beyond_softmax(config(**values)) == reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, None),
        ({"residual_multiplier": 1.0}, None),
        ({"residual_multiplier": 0.22}, "multiplies what its heads and MLPs write by 0.22"),
    ],
)
def test_what_keeps_the_stream_from_being_a_sum(values: dict[str, Any], reason: str | None) -> None:
    assert anatomy.why_not_a_sum(config(**values)) == reason


@pytest.mark.parametrize(
    ("values", "before", "behind"),
    [
        ({}, "ln1", None),
        ({"normalization_type": None}, None, None),
        ({"architecture": "LlamaForCausalLM"}, "ln1", None),
        ({"use_normalization_before_and_after": True}, "ln1", "ln1_post"),
        ({"architecture": "Gemma2ForCausalLM"}, "ln1", "ln1_post"),
        # A HookedTransformer and a TransformerBridge keep the architecture under different names.
        ({"architecture": "Olmo2ForCausalLM"}, None, "ln1_post"),
        ({"original_architecture": "Olmo2ForCausalLM"}, None, "ln1_post"),
    ],
)
def test_where_the_norms_of_heads_stand(values, before, behind):
    block = SimpleNamespace(ln1="ln1", ln1_post="ln1_post")
    assert anatomy.norm_before_heads(config(**values), block) == before
    assert anatomy.norm_behind_heads(config(**values), block) == behind
    # Where there is only one norm a sublayer, TransformerLens 3 calls it ln1.
    if before is None and behind is not None:
        block = SimpleNamespace(ln1="ln1")
        assert anatomy.norm_behind_heads(config(**values), block) == "ln1"


@pytest.mark.parametrize("kind", anatomy.POSITIONS_HANDED_IN)
def test_positions_that_heads_are_handed(kind: str) -> None:
    assert anatomy.positions_handed_in(config(positional_embedding_type=kind))
    assert not anatomy.positions_handed_in(config())
    assert not anatomy.positions_handed_in(config(positional_embedding_type="alibi"))


def test_norms_that_subtract_the_mean() -> None:
    centred = {
        kind for kind in anatomy.NORMS if anatomy.subtracts_mean(config(normalization_type=kind))
    }
    assert centred == {"LN", "LNPre"}
    with pytest.raises(ValueError, match="tiny normalises by 'batch'; attribution knows LN, LNPre"):
        anatomy.subtracts_mean(config(normalization_type="batch"))


def test_the_gain_of_a_norm() -> None:
    norm = SimpleNamespace(w=torch.tensor([0.5, -1.0]))
    assert anatomy.norm_gain(config(), norm) is norm.w
    assert anatomy.norm_gain(config(), SimpleNamespace()) is None
    for offset in ({"rmsnorm_uses_offset": True}, {"architecture": "NemotronForCausalLM"}):
        gain = anatomy.norm_gain(config(**offset), norm)
        assert gain is not None
        assert gain.tolist() == [1.5, 0.0]


def test_limits_and_shapes() -> None:
    assert anatomy.value_limit(config()) is None
    assert anatomy.value_limit(config(clip_qkv=8.0)) == 8.0
    assert anatomy.logit_cap(config()) is None
    assert anatomy.logit_cap(config(output_logits_soft_cap=30.0)) == 30.0
    assert not anatomy.shares_keys(config())
    assert not anatomy.shares_keys(config(n_key_value_heads=4))
    assert anatomy.shares_keys(config(n_key_value_heads=2))
    assert anatomy.has_mlps(config())
    assert not anatomy.has_mlps(config(attn_only=True))
    assert anatomy.is_parallel(config(parallel_attn_mlp=True))
    assert anatomy.has_whole_weights(config())
    assert not anatomy.has_whole_weights(config(load_in_4bit=True))
