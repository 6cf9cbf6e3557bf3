"""Norms between heads and the residual stream, against a plain run in which one edge is weakened.

The referee lets the model's own modules do the sums: in a run of the whole model, what one input
reads is replaced by what its layer's output projection and norm make of heads of which one has
been moved towards its ablated z. Moved by all of it, the metric falls by the edge's effect; moved
by a little, at the rate that is the edge's score.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from circuits.attribute import (
    attribution_patching,
    exact_edge_effects,
    exact_node_effects,
    exact_patching,
    local_patching,
)
from circuits.intervene.ablate import run_edges
from circuits.intervene.experiment import Experiment, prepare_experiment
from circuits.models.backend import component_hooks
from tests.helpers import make_prompts, make_tiny_model
from tests.models.test_bridge_architectures import LLAMA, UNGROUPED, random_bridge

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CONFIGS: dict[str, hf.PretrainedConfig] = {
    "Gemma 2": hf.Gemma2Config(head_dim=4, **LLAMA),
    "Gemma 3": hf.Gemma3TextConfig(head_dim=4, **LLAMA),
    "OLMo 2": hf.Olmo2Config(**(LLAMA | UNGROUPED)),
    "GLM 4": hf.Glm4Config(head_dim=4, **LLAMA),
    "EXAONE 4": hf.Exaone4Config(**LLAMA),
}
AFTER = {"normalization_type": "RMS", "use_normalization_before_and_after": True}
CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-5}  # transformers computes softmax in float32
EDGES = [
    "a0.h1->a1.h2<q>",
    "a0.h3->a1.h0<k>",
    "a0.h0->a1.h3<v>",
    "a0.h2->m0",
    "a0.h1->m1",
    "a0.h3->logits",
    "a1.h2->logits",
    "m0->a1.h1<q>",
    "m0->logits",
    "input->m1",
]


@pytest.fixture(scope="module", params=CONFIGS)
def experiment(request: pytest.FixtureRequest, tmp_path_factory) -> Experiment:
    model = random_bridge(tmp_path_factory.mktemp("model"), CONFIGS[request.param]).double()
    return prepare_experiment(model, make_prompts(model, batch=3, pos=5), metric="logit_diff")


def metric_with_less(experiment: Experiment, edge: str, share: float) -> float:
    """The metric where the destination reads the source moved so far towards its ablated value."""
    model: Any = experiment.model
    prompts, (source, dest) = experiment.prompts, edge.split("->")
    layer = int(source[1:].partition(".")[0]) if source != "input" else 0
    block, heads = model.blocks[layer], source[0] == "a"
    if heads:
        name = f"blocks.{layer}.attn.hook_z"
    else:
        name = f"blocks.{layer}.hook_mlp_out" if source != "input" else "blocks.0.hook_resid_pre"
    noted: list[Tensor] = []

    def note(act: Tensor, hook: object) -> None:
        noted.append(act)

    def added(now: Tensor) -> Tensor:
        if not heads:
            return now
        norm = block.ln1_post if hasattr(block, "ln1_post") else block.ln1
        return norm(block.attn.o.original_component(now.flatten(2)))

    def less(now: Tensor, gone: Tensor) -> Tensor:
        moved = torch.lerp(now, gone, share)
        if heads:
            head = int(source.partition("h")[2])
            whole, moved = moved, now.clone()
            moved[:, :, head] = whole[:, :, head]
        return added(moved) - added(now)

    def weaken(act: Tensor, hook: object, *, column: int | None) -> Tensor:
        act, change = act.clone(), less(noted[1], noted[0])
        if column is None:
            return act + change
        act[:, :, column] += change
        return act

    if dest == "logits":
        place, column = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", None
    elif dest[0] == "m":
        place, column = f"blocks.{dest[1:]}.hook_mlp_in", None
    else:
        reader, read = dest.rstrip(">").split("<")
        place = f"blocks.{reader[1]}.hook_{read}_input"
        column = int(reader.partition("h")[2])
    with component_hooks(model), torch.no_grad():
        model.run_with_hooks(prompts.corrupted, fwd_hooks=[(name, note)])
        hooks = [(name, note), (place, partial(weaken, column=column))]
        logits = model.run_with_hooks(prompts.clean, fwd_hooks=hooks)
    return experiment.score(logits[:, -1]).mean().item()


@pytest.mark.newest
@pytest.mark.slow
def test_edges_are_what_a_run_without_them_measures(experiment):
    full = experiment.full.mean().item()
    expected = torch.tensor(
        [full - metric_with_less(experiment, edge, 1.0) for edge in EDGES], dtype=torch.float64
    )
    assert expected.abs().min() > 1e-6
    places = [experiment.graph.edge_index(edge) for edge in EDGES]
    torch.testing.assert_close(exact_edge_effects(experiment, places), expected, **CLOSE)


@pytest.mark.newest
@pytest.mark.slow
def test_scores_are_the_slope_of_the_metric_as_an_edge_is_weakened(experiment):
    scores, step = attribution_patching(experiment).edges, 0.04
    for edge in EDGES[::2]:
        fall = {
            n: metric_with_less(experiment, edge, -n * step)
            - metric_with_less(experiment, edge, n * step)
            for n in (1, 2)
        }
        slope = (8 * fall[1] - fall[2]) / (12 * step)  # up to terms of the fourth order in step
        assert scores[experiment.graph.edge_index(edge)].item() == pytest.approx(
            slope, rel=1e-3, abs=1e-5
        )


@pytest.mark.slow
def test_all_edges_are_the_model_and_none_is_the_corrupted_run(experiment):
    model, prompts, mask = experiment.model, experiment.prompts, experiment.graph.mask
    with torch.no_grad():
        both = (prompts.clean, prompts.corrupted)
        clean, corrupted = (experiment.score(model(tokens)[:, -1]) for tokens in both)
    torch.testing.assert_close(run_edges(experiment, mask), clean, **CLOSE)
    torch.testing.assert_close(run_edges(experiment, torch.zeros_like(mask)), corrupted, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["norms behind and before", "queries normed together"])
def test_exact_patching_is_one_run_for_each_edge_and_node(tmp_path, kind):
    if kind == "queries normed together":
        model = random_bridge(tmp_path, CONFIGS["OLMo 2"]).double()
    else:
        model = make_tiny_model(**AFTER, dtype=torch.float64)
    prompts = make_prompts(model, batch=3, pos=5)
    experiment = prepare_experiment(model, prompts, metric="logit_diff")
    scores, graph = exact_patching(experiment, attention_edges=False), experiment.graph
    edges = graph.mask.nonzero()[::9]
    measured = exact_edge_effects(experiment, edges.tolist())
    torch.testing.assert_close(scores.edges[tuple(edges.T)], measured, **CLOSE)
    nodes = exact_node_effects(experiment, range(graph.n_sources))
    torch.testing.assert_close(scores.nodes, nodes, **CLOSE)


def test_a_head_scores_what_its_edges_and_its_attention_edges_add_up_to():
    model = make_tiny_model(**AFTER, dtype=torch.float64)
    prompts = make_prompts(model, templates=1)
    scores = attribution_patching(prepare_experiment(model, prompts, metric="logit_diff"))
    rows = scores.graph.nodes_of_kind("head")
    by_key = scores.attention_edges["t0"].sum(dim=(2, 3)).flatten()
    torch.testing.assert_close(scores.nodes[rows], by_key)


def test_queries_that_are_normed_together_are_not_run_alone(tmp_path):
    model = random_bridge(tmp_path / "odd-one", CONFIGS["OLMo 2"])
    experiment = prepare_experiment(model, make_prompts(model), metric="logit_diff")
    with pytest.raises(ValueError, match="odd-one norms the queries of all heads together"):
        local_patching(experiment)
