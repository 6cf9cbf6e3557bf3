"""A score split over pairs of sources, against runs of the model without each of them.

The referee shares no code: it takes sources off what one head's query and key read, pair after
pair, with the scales of all norms held, and forms the mixed difference of the score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from circuits import split_score
from circuits.attribute.score_split import attention_without, split_score_of_tokens
from circuits.gate.gate import add_gate
from circuits.models.backend import component_hooks
from circuits.models.load import copy_model, load_bridge, load_model
from circuits.results.score_split import ScoreSplit
from tests.helpers import (
    GROUPED,
    make_tiny_model,
    needs_hooked_transformer,
    word_tokenizer,
)

TOKENS = torch.tensor([[0, 7, 12, 7, 25, 3]])
LAYER, HEAD, QUERY, KEY = 1, 1, 4, 1

AFTER = {"normalization_type": "RMS", "use_normalization_before_and_after": True}
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4}
OLMO = ROTARY | {"normalization_type": "RMS", "original_architecture": "Olmo2ForCausalLM"}
HOOKED: dict[str, dict[str, Any]] = {
    "layer norm, positions added": {},
    "Llama": GROUPED,
    "Qwen 3": GROUPED | {"use_qk_norm": True},
    "norms behind heads, and of queries": GROUPED | AFTER | {"use_qk_norm": True},
    "OLMo 2": OLMO,
    "ALiBi": {"positional_embedding_type": "alibi"},
    "no norm": {"normalization_type": None},
    "parallel MLP, sinks": {"parallel_attn_mlp": True, "use_attention_sinks": True},
}
SMALL: dict[str, Any] = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
LLAMA: dict[str, Any] = SMALL | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
BRIDGES: dict[str, hf.PretrainedConfig] = {
    "GPT-2": hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **SMALL),
    "Qwen 3": hf.Qwen3Config(head_dim=4, **LLAMA),
    "Gemma, whose norms multiply by 1 + w": hf.GemmaConfig(head_dim=4, **LLAMA),
}


def is_olmo(model: Any) -> bool:
    return getattr(model.cfg, "original_architecture", None) == OLMO["original_architecture"]


def split_of(model: Any) -> ScoreSplit:
    texts = tuple(str(one) for one in TOKENS[0].tolist())
    return split_score_of_tokens(model, TOKENS, texts, LAYER, HEAD, QUERY, KEY)


class HeldNorm:
    """What a norm computes when it divides by what it divided by for its first input of a shape.

    Its gain and whether it centres are read off what it makes of vectors of known scale.
    """

    def __init__(self, norm: nn.Module, width: int, eps: float) -> None:
        signs = torch.tensor([1.0, -1.0]).repeat(width // 2)[None, None]
        zero = norm(torch.zeros_like(signs))
        self.bias = zero[0, 0]
        self.gain = ((norm(signs) - zero) * signs * (1 + eps) ** 0.5)[0, 0]
        self.centred = torch.allclose(norm(torch.ones_like(signs)), zero, atol=1e-4)
        self.eps = eps
        self.scales: dict[torch.Size, Tensor] = {}

    def __call__(self, _norm: nn.Module, inputs: tuple[Tensor, ...], _out: Tensor) -> Tensor:
        act = inputs[0]
        act = act - act.mean(dim=-1, keepdim=True) if self.centred else act
        scale = (act.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()
        return act / self.scales.setdefault(act.shape, scale) * self.gain + self.bias


@contextmanager
def held_norms(model: Any) -> Iterator[None]:
    """Holds the norms before the layer's heads and of its queries and keys, once one has run."""
    block, eps = model.blocks[LAYER], model.cfg.eps
    before = [] if is_olmo(model) or model.cfg.normalization_type is None else [block.ln1]
    # A TransformerBridge norms the inputs of single heads by the norm that its own wraps.
    before = [getattr(block.attn, "_ln1_module", None) or norm for norm in before]
    inside = [getattr(block.attn, f"{part}_norm", None) for part in "qk"]
    with ExitStack() as stack:
        for norm in [*before, *filter(None, inside)]:
            held = HeldNorm(norm, next(norm.parameters()).shape[-1], eps)
            stack.callback(norm.register_forward_hook(held).remove)
        yield


def written(model: Any) -> dict[str, Tensor]:
    """What each source wrote before the layer at all positions, by its name."""
    _, cache = model.run_with_cache(TOKENS)
    found = {"embed": cache["blocks.0.hook_resid_pre"][0]}
    if model.cfg.positional_embedding_type == "standard":
        found["pos_embed"] = cache["hook_pos_embed"][0]
        found["embed"] = found["embed"] - found["pos_embed"]
    for layer in range(LAYER):
        block = model.blocks[layer]
        z, w_o = cache[f"blocks.{layer}.attn.hook_z"][0], block.attn.W_O
        behind = block.ln1 if is_olmo(model) else getattr(block, "ln1_post", None)
        for head in range(model.cfg.n_heads):
            out = z[:, head] @ w_o[head]
            if behind is not None:
                total = torch.einsum("phe,hed->pd", z, w_o) + block.attn.b_O
                out = out * behind.w / (total.square().mean(-1) + model.cfg.eps).sqrt()[:, None]
            found[f"a{layer}.h{head}"] = out
        found[f"m{layer}"] = cache[f"blocks.{layer}.hook_mlp_out"][0]
    return found


