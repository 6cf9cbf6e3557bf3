import math
from dataclasses import replace

import pytest
import torch

from circuits.attribute import (
    METHODS,
    attribution_patching,
    exact_attention_edge_effects,
    exact_edge_effects,
    exact_node_effects,
    exact_patching,
    gradient_average,
    integrated_activations,
    integrated_gradients,
    local_patching,
)
from circuits.gate.gate import add_gate, gate_gradient
from circuits.intervene.activations import source_outputs
from circuits.intervene.experiment import prepare_experiment
from tests.helpers import make_prompts, make_tiny_model


@pytest.fixture(scope="module")
def linear():
    """A model whose logits are linear in what each component writes.

    No layer norm; zero query and key weights, so that attention is uniform and constant; the
    identity in place of the MLPs' activation.
    """
    model = make_tiny_model(normalization_type=None)
    with torch.no_grad():
        for block in model.blocks:
            for weight in (block.attn.W_Q, block.attn.W_K, block.attn.b_Q, block.attn.b_K):
                weight.zero_()
            block.mlp.act_fn = torch.nn.Identity()
    return prepare_experiment(model, make_prompts(model, templates=1), metric="logit_diff")


@pytest.fixture(scope="module")
def linear_effects(linear):
    """What ablating each edge of the linear model does, and each node; measured once."""
    edges = exact_edge_effects(linear, linear.graph.mask.nonzero().tolist())
    return edges, exact_node_effects(linear, range(linear.graph.n_sources))


def test_edges_are_exact_on_a_linear_model(linear, linear_effects):
    scores = attribution_patching(linear)
    edges = linear.graph.mask.nonzero().tolist()
    predicted = torch.stack([scores.edges[src, dest] for src, dest in edges])
    measured, _ = linear_effects
    assert measured.abs().max() > 1e-3
    torch.testing.assert_close(predicted, measured, atol=1e-5, rtol=1e-5)


def test_nodes_are_exact_on_a_linear_model(linear, linear_effects):
    _, measured = linear_effects
    torch.testing.assert_close(attribution_patching(linear).nodes, measured, atol=1e-5, rtol=1e-5)


@pytest.mark.newest
@pytest.mark.slow
def test_attention_edges_are_exact_on_a_linear_model(linear):
    scores = attribution_patching(linear).attention_edges["t0"]
    places = torch.ones_like(scores).tril().nonzero()
    measured = exact_attention_edge_effects(linear, places)
    torch.testing.assert_close(scores[tuple(places.T)], measured, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_integrated_gradients_are_close_to_exact_patching(tiny_model):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    scores = integrated_gradients(experiment, steps=20)
    edges = experiment.graph.mask.nonzero().tolist()
    predicted = torch.stack([scores.edges[src, dest] for src, dest in edges])
    measured = exact_edge_effects(experiment, edges)
    assert torch.corrcoef(torch.stack([predicted, measured]))[0, 1] > 0.9


@pytest.mark.newest
@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["corrupted", "mean", "zero"])
def test_integrated_gradients_are_complete(ablation):
    """The path moves the input: summed along it, the slopes give the input's whole effect."""
    model = make_tiny_model(eps=1.0)  # A norm with a small one has a jump at a zero input.
    experiment = prepare_experiment(
        model, make_prompts(model), metric="logit_diff", ablation=ablation
    )
    measured = exact_node_effects(experiment, [experiment.graph.sources.index("input")])
    predicted = integrated_gradients(experiment, steps=100).nodes[:1]
    assert measured.abs() > 0.05
    torch.testing.assert_close(predicted, measured, atol=0, rtol=0.02)


def test_scores_are_source_by_destination(tiny_model):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    edges = attribution_patching(experiment).edges
    src, dest = experiment.graph.edge_index("input->logits")
    assert edges.shape == (7, 15)
    assert edges[src, dest] == edges[0, -1] != 0
    assert not edges[~experiment.graph.mask].any()


def test_nothing_is_attributed_where_clean_is_what_ablation_gives(tiny_model):
    prompts = make_prompts(tiny_model)
    same = replace(prompts, corrupted=prompts.clean)
    scores = attribution_patching(prepare_experiment(tiny_model, same, metric="logit_diff"))
    torch.testing.assert_close(scores.edges, torch.zeros_like(scores.edges), atol=1e-6, rtol=0)


def test_one_step_of_integrated_gradients_is_attribution_patching(tiny_model):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    torch.testing.assert_close(
        integrated_gradients(experiment, steps=1).edges, attribution_patching(experiment).edges
    )


