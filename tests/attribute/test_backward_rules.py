"""Replaced derivatives against a forward pass, written by hand, whose own derivatives are these.

The referee detaches what a rule takes as a constant and lets autograd do the rest, one head at a
time, in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.attribute import attribution_patching, exact_edge_effects
from circuits.attribute.backward_rules import PLAIN, BackwardRules
from circuits.attribute.gim import RULES as GIM
from circuits.attribute.gim import gim
from circuits.attribute.gradients import run_backward
from circuits.attribute.input_path import score_along_inputs
from circuits.attribute.relp import RULES as RELP
from circuits.attribute.relp import relevance_patching
from circuits.gate.gate import add_gate, gate_gradient
from circuits.intervene.experiment import Experiment, prepare_experiment
from circuits.models.backend import backend_of
from tests.helpers import make_prompts, make_tiny_model, needs_hooked_transformer
from tests.models import slow_reference as slow

LLAMA: dict[str, Any] = {
    "normalization_type": "RMS",
    "gated_mlp": True,
    "act_fn": "silu",
    "positional_embedding_type": "rotary",
    "rotary_dim": 4,
    "n_heads": 4,
    "n_key_value_heads": 2,
    "d_head": 4,
}
MODELS: dict[str, Callable[[], Any]] = {
    "layer norm": lambda: wide(),
    "gated MLP, parallel": lambda: wide(gated_mlp=True, parallel_attn_mlp=True),
    "Gemma 3": lambda: wide(
        **LLAMA, use_qk_norm=True, use_normalization_before_and_after=True, attn_scores_soft_cap=0.5
    ),
    "OLMo 2": lambda: wide(
        normalization_type="RMS",
        gated_mlp=True,
        act_fn="silu",
        original_architecture="Olmo2ForCausalLM",
    ),
    "attention sinks": lambda: wide(use_attention_sinks=True, attn_only=True),
    "gated attention": lambda: add_gate(wide(normalization_type="LNPre"), bias=0.1),
    "gated attention, Llama": lambda: add_gate(wide(**LLAMA), bias=0.1),
}


def wide(**overrides: Any) -> Any:
    return make_tiny_model(dtype=torch.float64, **overrides)


@dataclass(frozen=True)
class ByHand:
    """The parts of a forward pass that a rule concerns, with the derivatives of the rule."""

    rules: BackwardRules

    def run_norm(self, norm: Any, stream: Tensor) -> Tensor:
        if "LayerNorm" in type(norm).__name__:
            stream = stream - stream.mean(dim=-1, keepdim=True)
        scale = (stream.pow(2).mean(dim=-1, keepdim=True) + norm.cfg.eps).sqrt()
        normed = stream / scale.detach()
        return normed * getattr(norm, "w", 1) + getattr(norm, "b", 0)

    def run_mlp(self, mlp: Any, stream: Tensor) -> Tensor:
        gated, half = mlp.cfg.gated_mlp, self.rules.product_share
        pre = stream @ (mlp.W_gate if gated else mlp.W_in) + (0 if gated else mlp.b_in)
        post = mlp.act_fn(pre)
        if self.rules.constant_slopes:
            post = pre * (post / pre).detach()
        if gated:
            product = post * (stream @ mlp.W_in)
            post = half * product + ((1 - half) * product).detach() + mlp.b_in
        return post @ mlp.W_out + mlp.b_out

    def softmax(self, scores: Tensor) -> Tensor:
        temperature = self.rules.temperature
        other = temperature * (scores / temperature).softmax(dim=-1)
        return scores.softmax(dim=-1).detach() + other - other.detach()

    def hand_on(self, read: str, act: Tensor) -> Tensor:
        share = self.rules.shares.get(read, 1.0)
        return share * act + ((1 - share) * act).detach()


def experiment_of(model: Any) -> Experiment:
    return prepare_experiment(model, make_prompts(model, batch=4, pos=5), metric="logit_diff")


@needs_hooked_transformer
@pytest.mark.parametrize("rules", [GIM, RELP], ids=["gim", "relp"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_a_forward_pass_with_the_rules(monkeypatch, name, rules):
    experiment = experiment_of(MODELS[name]())
    by_hand = ByHand(rules)
    for part in ("run_norm", "run_mlp", "softmax", "hand_on"):
        monkeypatch.setattr(slow, part, getattr(by_hand, part))
    model: Any = experiment.model
    expected = slow.score(model, experiment.prompts)
    found = score_along_inputs(experiment, [1.0], method="", attention_edges=True, rules=rules)
    plain, graph = attribution_patching(experiment).edges, experiment.graph
    edges = torch.zeros(graph.mask.shape, dtype=torch.float64)
    for edge, values in expected.edges.items():
        edges[graph.edge_index(edge)] = values.mean()
    torch.testing.assert_close(found.edges, edges, atol=1e-10, rtol=1e-7)
    assert (found.edges - plain).abs().max() > 1e-3 * plain.abs().max()
    for template, rows in experiment.prompts.groups().items():
        for layer, of_layer in enumerate(found.attention_edges[template]):
            for head, scores in enumerate(of_layer):
                terms = expected.attention_edges[f"a{layer}.h{head}"][rows].mean(dim=0)
                torch.testing.assert_close(scores, terms, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("rules", [GIM, RELP], ids=["gim", "relp"])
def test_rules_change_no_value_and_leave_nothing_behind(rules):
    model = add_gate(make_tiny_model(), bias=0.1)
    experiment, rows = experiment_of(model), slice(0, 4)
    plain, before = run_backward(experiment, rows, []), attribution_patching(experiment)
    ruled = run_backward(experiment, rows, [], rules=rules)
    assert torch.equal(ruled.logits, plain.logits)
    assert all(torch.equal(ruled.acts[name], act) for name, act in plain.acts.items())
    assert not torch.allclose(
        ruled.gradients["blocks.0.attn.hook_q"], plain.gradients["blocks.0.attn.hook_q"]
    )

    def stop(act: Tensor, hook: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_backward(experiment, rows, [("blocks.1.hook_mlp_out", stop)], rules=rules)
    assert not any(point.fwd_hooks or point._forward_hooks for point in model.hook_dict.values())
    assert torch.equal(attribution_patching(experiment).edges, before.edges)


def test_a_frozen_gate_stays_frozen():
    model = add_gate(make_tiny_model(), bias=0.1)
    experiment = experiment_of(model)
    through = gim(experiment).edges
    with gate_gradient(model, "frozen"):
        frozen = gim(experiment).edges
    assert not torch.allclose(through, frozen)
    assert torch.allclose(through[:, -1], frozen[:, -1])  # no gate behind the logits


@needs_hooked_transformer
def test_gim_is_exact_on_a_linear_model_whose_heads_hand_on_half():
    """Its shares halve every path through a value: no score of such an edge is an effect."""
    model: Any = make_tiny_model(normalization_type=None, attn_only=True)
    with torch.no_grad():
        for block in model.blocks:
            for weight in (block.attn.W_Q, block.attn.W_K, block.attn.b_Q, block.attn.b_K):
                weight.zero_()
    experiment = experiment_of(model)
    scores, halved = gim(experiment).edges, deepcopy(model)
    with torch.no_grad():
        for block in halved.blocks:
            block.attn.W_V /= 2
    # The input writes what it did.
    experiment = prepare_experiment(halved, experiment.prompts, metric="logit_diff")
    edges = [(0, dest) for dest in experiment.graph.mask[0].nonzero().flatten().tolist()]
    measured = exact_edge_effects(experiment, edges)
    assert measured.abs().max() > 1e-2
    torch.testing.assert_close(scores[0, [d for _, d in edges]], measured, atol=1e-6, rtol=1e-4)


@needs_hooked_transformer
def test_a_unit_at_zero_hands_on_nothing():
    """act(x) / x has no value there, and 0 of its input is all that such a unit passes on."""
    model: Any = make_tiny_model(n_layers=1, act_fn="relu")
    with torch.no_grad():
        model.blocks[0].mlp.W_in.zero_()
        model.blocks[0].mlp.b_in.zero_()
    scores = relevance_patching(experiment_of(model)).edges
    assert not scores[:, -2].any()
    assert torch.isfinite(scores).all()


@needs_hooked_transformer
@pytest.mark.parametrize(
    ("rules", "overrides", "reason"),
    [
        (RELP, {"act_fn": "solu_ln"}, "norm inside its MLPs"),
        (
            GIM,
            {"num_experts": 2, "experts_per_token": 1, "gated_mlp": True},
            "does not show blocks",
        ),
    ],
)
def test_mlps_of_another_kind_are_refused(rules, overrides, reason):
    model = make_tiny_model(**overrides)
    with pytest.raises(ValueError, match=rf"{reason}.*use the method 'attribution_patching'"):
        rules.check(model)


def test_attention_that_shows_its_pattern_after_the_fact_is_refused(monkeypatch, tiny_model):
    backend = backend_of(tiny_model)
    monkeypatch.setattr(backend, "why_not_gated", lambda _: "T5: it does not compute its scores")
    with pytest.raises(ValueError, match=r"takes no change of its pattern \(T5"):
        GIM.check(tiny_model)
    RELP.check(tiny_model)  # which leaves attention as it is


def test_a_norm_without_hook_points_is_refused(tiny_model):
    tiny_model.blocks[1].add_module("extra", torch.nn.LayerNorm(16))
    with pytest.raises(ValueError, match=r"norm without hook points \(blocks.1.extra\)"):
        RELP.check(tiny_model)
    PLAIN.check(tiny_model)