def by_subtraction(model: Any) -> tuple[dict[tuple[str, str], float], float]:
    """Each pair's part of the score, the constant among the sources, and the score."""
    acts = written(model)

    @cache
    def run(query_without: tuple[str, ...], key_without: tuple[str, ...]) -> float:
        found: list[float] = []

        def less(act: Tensor, hook: object, *, names: tuple[str, ...], at: int) -> Tensor:
            act = act.clone()
            for name in names:
                act[0, at, HEAD] -= acts[name][at]
            return act

        hooks = [
            (f"blocks.{LAYER}.hook_q_input", partial(less, names=query_without, at=QUERY)),
            (f"blocks.{LAYER}.hook_k_input", partial(less, names=key_without, at=KEY)),
            (
                f"blocks.{LAYER}.attn.hook_attn_scores",
                lambda act, hook: found.append(float(act[0, HEAD, QUERY, KEY])),
            ),
        ]
        model.run_with_hooks(TOKENS, fwd_hooks=hooks)
        return found[0]

    pairs = {}
    with torch.no_grad(), component_hooks(model), held_norms(model):
        score = run((), ())
        for u in acts:
            for v in acts:
                pairs[u, v] = score - run((u,), ()) - run((), (v,)) + run((u,), (v,))
        names = tuple(acts)
        for u in acts:  # what only the constants of the other side are paired with
            pairs[u, "bias"] = run((), names) - run((u,), names)
            pairs["bias", u] = run(names, ()) - run(names, (u,))
        pairs["bias", "bias"] = run(names, names)
    return pairs, score


def assert_as_by_subtraction(model: Any) -> None:
    expected, score = by_subtraction(model)
    split = split_of(model)
    frame = split.to_dataframe()
    found = {(u, v): value for u, v, value in frame.itertuples(index=False)}
    found["bias", "bias"] += split.by_position
    assert found == pytest.approx(expected, abs=1e-4)
    assert split.score == pytest.approx(score, abs=1e-4)
    assert frame.score.sum() + split.by_position == pytest.approx(score, abs=1e-4)
    assert max(abs(value) for value in expected.values()) > 0.1
    assert split.sources[0] == "embed"
    assert split.sources[-1] == "bias"


@needs_hooked_transformer
@pytest.mark.parametrize("name", HOOKED)
def test_pairs_are_what_a_run_without_both_loses_more_than_without_each(name):
    model = make_tiny_model(**HOOKED[name])
    with torch.no_grad():
        for weight in (model.blocks[LAYER].attn.W_Q, model.blocks[LAYER].attn.W_K):
            weight.mul_(8)
    assert_as_by_subtraction(model)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", BRIDGES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pairs_of_a_bridge_are_too(tmp_path, name):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(BRIDGES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    assert_as_by_subtraction(load_bridge(tmp_path))


PROMPT = "Then Mary and John went to the store . John gave a book to"


@pytest.fixture(scope="module")
def pair() -> dict[str, Any]:
    return {name: load_model(name) for name in ("dense", "sparse")}


@pytest.mark.slow
@pytest.mark.parametrize("load", [load_model, load_bridge])
@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_pairs_of_the_embedded_models_add_up_to_their_scores(name, load):
    model = load(name)
    _, run = model.run_with_cache(model.to_tokens(PROMPT))
    for layer, head, query, key in [(0, 3, 4, 1), (2, 7, 13, 0), (5, 2, 13, 4)]:
        split = split_score(model, PROMPT, layer, head, query, key)
        expected = float(run[f"blocks.{layer}.attn.hook_attn_scores"][0, head, query, key])
        assert split.to_dataframe().score.sum() == pytest.approx(expected, abs=1e-4)
        assert split.score == pytest.approx(expected, abs=1e-5)
        assert len(split.sources) == 3 + 9 * layer


