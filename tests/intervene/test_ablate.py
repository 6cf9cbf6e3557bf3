import math
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch

from circuits.attribute import exact_edge_effects
from circuits.gate.gate import add_gate
from circuits.graph import Graph
from circuits.intervene import activations
from circuits.intervene.ablate import run_attention_edges, run_edges
from circuits.intervene.experiment import (
    check_does_task,
    faithfulness,
    graph_of,
    prepare_experiment,
)
from circuits.workers import Workers
from tests.helpers import GROUPED, make_prompts, make_tiny_model, pad_together

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}  # float32, a dozen layers of sums

MODELS = {
    "plain": {},
    "gated": {},
    "attention only": {"attn_only": True},
    "parallel attention": {"parallel_attn_mlp": True},
    "norms behind heads": {"normalization_type": "RMS", "use_normalization_before_and_after": True},
    "rotary, grouped queries": GROUPED,
}


@pytest.fixture(params=MODELS, ids=str)
def model(request):
    built = make_tiny_model(**MODELS[request.param])
    return add_gate(built, bias=0.3) if request.param == "gated" else built


def everything_kept(experiment):
    cfg = experiment.model.cfg
    batch, pos = experiment.prompts.clean.shape
    return torch.ones(batch, cfg.n_layers, cfg.n_heads, pos, pos, dtype=torch.bool)


@pytest.mark.parametrize("ablation", ["corrupted", "mean", "zero"])
def test_with_every_edge_it_is_the_model(model, ablation):
    experiment = prepare_experiment(
        model, make_prompts(model), metric="logit_diff", ablation=ablation
    )
    torch.testing.assert_close(
        run_edges(experiment, experiment.graph.mask), experiment.full, **CLOSE
    )
    kept = everything_kept(experiment)
    torch.testing.assert_close(run_attention_edges(experiment, kept), experiment.full, **CLOSE)


def test_with_no_edge_it_is_the_corrupted_run(model):
    prompts = make_prompts(model)
    experiment = prepare_experiment(model, prompts, metric="logit_diff")
    with torch.no_grad():
        corrupted = experiment.score(model(prompts.corrupted)[:, -1])
    torch.testing.assert_close(experiment.empty, corrupted, **CLOSE)


def test_an_experiment_runs_the_share_of_the_process_that_it_was_given(tiny_model):
    prompts = make_prompts(tiny_model, batch=5)

    def rows_of(workers: Workers) -> list[int]:
        experiment = prepare_experiment(tiny_model, prompts, metric="logit_diff", workers=workers)
        return [row for rows in experiment.own_batches() for row in range(5)[rows]]

    first, second = rows_of(Workers(0, 2)), rows_of(Workers(1, 2))
    assert first
    assert second
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    # What one experiment shares, the next does not.
    alone = prepare_experiment(tiny_model, prompts, metric="logit_diff")
    assert alone.own_batches() == [slice(0, 5)]


def test_mean_ablation_of_everything_unembeds_the_mean_of_each_template(tiny_model):
    prompts = make_prompts(tiny_model)
    experiment = prepare_experiment(tiny_model, prompts, metric="logit_diff", ablation="mean")
    with torch.no_grad():
        _, cache = tiny_model.run_with_cache(prompts.clean)
        resid = cache["blocks.1.hook_resid_post"]
        for rows in prompts.groups().values():
            resid[rows] = resid[rows].mean(dim=0)
        logits = tiny_model.unembed(tiny_model.ln_final(resid))
    torch.testing.assert_close(experiment.empty, experiment.score(logits[:, -1]), **CLOSE)


def test_zero_ablation_of_everything_leaves_the_biases_of_attention(tiny_model):
    prompts = make_prompts(tiny_model)
    experiment = prepare_experiment(tiny_model, prompts, metric="logit_diff", ablation="zero")
    with torch.no_grad():
        resid = torch.stack([block.attn.b_O for block in tiny_model.blocks]).sum(0).expand(1, 1, -1)
        logits = tiny_model.unembed(tiny_model.ln_final(resid))
    expected = experiment.score(logits[:, 0].expand(len(prompts), -1))
    torch.testing.assert_close(experiment.empty, expected, **CLOSE)


def of_two_lengths(model):
    """Prompts of a short template and of two longer ones, whose members take turns."""
    short, long = make_prompts(model, pos=5, templates=1), make_prompts(model, pos=8)
    rows = [0, 6, 1, 7, 8, 2, 9, 3, 10, 4, 11, 5]
    return pad_together(short, long).subset(rows)


def mean_terms_by_formula(model, prompts):
    """The mean over a template's prompts of A_ij P_ij v_j, for each prompt, layer by layer."""
    with torch.no_grad():
        _, cache = model.run_with_cache(prompts.clean)
    found = []
    for layer in range(model.cfg.n_layers):
        attn = f"blocks.{layer}.attn"
        terms = torch.einsum(
            "bhqk,bkhe->bqkhe", cache[f"{attn}.hook_pattern"], cache[f"{attn}.hook_v"]
        )
        for members in prompts.groups().values():
            terms[members] = terms[members].mean(dim=0)
        found.append(terms)
    return found


