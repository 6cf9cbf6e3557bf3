from dataclasses import replace

import pytest
import torch

from circuits.attribute import attribution_patching
from circuits.discovery.find_circuits import discover
from circuits.discovery.quality import completeness_of, faithfulness_of, minimality_of
from circuits.discovery.rank import build_circuit, rank_components
from circuits.intervene.ablate import run_edges
from circuits.intervene.experiment import faithfulness, prepare_experiment
from circuits.results.discovery import DiscoverConfig
from circuits.tasks import Task, TaskPrompts
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


@pytest.mark.parametrize(("granularity", "size"), [("head", 2), ("mlp", 1)])
def test_completeness_leaves_the_other_kind_of_component_intact(experiment, granularity, size):
    """What the chosen nodes write is put back from the corrupted run, with hooks of this test."""
    model, prompts = experiment.model, experiment.prompts
    circuit = circuit_of(experiment, granularity, size)
    chosen = circuit.heads if granularity == "head" else circuit.mlps
    _, gone = model.run_with_cache(prompts.corrupted)

    def replace_mlp(act, hook):
        return gone[hook.name]

    def replace_heads(z, hook):
        z = z.clone()
        for name in chosen:
            layer, head = (int(part[1:]) for part in name.split("."))
            if layer == hook.layer():
                z[:, :, head] = gone[hook.name][:, :, head]
        return z

    if granularity == "mlp":
        hooks = [(f"blocks.{name[1:]}.hook_mlp_out", replace_mlp) for name in chosen]
    else:
        hooks = [(f"blocks.{layer}.attn.hook_z", replace_heads) for layer in range(2)]

    def logit_diff(logits):
        last = logits[torch.arange(len(prompts)), prompts.lengths - 1]
        right, wrong = (last.gather(1, ids) for ids in (prompts.answers, prompts.wrong_answers))
        return (right - wrong).mean().item()

    with torch.no_grad():
        full, empty = logit_diff(model(prompts.clean)), logit_diff(model(prompts.corrupted))
        rest = logit_diff(model.run_with_hooks(prompts.clean, fwd_hooks=hooks))
    expected = (rest - empty) / (full - empty)
    assert completeness_of(experiment, circuit) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("granularity", "target"), [("head", 0.9), ("mlp", 0.6), ("edge", 0.6)])
def test_completeness_is_what_discovery_reports_as_the_rest(granularity, target):
    model = make_tiny_model(n_layers=3, seed=1)
    sets = [make_prompts(model, batch=12, seed=seed) for seed in (1, 2, 3)]
    task = Task("made_up", "prompts are given", "logit_diff", lambda *_: [])
    config = DiscoverConfig(target=target, granularities=(granularity,))
    found = discover(model, task, config, prompts=TaskPrompts(*sets)).circuits[granularity]
    assert 0 < found.size < found.n_components
    reporting = prepare_experiment(model, sets[2], metric="logit_diff")
    assert completeness_of(reporting, found.circuit) == pytest.approx(
        found.faithfulness_of_rest, abs=1e-5
    )


@pytest.mark.parametrize(("granularity", "size"), [("edge", 12), ("head", 3), ("mlp", 2)])
def test_minimality_takes_each_component_away_in_turn(experiment, granularity, size):
    circuit = circuit_of(experiment, granularity, size)
    falls = minimality_of(experiment, circuit).set_index("component")["fall"].to_dict()
    names = circuit.edge_names
    if granularity != "edge":
        names = circuit.heads if granularity == "head" else circuit.mlps
    assert sorted(falls) == sorted(names)
    assert list(falls.values()) == sorted(falls.values())
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
    with pytest.raises(ValueError, match="attention edges are not edges of the graph"):
        completeness_of(experiment, circuit)


def test_a_score_that_is_not_finite_is_refused(experiment):
    circuit = circuit_of(experiment, "edge", 3)
    bad = replace(circuit, scores=torch.full_like(circuit.scores, torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        minimality_of(experiment, bad)