@pytest.mark.slow
def test_an_open_gate_is_shut_without_its_strongest_pairs_and_not_without_others(pair):
    split = split_score(pair["sparse"], PROMPT, 4, 1, -1, 10)
    assert str(split) == "a4.h1 from 14 'to' to 10 'John'"
    n = split.n_to_shut
    assert split.over_threshold == pytest.approx(split.score) == pytest.approx(5.42, abs=0.01)
    assert n is not None
    assert 1 < n < 0.01 * split.pairs.numel()

    def run(pairs: list[tuple[str, str]]) -> tuple[float, float]:
        """Gate and attention where the pairs, one by one, are taken off the score."""
        values = {(u, v): x for u, v, x in split.to_dataframe().itertuples(index=False)}
        found = {}

        def less(scores: Tensor, hook: object) -> None:
            for one in pairs:
                scores[0, 1, 14, 10] -= values[one]

        def keep(act: Tensor, hook: Any) -> None:
            found[hook.name] = float(act[0, 1, 14, 10])

        block = "blocks.4.attn"
        hooks: list[Any] = [(f"{block}.hook_attn_scores", less)]
        hooks += [(f"{block}.hook_{what}", keep) for what in ("gate", "pattern")]
        with torch.no_grad():
            pair["sparse"].run_with_hooks(PROMPT, fwd_hooks=hooks)
        return found[f"{block}.hook_gate"], found[f"{block}.hook_pattern"]

    assert run(split.strongest(n)) == (0, 0)
    assert run(split.strongest(n - 1))[0] == 1
    assert run([]) == (1, pytest.approx(split.pattern))
    for pairs in (split.strongest(n), split.strongest(2), []):
        found = attention_without(pair["sparse"], PROMPT, split, pairs)
        assert found == pytest.approx(run(pairs)[1], abs=1e-6)
    generator = torch.Generator().manual_seed(1)
    others = split.strongest(split.pairs.numel())[n:]
    shut = []
    for _ in range(20):
        drawn = torch.randperm(len(others), generator=generator)[:n].tolist()
        shut.append(run([others[one] for one in drawn])[0] == 0)
    assert sum(shut) == 0 == split.shut_at_random(n, n_draws=200)
    # The same pairs of the dense model lower its score as well, but there is nothing to pass.
    dense = split_score(pair["dense"], PROMPT, 4, 1, -1, 10)
    assert dense.over_threshold is None is dense.n_to_shut
    left = attention_without(pair["dense"], PROMPT, dense, dense.strongest(n))
    assert 0 < left < dense.pattern


def test_the_strongest_come_first_and_the_fewest_are_counted():
    split = ScoreSplit(
        model="m",
        tokens=("a", "b"),
        layer=1,
        head=0,
        query=1,
        key=0,
        sources=("embed", "bias"),
        pairs=torch.tensor([[1.0, -4.0], [3.0, 2.0]]),
        by_position=0.5,
        score=2.5,
        gate_bias=1.0,
        pattern=0.25,
    )
    assert split.strongest(2) == [("bias", "embed"), ("bias", "bias")]
    assert split.over_threshold == 3.5
    assert split.n_to_shut == 2
    assert split.value([("bias", "embed"), ("bias", "bias"), ("bias", "bias")]) == 5
    assert split.to_dataframe().score.tolist() == [-4, 3, 2, 1]
    assert split.shut_at_random(2) == 0
    assert dataclasses.replace(split, gate_bias=-2.0).shut_at_random(1) == pytest.approx(
        2 / 3, abs=0.05
    )
    assert dataclasses.replace(split, gate_bias=3.6, by_position=0).n_to_shut is None
    assert dataclasses.replace(split, gate_bias=-2.5).n_to_shut == 0
    with pytest.raises(ValueError, match="'m3' is no source of a1.h0; sources are embed, bias"):
        split.value([("embed", "m3")])
    with pytest.raises(ValueError, match="4 pairs cannot be drawn of the 0"):
        split.shut_at_random(4)


@pytest.fixture
def model() -> Any:
    return make_tiny_model(tokenizer=word_tokenizer(["the", "cat", "sat"]))


def test_the_key_is_what_gets_most_attention_unless_it_is_given(model):
    gated = add_gate(copy_model(model), bias=0.25)
    for one in (model, gated):
        split = split_score(one, "the cat sat cat", 1, 0)
        _, run = one.run_with_cache(one.to_tokens("the cat sat cat"))
        pattern = run["pattern", 1][0, 0, -1]
        assert (split.query, split.key) == (4, int(pattern.argmax()))
        assert split.pattern == pytest.approx(float(pattern.max()))
        assert split.gate_bias == (0.25 if one is gated else None)
        assert not any(parameter.grad is not None for parameter in one.parameters())
    assert split_score(model, "the cat sat cat", 1, 0, -2, 1).tokens[3] == "sat"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((2, 0), "no head a2.h0: it has layers 0 to 1, of heads 0 to 1"),
        ((1, 0, 5), "no position 5 for the query; the prompt has 0 .*, 1 'the'"),
        ((1, 0, 2, 3), "position 2 does not see position 3 in a1.h0"),
    ],
)
def test_what_is_not_there_is_refused(model, arguments, why):
    with pytest.raises(ValueError, match=why):
        split_score(model, "the cat sat", *arguments)


@needs_hooked_transformer
@pytest.mark.parametrize(
    ("config", "why"),
    [({"clip_qkv": 0.3}, "clips its queries"), ({"attn_scores_soft_cap": 0.5}, "caps its scores")],
)
def test_scores_that_are_no_sum_are_refused(config, why):
    tokenizer = word_tokenizer(["the", "cat"])
    with pytest.raises(ValueError, match=why):
        split_score(make_tiny_model(tokenizer=tokenizer, **config), "the cat", 0, 0)