def test_a_score_is_the_derivative_along_its_change():
    """A finite difference: the metric with one source moved a little at one destination."""
    model = make_tiny_model(dtype=torch.float64)
    experiment = prepare_experiment(model, make_prompts(model, batch=2), metric="logit_diff")
    score = attribution_patching(experiment).edges[experiment.graph.edge_index("a0.h1->logits")]
    with torch.no_grad():
        _, cache = model.run_with_cache(experiment.prompts.clean)
        z, w_o = cache["blocks.0.attn.hook_z"][:, :, 1], model.blocks[0].attn.W_O[1]
        row = experiment.graph.sources.index("a0.h1")
        change = z @ w_o - source_outputs(model, experiment.graph, experiment.ablated)[row]

        def metric(step):
            resid = cache["blocks.1.hook_resid_post"] + step * change
            return experiment.score(model.unembed(model.ln_final(resid))[:, -1]).mean()

        slope = (metric(1e-5) - metric(-1e-5)) / 2e-5
    torch.testing.assert_close(score, slope, atol=1e-8, rtol=1e-6)


def test_the_gradient_of_the_gate_can_be_frozen(tiny_model):
    model = add_gate(tiny_model, bias=0.2)
    experiment = prepare_experiment(model, make_prompts(model), metric="logit_diff")
    through = attribution_patching(experiment).edges
    with gate_gradient(model, "frozen"):
        frozen = attribution_patching(experiment).edges
    assert not torch.allclose(through, frozen)
    assert torch.allclose(through[:, -1], frozen[:, -1])  # no gate behind the logits


def test_attribution_leaves_the_weights_trainable_and_without_gradient(tiny_model):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    attribution_patching(experiment)
    assert all(p.requires_grad and p.grad is None for p in tiny_model.parameters())


def test_no_steps_are_refused(tiny_model):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        integrated_gradients(experiment, steps=0)


def test_exact_attention_edges_of_several_templates_are_refused(tiny_model):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    with pytest.raises(ValueError, match="the prompts have 2 templates"):
        exact_attention_edge_effects(experiment, torch.zeros(1, 4, dtype=torch.long))


def test_a_score_that_is_not_finite_names_its_edge(tiny_model):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    scores = attribution_patching(experiment)
    scores.edges[experiment.graph.edge_index("a0.h1->m1")] = math.nan
    with pytest.raises(ValueError, match="the score of a0.h1->m1 is nan"):
        scores.check_finite()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_attention_edge_that_is_not_finite_is_named(tiny_model, value):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    scores = attribution_patching(experiment)
    scores.attention_edges["t1"][1, 0, 5, 2] = value
    message = f"attention edge of a1.h0 from position 5 to 2 .template 't1'. is {value}"
    with pytest.raises(ValueError, match=message):
        scores.check_finite()


def test_a_node_that_is_not_finite_is_named(tiny_model):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    scores = attribution_patching(experiment)
    nodes = scores.nodes.clone()
    nodes[experiment.graph.sources.index("m1")] = math.nan
    with pytest.raises(ValueError, match=r"the score of m1 is nan \(1 nodes are not finite\)"):
        replace(scores, node_scores=nodes).check_finite()


def test_every_method_is_registered_under_its_own_name(tiny_model):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    for name, method in METHODS.items():
        assert method(experiment).method == name


def all_edges(experiment, scores):
    return scores.edges[experiment.graph.mask]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "gim"])
def test_every_method_is_exact_on_a_linear_model(linear, linear_effects, method):
    """All but one: test_backward_rules.py has what holds where gradients at values are halved."""
    scores, (edges, nodes) = METHODS[method](linear), linear_effects
    torch.testing.assert_close(all_edges(linear, scores), edges, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.nodes, nodes, atol=1e-5, rtol=1e-5)


@pytest.mark.newest
@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True], ids=["dense", "gated"])
@pytest.mark.parametrize("ablation", ["corrupted", "mean", "zero"])
def test_exact_patching_is_one_run_of_the_whole_model_for_each_component(
    tiny_model, ablation, gated
):
    model = add_gate(tiny_model, bias=0.2) if gated else tiny_model
    experiment = prepare_experiment(
        model, make_prompts(model, batch=4, pos=5), metric="logit_diff", ablation=ablation
    )
    scores = exact_patching(experiment)
    measured = exact_edge_effects(experiment, experiment.graph.mask.nonzero().tolist())
    torch.testing.assert_close(all_edges(experiment, scores), measured, atol=1e-5, rtol=1e-4)
    nodes = exact_node_effects(experiment, range(experiment.graph.n_sources))
    torch.testing.assert_close(scores.nodes, nodes, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["corrupted", "mean"])