@pytest.mark.parametrize("rows", [slice(0, 12), slice(3, 7)], ids=["all prompts", "some of them"])
def test_mean_terms_are_what_the_plain_formula_says(tiny_model, rows):
    prompts = of_two_lengths(tiny_model)
    experiment = prepare_experiment(tiny_model, prompts, metric="logit_diff", ablation="mean")
    means, found = mean_terms_by_formula(tiny_model, prompts), experiment.ablated.attention
    for layer, every in enumerate(means):
        terms = every[rows]
        weight, direction = torch.rand(len(terms), 2, 8, 8), torch.randn(len(terms), 8, 2, 8)
        torch.testing.assert_close(
            found.add_up(layer, weight, rows), torch.einsum("bhqk,bqkhe->bqhe", weight, terms)
        )
        torch.testing.assert_close(
            found.dot(layer, direction, rows), torch.einsum("bqhe,bqkhe->bhqk", direction, terms)
        )
        torch.testing.assert_close(found.terms(layer, 1, 6, slice(2, 5), rows), terms[:, 6, 2:5, 1])


def test_ablated_attention_edges_write_the_mean_over_their_template(tiny_model):
    prompts = of_two_lengths(tiny_model)
    experiment = prepare_experiment(tiny_model, prompts, metric="logit_diff", ablation="mean")
    kept = torch.rand(len(prompts), 2, 2, 8, 8) < 0.5
    means, live = mean_terms_by_formula(tiny_model, prompts), {}

    # Under these names: a TransformerBridge calls its hook points otherwise.
    def note(act, hook, name):
        live[name] = act

    def set_z(z, hook):
        layer = hook.layer()
        now = torch.einsum("bhqk,bkhe->bqkhe", live["hook_pattern"], live["hook_v"])
        mask = kept[:, layer].permute(0, 2, 3, 1)[..., None]  # [batch, query, key, head, 1]
        return torch.where(mask, now, means[layer]).sum(dim=2)

    hooks = [
        (f"blocks.{layer}.attn.{name}", set_z if name == "hook_z" else partial(note, name=name))
        for layer in range(2)
        for name in ("hook_v", "hook_pattern", "hook_z")
    ]
    with torch.no_grad():
        logits = tiny_model.run_with_hooks(prompts.clean, fwd_hooks=hooks)
    expected = experiment.score(logits[torch.arange(len(prompts)), prompts.last])
    torch.testing.assert_close(run_attention_edges(experiment, kept), expected, **CLOSE)


def test_mean_ablation_holds_no_more_than_corrupted_ablation(tiny_model, monkeypatch):
    monkeypatch.setattr(activations, "MOST_PROMPTS", 4)  # Parts of a template lie in two batches.
    prompts = make_prompts(tiny_model, batch=10, pos=20)

    def held(ablation):
        ablated = prepare_experiment(
            tiny_model, prompts, metric="logit_diff", ablation=ablation
        ).ablated
        attention = ablated.attention
        tensors = [getattr(ablated, part.name) for part in fields(ablated)[:-1]]
        tensors += [attention.pattern, attention.value]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    assert held("mean") == held("corrupted")


def test_prompts_of_two_lengths_give_what_each_gives_alone(tiny_model):
    short, long = make_prompts(tiny_model, pos=5, templates=1), make_prompts(tiny_model, pos=8)
    both = pad_together(short, long)
    some = Graph(2, 2).mask & (torch.rand(Graph(2, 2).mask.shape) < 0.5)
    for ablation in ("corrupted", "mean"):
        alone = [
            run_edges(
                prepare_experiment(tiny_model, p, metric="logit_diff", ablation=ablation), some
            )
            for p in (short, long)
        ]
        together = prepare_experiment(tiny_model, both, metric="logit_diff", ablation=ablation)
        torch.testing.assert_close(run_edges(together, some), torch.cat(alone), **CLOSE)


