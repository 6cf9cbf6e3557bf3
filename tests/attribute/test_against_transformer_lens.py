"""Scores and circuits against TransformerLens' own attribution patching, where there is one (4.3).

It scores each pair by itself and every position apart, takes the gradient in the corrupted run and
scores towards clean: with the prompts of a pair exchanged, scores must be its own, signed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.attribute import attribution_patching
from circuits.graph import Graph
from circuits.intervene.ablate import run_edges
from circuits.intervene.experiment import prepare_experiment
from circuits.prompts import Prompts
from tests.helpers import make_prompts, make_tiny_model

theirs = pytest.importorskip("transformer_lens.tools.analysis.attribution_patching")
if not hasattr(theirs, "faithfulness"):
    pytest.skip("this TransformerLens does not run circuits", allow_module_level=True)


@pytest.fixture
def model() -> Any:
    return make_tiny_model(n_layers=2, n_heads=4, d_head=4, dtype=torch.float64)


@pytest.fixture
def prompts(model) -> Prompts:
    """Pairs that share their answers: a metric of theirs does not know its prompt."""
    found = make_prompts(model, batch=3, pos=5)
    shared = {name: getattr(found, name)[:1].expand(3, 1) for name in ("answers", "wrong_answers")}
    return replace(found, **shared)


def metric_of(prompts: Prompts) -> Any:
    right, wrong = int(prompts.answers[0]), int(prompts.wrong_answers[0])
    return lambda logits: logits[0, -1, right] - logits[0, -1, wrong]


def source_name(node: Any) -> str:
    names = {"embed": "input", "mlp_out": f"m{node.layer}"}
    return names.get(node.kind, f"a{node.layer}.h{node.head}")


def edge_index(graph: Graph, writer: Any, reader: Any) -> tuple[int, int]:
    head = f"a{reader.layer}.h{reader.head}"
    names = {f"{read}_input": f"{head}<{read}>" for read in "qkv"}
    names |= {"mlp_in": f"m{reader.layer}", "logits": "logits"}
    return graph.edge_index(f"{source_name(writer)}->{names[reader.kind]}")


def attributed(model: Any, prompts: Prompts, granularity: str) -> Any:
    config = theirs.EdgeAttributionConfig(granularity=granularity)
    given = prompts.clean, prompts.corrupted
    return theirs.attribution_patch(model, *given, metric_of(prompts), config)


def test_scores_are_those_of_transformer_lens_summed_over_positions(model, prompts):
    swapped = replace(prompts, clean=prompts.corrupted, corrupted=prompts.clean)
    experiment = prepare_experiment(model, swapped, metric="logit_diff")
    scores = attribution_patching(experiment, attention_edges=False)
    edges, nodes = torch.zeros_like(scores.edges), torch.zeros_like(scores.nodes)
    seen = torch.zeros_like(experiment.graph.mask)
    for (writer, reader), score in attributed(model, prompts, "edge").edge_scores.items():
        place = edge_index(experiment.graph, writer, reader)
        edges[place] += score
        seen[place] = True
    for node, score in attributed(model, prompts, "node").node_scores.items():
        nodes[experiment.graph.sources.index(source_name(node))] += score
    assert torch.equal(seen, experiment.graph.mask)
    assert edges.abs().max() > 1e-3
    torch.testing.assert_close(-scores.edges, edges)
    torch.testing.assert_close(-scores.nodes, nodes)


def test_what_a_circuit_recovers_is_what_transformer_lens_says(model, prompts):
    experiment = prepare_experiment(model, prompts, metric="logit_diff")
    graph = experiment.graph
    drawn = torch.rand(graph.mask.shape, generator=torch.Generator().manual_seed(0))
    kept = graph.mask & (drawn < 0.5)
    circuit = [
        pair
        for pair in attributed(model, prompts, "edge").edge_scores
        if kept[edge_index(graph, *pair)]
    ]
    found = run_edges(experiment, kept)
    recovered = (found - experiment.empty) / (experiment.full - experiment.empty)
    expected: list[float] = [
        theirs.faithfulness(model, *pair, metric_of(prompts), circuit).recovered
        for pair in zip(prompts.clean.split(1), prompts.corrupted.split(1), strict=True)
    ]
    of_theirs: Tensor = torch.tensor(expected, dtype=recovered.dtype)
    assert (of_theirs - 1).abs().min() > 1e-3
    torch.testing.assert_close(recovered, of_theirs)