def test_exact_patching_measures_attention_edges(tiny_model, ablation):
    prompts = make_prompts(tiny_model, templates=1, pos=5, batch=3)
    experiment = prepare_experiment(tiny_model, prompts, metric="logit_diff", ablation=ablation)
    scores = exact_patching(experiment).attention_edges["t0"]
    places = torch.ones_like(scores).tril().nonzero()
    measured = exact_attention_edge_effects(experiment, places)
    torch.testing.assert_close(scores[tuple(places.T)], measured, atol=1e-5, rtol=1e-4)


def test_exact_patching_goes_on_where_it_was_interrupted(tiny_model, tmp_path):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    whole = exact_patching(experiment)
    steps = []

    def stop_after_two(done, _total):
        steps.append(done)
        if done == 2 and len(steps) < 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exact_patching(experiment, checkpoint=tmp_path / "exact", on_step=stop_after_two)
    steps += [0] * 5
    resumed = exact_patching(experiment, checkpoint=tmp_path / "exact", on_step=stop_after_two)
    assert steps[-2:] == [2, 3]
    torch.testing.assert_close(resumed.edges, whole.edges)
    torch.testing.assert_close(resumed.attention_edges, whole.attention_edges)


def test_a_checkpoint_of_other_prompts_is_refused(tiny_model, tmp_path):
    for seed, error in ((1, None), (2, ValueError)):
        prompts = make_prompts(tiny_model, seed=seed)
        experiment = prepare_experiment(tiny_model, prompts, metric="logit_diff")
        if error is None:
            exact_patching(experiment, attention_edges=False, checkpoint=tmp_path / "exact")
        else:
            with pytest.raises(error, match="another model, task or set of prompts"):
                exact_patching(experiment, attention_edges=False, checkpoint=tmp_path / "exact")


@pytest.mark.parametrize("gated", [False, True], ids=["dense", "gated"])
def test_local_patching_is_exact_up_to_what_follows_the_destination(gated):
    """In the last layer only the norm before the logits is left to the gradient."""
    model = make_tiny_model(n_layers=1, attn_only=True, normalization_type=None)
    model = add_gate(model, bias=0.2) if gated else model
    experiment = prepare_experiment(model, make_prompts(model), metric="logit_diff")
    measured = exact_edge_effects(experiment, experiment.graph.mask.nonzero().tolist())
    local = all_edges(experiment, local_patching(experiment))
    torch.testing.assert_close(local, measured, atol=1e-6, rtol=1e-4)
    first_order = all_edges(experiment, attribution_patching(experiment))
    assert (first_order - measured).abs().max() > 10 * (local - measured).abs().max()


def test_integrated_activations_with_one_step_are_attribution_patching(tiny_model):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    one = integrated_activations(experiment, steps=1)
    plain = attribution_patching(experiment)
    torch.testing.assert_close(one.edges, plain.edges)
    torch.testing.assert_close(one.attention_edges, plain.attention_edges)


@pytest.mark.slow
def test_integrated_activations_are_complete_for_each_component(tiny_model):
    """Along the path of one MLP's output, slopes add up to the effect of ablating it."""
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    rows = experiment.graph.nodes_of_kind("mlp")
    measured = exact_node_effects(experiment, rows)
    predicted = integrated_activations(experiment, steps=30, attention_edges=False).nodes[rows]
    torch.testing.assert_close(predicted, measured, atol=2e-3, rtol=0.05)


def test_the_gradient_average_is_the_mean_of_both_ends(tiny_model):
    prompts = make_prompts(tiny_model)
    experiment = prepare_experiment(tiny_model, prompts, metric="logit_diff")
    swapped = replace(prompts, clean=prompts.corrupted, corrupted=prompts.clean)
    backwards = prepare_experiment(tiny_model, swapped, metric="logit_diff")
    there, back = attribution_patching(experiment).edges, -attribution_patching(backwards).edges
    torch.testing.assert_close(gradient_average(experiment).edges, (there + back) / 2)


@pytest.mark.slow
def test_attention_edges_can_be_left_out(tiny_model):
    experiment = prepare_experiment(tiny_model, make_prompts(tiny_model), metric="logit_diff")
    for method in METHODS.values():
        assert method(experiment, attention_edges=False).attention_edges == {}