def recompute_by_hand(model, clean, corrupted, kept):
    """Logits with only the edges `kept`, node by node from the weights, without any hooks."""
    graph = Graph(model.cfg.n_layers, model.cfg.n_heads)

    def norm(ln, x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + ln.eps).sqrt() * ln.w + ln.b

    def run(tokens, inputs_of):
        out = {"input": model.W_E[tokens] + model.W_pos[: tokens.shape[1]]}
        causal = torch.ones(tokens.shape[1], tokens.shape[1]).tril().bool()
        for layer, block in enumerate(model.blocks):
            attn = block.attn
            for head in range(model.cfg.n_heads):
                q, k, v = (
                    norm(block.ln1, inputs_of(out, f"a{layer}.h{head}<{letter}>", layer))
                    @ getattr(attn, f"W_{letter.upper()}")[head]
                    + getattr(attn, f"b_{letter.upper()}")[head]
                    for letter in "qkv"
                )
                scores = (q @ k.transpose(-1, -2) / math.sqrt(model.cfg.d_head)).masked_fill(
                    ~causal, -math.inf
                )
                out[f"a{layer}.h{head}"] = scores.softmax(-1) @ v @ attn.W_O[head]
            mlp_in = norm(block.ln2, inputs_of(out, f"m{layer}", layer + 1))
            hidden = torch.nn.functional.gelu(mlp_in @ block.mlp.W_in + block.mlp.b_in)
            out[f"m{layer}"] = hidden @ block.mlp.W_out + block.mlp.b_out
        final = norm(model.ln_final, inputs_of(out, "logits", model.cfg.n_layers))
        return out, final @ model.W_U + model.b_U

    def constants(n_layers):
        return sum((model.blocks[i].attn.b_O for i in range(n_layers)), torch.zeros(()))

    def upstream(out, destination):
        column = graph.destinations.index(destination)
        rows = {name: graph.sources.index(name) for name in out}
        return {name: kept[row, column] for name, row in rows.items() if graph.mask[row, column]}

    def whole(out, destination, n_layers):
        return sum(out[name] for name in upstream(out, destination)) + constants(n_layers)

    corrupted_out, _ = run(corrupted, whole)

    def mixed(out, destination, n_layers):
        chosen = upstream(out, destination).items()
        parts = [out[name] if keep else corrupted_out[name] for name, keep in chosen]
        return sum(parts) + constants(n_layers)

    return run(clean, mixed)[1]


@pytest.mark.newest
@pytest.mark.slow
@torch.no_grad()
def test_exact_edge_patching_agrees_with_recomputing_each_node_by_hand(tiny_model):
    prompts = make_prompts(tiny_model, batch=4)
    experiment = prepare_experiment(tiny_model, prompts, metric="logit_diff")
    edges = [(s, d) for s, d in experiment.graph.mask.nonzero().tolist()]
    by_hand = []
    for edge in edges:
        kept = experiment.graph.mask.clone()
        kept[edge] = False
        logits = recompute_by_hand(tiny_model, prompts.clean, prompts.corrupted, kept)
        by_hand.append(experiment.full.mean() - experiment.score(logits[:, -1]).mean())
    torch.testing.assert_close(
        exact_edge_effects(experiment, edges), torch.stack(by_hand), atol=1e-5, rtol=1e-4
    )


def test_the_model_is_as_before_after_an_intervention_that_fails(tiny_model):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    with pytest.raises((IndexError, RuntimeError)):
        run_attention_edges(experiment, torch.ones(6, 2, 2, 3, 3, dtype=torch.bool))
    assert not tiny_model.cfg.use_split_qkv_input
    assert not tiny_model.cfg.use_hook_mlp_in
    assert all(not point.fwd_hooks for point in tiny_model.hook_dict.values())


def test_faithfulness_is_0_for_nothing_and_1_for_everything():
    full, empty = torch.tensor([3.0, 5.0]), torch.tensor([1.0, 1.0])
    values = torch.stack([empty, full, (full + empty) / 2])
    torch.testing.assert_close(faithfulness(values, full, empty), torch.tensor([0.0, 1.0, 0.5]))


def test_a_model_that_does_not_do_the_task_is_refused(tiny_model):
    prompts = make_prompts(tiny_model)
    same = replace(prompts, corrupted=prompts.clean)
    experiment = prepare_experiment(tiny_model, same, metric="logit_diff")
    with pytest.raises(ValueError, match="the model does not do the task: logit_diff is"):
        check_does_task(experiment)


def test_a_model_that_multiplies_what_its_components_write_is_refused(tiny_model):
    tiny_model.cfg.residual_multiplier = 0.5
    with pytest.raises(ValueError, match="multiplies what its heads and MLPs write by 0.5"):
        graph_of(tiny_model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "loss"}, "unknown metric 'loss'"),
        ({"metric": "logit_diff", "ablation": "noise"}, "unknown ablation 'noise'"),
    ],
    ids=["metric", "ablation"],
)
def test_unknown_names_are_refused(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        prepare_experiment(tiny_model, make_prompts(tiny_model), **options)


def test_prompts_longer_than_the_context_are_refused():
    prompts = make_prompts(make_tiny_model(), pos=9)
    with pytest.raises(ValueError, match="the longest prompt has 9 tokens, the model reads 8"):
        prepare_experiment(make_tiny_model(n_ctx=8), prompts, metric="logit_diff")


def test_nan_in_the_weights_is_an_error_that_names_the_prompt(tiny_model):
    with torch.no_grad():
        tiny_model.blocks[1].mlp.W_out[0, 0] = math.nan
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    with pytest.raises(ValueError, match="whole model is nan on prompt 1"):
        check_does_task(experiment)


def test_a_mean_over_single_prompts_is_refused(tiny_model):
    prompts = make_prompts(tiny_model, templates=6)
    with pytest.raises(ValueError, match="mean ablation needs at least 2 prompts"):
        prepare_experiment(tiny_model, prompts, metric="logit_diff", ablation="mean")
