from dataclasses import replace

import pytest
import torch

from circuits.ablate import faithfulness, prepare_experiment, run_edges
from circuits.attribute import attribution_patching
from circuits.quality import completeness_of, faithfulness_of, minimality_of
from circuits.select import build_circuit, rank_components
from tests.helpers import make_prompts, make_tiny_model


@pytest.fixture(scope="module")
def experiment():
    model = make_tiny_model()
    return prepare_experiment(model, make_prompts(model), metric="logit_diff")


def circuit_of(experiment, granularity, size):
    scores = attribution_patching(experiment)
    return build_circuit(scores, granularity, rank_components(scores, granularity)[:size])


def test_the_whole_graph_is_faithful_and_leaves_nothing(experiment):
    whole = circuit_of(experiment, "edge", experiment.graph.n_edges)
    assert faithfulness_of(experiment, whole) == pytest.approx(1, abs=1e-5)
    assert completeness_of(experiment, whole) == pytest.approx(0, abs=1e-5)


def test_completeness_is_the_faithfulness_of_the_complement(experiment):
    circuit = circuit_of(experiment, "edge", 10)
    rest = experiment.graph.mask & ~circuit.edges
    expected = faithfulness(run_edges(experiment, rest), experiment.full, experiment.empty)
    assert completeness_of(experiment, circuit) == pytest.approx(expected.item())


@pytest.mark.parametrize(("granularity", "size"), [("edge", 12), ("head", 3), ("mlp", 2)])
def test_minimality_takes_each_component_away_in_turn(experiment, granularity, size):
    circuit = circuit_of(experiment, granularity, size)
    falls = minimality_of(experiment, circuit).set_index("component")["fall"]
    names = circuit.edge_names
    if granularity != "edge":
        names = circuit.heads if granularity == "head" else circuit.mlps
    assert sorted(falls.index) == sorted(names)
    assert falls.is_monotonic_increasing
    kept = circuit.edges.clone()
    if granularity == "edge":
        kept[experiment.graph.edge_index(names[0])] = False
    else:
        kept[experiment.graph.sources.index(names[0])] = False
    without = faithfulness_of(experiment, replace(circuit, edges=kept))
    expected = faithfulness_of(experiment, circuit) - without
    assert falls[names[0]] == pytest.approx(expected, abs=1e-6)


def test_a_circuit_of_another_architecture_is_refused(experiment):
    model = make_tiny_model(n_layers=1)
    other = prepare_experiment(model, make_prompts(model), metric="logit_diff")
    with pytest.raises(ValueError, match="give a circuit of this architecture"):
        faithfulness_of(experiment, circuit_of(other, "edge", 3))


def test_attention_edges_are_refused(experiment):
    circuit = replace(circuit_of(experiment, "edge", 3), granularity="attention_edge")
    with pytest.raises(ValueError, match="attention edges are no edges of the graph"):
        completeness_of(experiment, circuit)


def test_a_score_that_is_not_finite_is_refused(experiment):
    circuit = circuit_of(experiment, "edge", 3)
    bad = replace(circuit, scores=torch.full_like(circuit.scores, torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        minimality_of(experiment, bad)
