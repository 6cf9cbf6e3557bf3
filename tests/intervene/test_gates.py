"""Gates held at their clean values, against a plain recomputation of each prompt by itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from circuits.attribute import attribution_patching, exact_patching
from circuits.attribute.exact_patching import exact_edge_effects
from circuits.gate.gate import add_gate, gate_gradient, hold_gates
from circuits.intervene.ablate import run_attention_edges, run_edges
from circuits.intervene.experiment import prepare_experiment
from tests.helpers import (
    make_prompts,
    make_tiny_model,
    needs_hooked_transformer,
    pad_together,
)

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}  # float32, a dozen layers of sums


@pytest.fixture
def gated():
    return add_gate(make_tiny_model(), bias=0.1)


def mixed_prompts(model):
    """Prompts of 5 and of 8 tokens, the short ones padded."""
    return pad_together(make_prompts(model, pos=5, templates=1), make_prompts(model, pos=8))


def clean_gates(model, tokens):
    """Which gates are open in the whole model's run, by layer, from the cache."""
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    return [cache[f"blocks.{layer}.attn.hook_gate"][0] for layer in range(model.cfg.n_layers)]


def last_logits_by_hand(model, graph, clean, corrupted, edges):
    """One prompt's logits with only some edges intact and its gates forced, from the weights."""
    held, cfg = clean_gates(model, clean[None]), model.cfg

    def norm(ln, x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + ln.eps).sqrt() * ln.w + ln.b

    def run(tokens, gates, read):
        out = {"input": model.W_E[tokens] + model.W_pos[: len(tokens)]}
        bias = torch.zeros(cfg.d_model)
        future = torch.ones(len(tokens), len(tokens)).triu(1).bool()
        for layer, block in enumerate(model.blocks):
            attn, heads = block.attn, {}
            for head in range(cfg.n_heads):
                q, k, v = (
                    norm(block.ln1, read(out, f"a{layer}.h{head}<{part}>") + bias)
                    @ getattr(attn, f"W_{part.upper()}")[head]
                    + getattr(attn, f"b_{part.upper()}")[head]
                    for part in "qkv"
                )
                scores = (q @ k.T / math.sqrt(cfg.d_head)).masked_fill(future, -math.inf)
                gate = (scores + 0.1 > 0).float() if gates is None else gates[layer][head]
                heads[f"a{layer}.h{head}"] = (gate * scores.softmax(-1)) @ v @ attn.W_O[head]
            out |= heads
            bias = bias + attn.b_O
            hidden = norm(block.ln2, read(out, f"m{layer}") + bias) @ block.mlp.W_in
            hidden = torch.nn.functional.gelu(hidden + block.mlp.b_in)
            out[f"m{layer}"] = hidden @ block.mlp.W_out + block.mlp.b_out
        final = norm(model.ln_final, read(out, "logits") + bias)
        return out, (final @ model.W_U + model.b_U)[-1]

    def inputs(of, destination):
        column = graph.destinations.index(destination)
        rows = [row for row in range(graph.n_sources) if graph.mask[row, column]]
        return sum(of(graph.sources[row], edges[row, column]) for row in rows)

    gone, _ = run(corrupted, None, lambda out, to: inputs(lambda name, _: out[name], to))
    return run(
        clean,
        held,
        lambda out, to: inputs(lambda name, keep: out[name] if keep else gone[name], to),
    )[1]


@needs_hooked_transformer
@torch.no_grad()
def test_edges_run_with_clean_gates_as_a_plain_recomputation_of_each_prompt(gated):
    prompts = mixed_prompts(gated)
    held = prepare_experiment(gated, prompts, metric="logit_diff", gates="clean")
    follow = prepare_experiment(gated, prompts, metric="logit_diff")
    torch.manual_seed(0)
    edges = held.graph.mask & (torch.rand(held.graph.mask.shape) < 0.5)
    logits = torch.stack(
        [
            last_logits_by_hand(gated, held.graph, clean[:length], corrupted[:length], edges)
            for clean, corrupted, length in zip(
                prompts.clean, prompts.corrupted, prompts.lengths.tolist(), strict=True
            )
        ]
    )
    found = run_edges(held, edges)
    torch.testing.assert_close(found, held.score(logits), **CLOSE)
    assert (found - run_edges(follow, edges)).abs().max() > 1e-3


