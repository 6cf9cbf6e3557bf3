"""What must be known of an architecture beyond its sizes, each fact once.

A fact is a row in a table here, or a function of a model's config (of either class: both use
TransformerLens' names). The package's other modules ask these and name no architecture. How to add
one: docs/models.md.

The stream. A circuit's edges are defined where the residual stream is the sum of what heads
and MLPs write (`why_not_a_sum`), and where a component reads nothing else (`positions_handed_in`).
Some models pass what a layer's heads write together through one norm first (`norm_behind_heads`):
its input is then such a sum, and circuits/intervene/behind_heads.py says what edges are.

Norms. What a gradient behind a norm is before it depends on whether the norm subtracts the mean and
on its gain (`NORMS`, `norm_gain`); some models have none before their heads (`norm_before_heads`),
and some norm the queries of all heads as one vector (`norms_heads_together`).

Limits. Some models clip queries, keys and values, or cap or scale their logits (`value_limit`,
`logits_of`).

Scores. The fast paths of gated attention compute a causally masked softmax of scaled q.k; what some
layers do besides is in `beyond_softmax`.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

NORMS: dict[str | None, bool] = {
    "LN": True,
    "LNPre": True,
    "RMS": False,
    "RMSPre": False,
    None: False,
}
"""The norms that attribution knows, and whether they subtract the mean; `Pre` is without a gain."""

NORMALISED_AFTER = (
    "Exaone4ForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Glm4ForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
)
"""Architectures that normalise what heads and MLPs write; not all of their configs say so."""
NORMALISED_ONLY_AFTER = ("Exaone4ForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")
"""Those of them whose heads and MLPs read the residual stream without a norm."""
GAIN_FROM_ONE = ("NemotronForCausalLM",)
"""Architectures whose norms multiply by 1 + w, where their configs do not say so."""

POSITIONS_HANDED_IN = ("shortformer", "relative_positional_bias")
"""Kinds of positions that each block is given as an input of its own."""
POSITIONS_IN_SCORES = ("alibi", "relative_positional_bias")
"""Kinds of positions that are added to attention scores."""

ATTENTION_WEIGHTS = ("W_Q", "W_K", "W_V", "_W_K", "_W_V", "W_O")
"""HookedTransformer's matrices of attention; with an underscore, shared by several heads."""
MLP_WEIGHTS = ("W_in", "W_gate", "W_out")
"""HookedTransformer's matrices of an MLP."""


def has_mlps(cfg: Any) -> bool:
    """Returns whether blocks have MLPs."""
    return not cfg.attn_only


def is_parallel(cfg: Any) -> bool:
    """Returns whether a block's MLP reads what its heads read, not what they have written."""
    return bool(cfg.parallel_attn_mlp)


def shares_keys(cfg: Any) -> bool:
    """Returns whether several query heads share a key and value head."""
    return cfg.n_key_value_heads not in (None, cfg.n_heads)


def why_not_a_sum(cfg: Any) -> str | None:
    """Returns why the residual stream is not the sum of what components write, normed or not.

    None if it is.
    """
    factor = getattr(cfg, "residual_multiplier", None)
    if factor not in (None, 1):
        return f"multiplies what its heads and MLPs write by {factor:g}"
    return None


def norm_before_heads(cfg: Any, block: Any) -> Any | None:
    """Returns the norm that a block's heads read through; None if they read the stream itself."""
    if cfg.normalization_type is None or _architecture(cfg) in NORMALISED_ONLY_AFTER:
        return None
    return block.ln1


def norm_behind_heads(cfg: Any, block: Any) -> Any | None:
    """Returns the norm of the sum that a block's heads write; None if it is added as it is."""
    after = getattr(cfg, "use_normalization_before_and_after", False)
    if cfg.normalization_type is None or not (after or _architecture(cfg) in NORMALISED_AFTER):
        return None
    # TransformerLens 3 calls it ln1 where there is no norm before the heads.
    return block.ln1_post if hasattr(block, "ln1_post") else block.ln1


def norms_heads_together(cfg: Any, attn: Any) -> bool:
    """Returns whether one norm spans the queries of all heads, so that each depends on all."""
    weight = getattr(getattr(attn, "q_norm", None), "w", None)
    return weight is not None and weight.ndim == 1 and len(weight) > cfg.d_head


def positions_handed_in(cfg: Any) -> bool:
    """Returns whether the model hands positions to its heads, past the residual stream.

    Such heads cannot be run on what they read of the stream alone.
    """
    return cfg.positional_embedding_type in POSITIONS_HANDED_IN


def subtracts_mean(cfg: Any) -> bool:
    """Returns whether the model's norms subtract the mean.

    Raises:
        ValueError: a norm that is not in `NORMS`.
    """
    kind = cfg.normalization_type
    if kind not in NORMS:
        raise ValueError(
            f"{cfg.model_name} normalises by {kind!r}; attribution knows "
            f"{', '.join(map(str, NORMS))}"
        )
    return NORMS[kind]


def norm_gain(cfg: Any, norm: Any) -> Float[Tensor, " d_model"] | None:
    """Returns what a norm multiplies by; None for a norm without a gain."""
    gain = getattr(norm, "w", None)
    # A TransformerBridge holds w as the Hugging Face model does, a HookedTransformer the gain.
    from_one = getattr(cfg, "rmsnorm_uses_offset", False) or _architecture(cfg) in GAIN_FROM_ONE
    return gain + 1 if gain is not None and from_one else gain


def value_limit(cfg: Any) -> float | None:
    """Returns the size to which queries, keys and values are clipped after their hook points."""
    return getattr(cfg, "clip_qkv", None)


def logit_cap(cfg: Any) -> float | None:
    """Returns the size that logits are softly capped at, c tanh(logits / c)."""
    return _cap(cfg, "output_logits_soft_cap")


def beyond_softmax(cfg: Any) -> str | None:
    """Returns why a layer's attention is more than a causally masked softmax of scaled q.k.

    None if it is just that, whatever the norms, rotations and clips of q and k, and the window.
    """
    if cfg.positional_embedding_type in POSITIONS_IN_SCORES:
        return f"positions are added to its scores ({cfg.positional_embedding_type})"
    if cfg.attention_dir != "causal":
        return "it is not causal"
    if _cap(cfg, "attn_scores_soft_cap") is not None:
        return "its scores are capped"
    return "it has attention sinks" if getattr(cfg, "use_attention_sinks", False) else None


def has_whole_weights(cfg: Any) -> bool:
    """Returns whether weights are numbers that can be multiplied, not packed into four bits."""
    return not getattr(cfg, "load_in_4bit", False)


def _architecture(cfg: Any) -> str | None:
    return getattr(cfg, "original_architecture", None) or getattr(cfg, "architecture", None)


def _cap(cfg: Any, name: str) -> float | None:
    cap = getattr(cfg, name, None) or 0.0
    return cap if cap > 0 else None  # TransformerLens writes -1 for none
