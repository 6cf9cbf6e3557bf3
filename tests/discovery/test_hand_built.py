"""Discovery against circuits that are known because they were written by hand."""

from functools import cache

import pytest
import torch

from circuits.attribute import METHODS, attribution_patching, exact_edge_effects
from circuits.discovery.agreement import agreement_of, auroc
from circuits.discovery.find_circuits import discover
from circuits.discovery.hand_built import HAND_BUILT
from circuits.discovery.quality import completeness_of, faithfulness_of, minimality_of
from circuits.graph import node_kind
from circuits.intervene.activations import record_activations, source_outputs
from circuits.intervene.experiment import faithfulness, prepare_experiment
from circuits.metrics import accuracy
from circuits.results.discovery import DiscoverConfig
from tests.helpers import skip_file_without_hooked_transformer

pytestmark = pytest.mark.slow

skip_file_without_hooked_transformer()

MODELS = {name: build() for name, build in HAND_BUILT.items()}
TARGET = 0.999


@pytest.fixture(params=MODELS.values(), ids=list(MODELS))
def built(request):
    return request.param


def experiment_of(built, part="ranking"):
    prompts = getattr(built.prompts(16), part)
    return prepare_experiment(built.model, prompts, metric=built.task.metric)


@cache
def found_by(built, granularity, **options):
    config = DiscoverConfig(target=TARGET, granularities=(granularity,), redraws=0, **options)
    found = discover(built.model, built.task, config, prompts=built.prompts(16))
    return found.circuits[granularity]


@pytest.mark.parametrize("part", ["ranking", "sizing", "reporting"])
def test_the_models_do_their_tasks_and_not_when_corrupted(built, part):
    experiment = experiment_of(built, part)
    assert accuracy(experiment.clean_logits, experiment.prompts).all()
    assert (experiment.full > 0.5).all()
    assert (experiment.empty < 0.1).all()


@pytest.mark.parametrize("part", ["ranking", "sizing", "reporting"])
def test_exactly_the_known_edges_have_an_effect(built, part):
    experiment = experiment_of(built, part)
    edges = experiment.graph.mask.nonzero().tolist()
    effects = exact_edge_effects(experiment, edges)
    names = [experiment.graph.edge_name(*edge) for edge in edges]
    inside = torch.tensor([name in built.edges for name in names])
    assert (effects[inside] > 0.3).all()
    assert (effects[~inside].abs() < 1e-5).all()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_exactly_the_known_edges(built, method):
    one = found_by(built, "edge", method=method)
    assert agreement_of(one.circuit.edge_names, built.edges).f1 == 1
    assert one.faithfulness == pytest.approx(1, abs=1e-4)
    assert one.faithfulness_of_rest == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("selection", ["absolute", "signed", "greedy"])
def test_every_selection_finds_exactly_the_known_edges(built, selection):
    assert tuple(found_by(built, "edge", selection=selection).circuit.edge_names) == built.edges


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["head", "mlp"])
def test_every_method_finds_exactly_the_known_nodes(built, kind, method):
    known = [name for name in built.nodes if node_kind(name) == kind]
    if not known:
        pytest.skip("this circuit has none")
    circuit = found_by(built, kind, method=method).circuit
    assert (circuit.heads if kind == "head" else circuit.mlps) == known


def test_scores_rank_every_known_edge_above_all_others(built):
    experiment = experiment_of(built)
    scores = attribution_patching(experiment).edges
    known = torch.zeros_like(experiment.graph.mask)
    for name in built.edges:
        known[experiment.graph.edge_index(name)] = True
    mask = experiment.graph.mask
    assert auroc(scores[mask], known[mask]) == 1


def test_the_known_circuit_is_faithful_complete_and_minimal(built):
    experiment = experiment_of(built, "reporting")
    circuit = found_by(built, "edge").circuit
    assert faithfulness_of(experiment, circuit) == pytest.approx(1, abs=1e-4)
    assert completeness_of(experiment, circuit) == pytest.approx(0, abs=1e-4)
    assert min(minimality_of(experiment, circuit)["fall"]) > 0.1


def test_the_circuit_does_less_without_its_last_edge(built):
    left = found_by(built, "edge").faithfulness_without_last
    assert left is not None and left < 0.9


def test_the_distractors_are_active(built):
    """They write something else on corrupted prompts, in every layer."""
    experiment = experiment_of(built)
    graph, prompts = experiment.graph, experiment.prompts
    clean, corrupted = (
        source_outputs(built.model, graph, record_activations(built.model, graph, tokens))
        for tokens in (prompts.clean, prompts.corrupted)
    )
    change = (clean - corrupted).norm(dim=-1).mean(dim=(1, 2))
    for layer in range(graph.n_layers):
        heads = range(graph.head_sources(layer).stop - 2, graph.head_sources(layer).stop)
        assert (change[list(heads)] > 0.1).all()
        assert not graph.has_mlps or change[graph.mlp_source(layer)] > 0.1


def test_the_attention_edges_of_induction_are_found():
    chosen = found_by(MODELS["induction"], "attention_edge").circuit.attention_edges["hand-built"]
    places = {(edge.layer, edge.head, edge.query, edge.key) for edge in chosen}
    # B looks at A, the last A at B; where it no longer looks is the wrong answer.
    assert {(0, 0, 2, 1), (1, 0, 6, 2), (1, 0, 6, 4)} <= places


def test_the_whole_graph_is_as_faithful_as_the_known_circuit(built):
    experiment = experiment_of(built)
    everything = faithfulness(experiment.full, experiment.full, experiment.empty)
    assert everything == pytest.approx(faithfulness_of(experiment, found_by(built, "edge").circuit))


def test_text_prompts_are_refused(built):
    with pytest.raises(ValueError, match="has no text; pass `prompts=`"):
        built.task.build(None)


@pytest.mark.parametrize("prune", [False, True])
def test_a_model_without_mlps_needs_none_of_none(prune):
    built = MODELS["induction"]
    assert built.model.cfg.attn_only
    found = discover(built.model, built.task, prompts=built.prompts(9), prune=prune, target=TARGET)
    mlps = found.circuits["mlp"]
    assert (mlps.size, mlps.n_components) == (0, 0)
    assert mlps.faithfulness == 1  # nothing is ablated
    assert found.circuits["head"].size == 2