@torch.no_grad()
def test_attention_edges_run_with_clean_gates_as_a_plain_loop_over_prompts_and_pairs(gated):
    prompts = mixed_prompts(gated)
    experiment = prepare_experiment(gated, prompts, metric="logit_diff", gates="clean")
    batch, pos = prompts.clean.shape
    torch.manual_seed(0)
    kept = torch.rand(batch, 2, 2, pos, pos) < 0.5
    logits = []
    for row, length in enumerate(prompts.lengths.tolist()):
        tokens = prompts.clean[row : row + 1, :length]
        held = clean_gates(gated, tokens)
        _, gone = gated.run_with_cache(prompts.corrupted[row : row + 1, :length])
        seen = {}

        def force(act, hook, held=held):
            return held[int(hook.name.split(".")[1])][None]

        def note(act, hook, seen=seen):
            seen[hook.name] = act

        def set_z(z, hook, row=row, length=length, gone=gone, seen=seen):
            layer = int(hook.name.split(".")[1])
            pattern, value = (f"blocks.{layer}.attn.hook_{name}" for name in ("pattern", "v"))
            new = torch.zeros_like(z)
            for head in range(2):
                for query in range(length):
                    for key in range(query + 1):
                        of = seen if kept[row, layer, head, query, key] else gone
                        weight = of[pattern][0, head, query, key]
                        new[0, query, head] += weight * of[value][0, key, head]
            return new

        hooks = []
        for layer in range(2):
            for name, hook in (("gate", force), ("v", note), ("pattern", note), ("z", set_z)):
                hooks.append((f"blocks.{layer}.attn.hook_{name}", hook))
        logits.append(gated.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1])
    expected = experiment.score(torch.stack(logits))
    torch.testing.assert_close(run_attention_edges(experiment, kept), expected, **CLOSE)


def test_whole_and_ablated_model_are_the_same_whether_gates_are_held_or_not(gated):
    prompts = mixed_prompts(gated)
    held = prepare_experiment(gated, prompts, metric="logit_diff", gates="clean")
    follow = prepare_experiment(gated, prompts, metric="logit_diff")
    nothing = torch.zeros_like(held.graph.mask)
    for experiment in (held, follow):
        torch.testing.assert_close(experiment.full, follow.full)
        torch.testing.assert_close(experiment.empty, follow.empty)
        torch.testing.assert_close(run_edges(experiment, ~nothing), follow.full, **CLOSE)
        torch.testing.assert_close(run_edges(experiment, nothing), follow.empty, **CLOSE)


@torch.no_grad()
def test_exact_patching_holds_the_gates_that_runs_of_circuits_hold(gated):
    prompts = make_prompts(gated, batch=3)
    held = prepare_experiment(gated, prompts, metric="logit_diff", gates="clean")
    follow = prepare_experiment(gated, prompts, metric="logit_diff")
    edges = held.graph.mask.nonzero()[::7].tolist()
    scores = exact_patching(held, attention_edges=False).edges
    found = torch.stack([scores[src, dest] for src, dest in edges])
    expected = exact_edge_effects(held, edges)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (expected - exact_edge_effects(follow, edges)).abs().max() > 1e-4


def test_attribution_with_held_gates_is_that_with_gates_constant(gated):
    prompts = make_prompts(gated)
    held = prepare_experiment(gated, prompts, metric="logit_diff", gates="clean")
    follow = prepare_experiment(gated, prompts, metric="logit_diff")
    with gate_gradient(gated, "frozen"):
        constant = attribution_patching(follow).edges
    torch.testing.assert_close(attribution_patching(held).edges, constant)
    assert (attribution_patching(follow).edges - constant).abs().max() > 1e-4


def test_a_dense_model_gives_the_same_with_either(tiny_model):
    prompts = make_prompts(tiny_model)
    held, follow = (
        prepare_experiment(tiny_model, prompts, metric="logit_diff", gates=gates)
        for gates in ("clean", "follow")
    )
    edges = held.graph.mask.clone()
    edges[::2] = False
    assert torch.equal(run_edges(held, edges), run_edges(follow, edges))


def test_gates_are_as_before_after_a_run_that_fails(gated):
    tokens = torch.arange(5)[None]
    before = gated(tokens)
    shut = torch.zeros(2, 1, 2, 5, 5, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="broken off"), hold_gates(gated, shut):
        assert not torch.allclose(gated(tokens), before)
        raise RuntimeError("broken off")
    torch.testing.assert_close(gated(tokens), before)


def test_an_unknown_kind_of_gates_is_refused(gated):
    with pytest.raises(ValueError, match="unknown gates 'open'; choose one of follow, clean"):
        prepare_experiment(gated, make_prompts(gated), metric="logit_diff", gates="open")
