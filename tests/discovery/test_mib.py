"""A ranking at the MIB benchmark's ten sizes, against loops and against numbers worked by hand."""

import math
from dataclasses import replace

import pytest
import torch

from circuits.attribute import Scores, attribution_patching
from circuits.discovery.hand_built import gated_copy
from circuits.discovery.mib import find_known, measure_mib, mib_circuit, mib_ranking
from circuits.discovery.resample import resample_prompts
from circuits.graph import Graph
from circuits.intervene.experiment import CannotDoTask, prepare_experiment
from circuits.results.circuit import Circuit
from tests.helpers import make_prompts, make_tiny_model, needs_hooked_transformer
from tests.models.slow_reference import run_circuit

SIZES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]


def prepared(**settings):
    model = make_tiny_model(**settings)
    prompts = make_prompts(model, batch=12, templates=12)
    return prepare_experiment(model, prompts, metric="logit_diff")


@pytest.fixture(scope="module")
def experiment():
    return prepared()


def scores_of(graph, values):
    """Scores with the given ones, by name of the edge, and small ones for all others."""
    edges = torch.zeros(graph.mask.shape)
    for number, (src, dest) in enumerate(graph.mask.nonzero().tolist()):
        edges[src, dest] = 1e-3 / (number + 1)
    for name, value in values.items():
        edges[graph.edge_index(name)] = value
    return Scores(graph, edges, {}, "by hand", "corrupted", 1)


def pruned(names):
    """Edges without those of nodes that nothing enters or leaves, again and again."""
    kept = set(names)
    while True:
        pairs = [(name.split("->")[0], name.split("->")[1].split("<")[0]) for name in kept]
        left = {src for src, _ in pairs}
        entered = {dest for _, dest in pairs} | {"input"}
        good = (left & entered) | {"logits"}
        fewer = {
            name
            for name in kept
            if name.split("->")[0] in good and name.split("->")[1].split("<")[0] in good
        }
        if fewer == kept:
            return kept
        kept = fewer


def chosen_by_loops(graph, scores, n, level, selection):
    """The benchmark's circuit of n components, by names and plain loops."""
    edges = {
        graph.edge_name(src, dest): float(scores.edges[src, dest])
        for src, dest in graph.mask.nonzero().tolist()
    }

    def strength(value):
        return value if selection == "signed" else abs(value)

    if level == "node":
        nodes = {
            name: sum(score for edge, score in edges.items() if edge.startswith(f"{name}->"))
            for name in graph.sources
        }
        best = sorted(nodes, key=lambda name: -strength(nodes[name]))[:n]
        inside = [*best, "logits"]
        return pruned(
            [
                name
                for name in edges
                if name.split("->")[0] in best and name.split("->")[1].split("<")[0] in inside
            ],
        )
    if selection != "greedy":
        return pruned(sorted(edges, key=lambda name: -strength(edges[name]))[:n])
    taken, inside = [], {"logits"}
    for _ in range(n):
        free = [e for e in edges if e not in taken and e.split("->")[1].split("<")[0] in inside]
        taken.append(max(free, key=lambda name: strength(edges[name])))
        inside.add(taken[-1].split("->")[0])
    return pruned(taken)


PARALLEL = {"n_heads": 3, "parallel_attn_mlp": True}


@pytest.mark.parametrize(
    ("level", "selection", "settings"),
    [
        ("edge", "absolute", {}),
        ("edge", "signed", PARALLEL),
        ("edge", "greedy", PARALLEL),
        ("node", "absolute", PARALLEL),
        ("node", "signed", {}),
    ],
)
def test_circuits_and_areas_are_those_of_plain_loops(level, selection, settings):
    experiment = prepared(**settings)
    graph, scores = experiment.graph, attribution_patching(experiment)
    curve = measure_mib(experiment, scores, level=level, selection=selection)

    def metric(names):
        return run_circuit(experiment.model, experiment.prompts, names).tolist()

    whole = [graph.edge_name(*place) for place in graph.mask.nonzero().tolist()]
    full, empty = metric(whole), metric([])
    n_all = len(whole) if level == "edge" else len(graph.sources)
    at_sizes = []
    for share, found in zip(SIZES, curve.sizes, strict=True):
        n = int(share * n_all)
        names = chosen_by_loops(graph, scores, n, level, selection)
        assert (found.share, found.chosen, found.edges) == (share, n, len(names))
        at_sizes.append(metric(names))

    def by_loops(weights):
        gap = sum(w * (f - e) for w, f, e in zip(weights, full, empty, strict=True))
        reached = [
            sum(w * (v - e) for w, v, e in zip(weights, values, empty, strict=True)) / gap
            for values in at_sizes
        ]
        under = apart = 0.0
        for i in range(len(SIZES) - 1):
            width, pair = SIZES[i + 1] - SIZES[i], reached[i : i + 2]
            under += width * sum(pair) / 2
            apart += width * sum(abs(1 - one) for one in pair) / 2
        return reached, under, apart

    reached, under, apart = by_loops([1] * len(full))
    assert [one.faithfulness.value for one in curve.sizes] == pytest.approx(reached, abs=1e-4)
    assert (curve.cpr.value, curve.cmd.value) == pytest.approx((under, apart), abs=1e-4)
    assert curve.average == pytest.approx(sum(reached) / 10, abs=1e-4)
    assert len({round(one, 3) for one in reached}) > 3  # the curve is no step
    again = resample_prompts(experiment.prompts.templates, seed=0).weights.tolist()
    samples = [by_loops(weights)[1:] for weights in again]
    for which, estimate in enumerate((curve.cpr, curve.cmd)):
        ordered = sorted(sample[which] for sample in samples)
        assert ordered[24] - 1e-4 <= estimate.low <= ordered[25] + 1e-4
        assert ordered[-26] - 1e-4 <= estimate.high <= ordered[-25] + 1e-4


@needs_hooked_transformer
def test_a_circuit_that_is_known_gives_the_numbers_worked_by_hand():
    """110 edges, so the sizes are 0, 0, 0, 1, 2, 5, 11, 22, 55 and all.

    The five edges of the circuit do everything together, and nothing with one missing. Scored 5 to
    1 they are the first five, so F is 1 from the sixth size on, linearly up from the fifth. Three
    distractors at -9 come before them in absolute order: then it is the seventh.
    """
    known = gated_copy()
    experiment = prepare_experiment(known.model, known.draw(12, 0), metric="logit_diff")
    graph = experiment.graph
    assert graph.n_edges == 110
    values = dict(zip(known.edges, [5.0, 4, 3, 2, 1], strict=True))
    values |= dict.fromkeys(("input->m0", "a0.h2->m1", "m1->logits"), -9.0)
    scores = scores_of(graph, values)

    signed = measure_mib(experiment, scores, selection="signed")
    assert [one.chosen for one in signed.sizes] == [0, 0, 0, 1, 2, 5, 11, 22, 55, 110]
    assert [one.edges for one in signed.sizes][:6] == [0, 0, 0, 0, 0, 5]
    assert [one.faithfulness.value for one in signed.sizes] == pytest.approx(
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1], abs=1e-3
    )
    assert signed.cpr.value == pytest.approx((0.05 - 0.02) / 2 + 0.95, abs=1e-3)
    assert signed.cmd.value == pytest.approx(0.019 + (0.05 - 0.02) / 2, abs=1e-3)
    assert signed.average == pytest.approx(0.5, abs=1e-3)
    assert signed.cpr_log == pytest.approx(math.log(0.05 / 0.02) / 2 + math.log(20), abs=1e-3)
    assert signed.cmd_log == pytest.approx(math.log(20) + math.log(0.05 / 0.02) / 2, abs=1e-3)
    assert signed.cpr.low == pytest.approx(signed.cpr.high, abs=1e-3)  # no prompt is another

    absolute = measure_mib(experiment, scores, selection="absolute")
    assert [one.faithfulness.value for one in absolute.sizes] == pytest.approx(
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1], abs=1e-3
    )
    assert absolute.cpr.value == pytest.approx((0.1 - 0.05) / 2 + 0.9, abs=1e-3)
    assert absolute.cmd.value == pytest.approx(0.049 + (0.1 - 0.05) / 2, abs=1e-3)


def test_the_input_competes_with_the_other_nodes(experiment):
    graph = experiment.graph
    scores = scores_of(graph, {"a0.h1->logits": 3.0, "m1->logits": -4.0, "input->logits": 2.0})
    signed = mib_ranking(scores, "node", "signed")
    absolute = mib_ranking(scores, "node")
    names = [[graph.sources[row] for row in order[:3]] for order in (signed, absolute)]
    assert names == [["a0.h1", "input", names[0][2]], ["m1", "a0.h1", "input"]]
    assert not mib_circuit(scores, "node", absolute[:2]).any()  # nothing reads a clean input


@pytest.mark.parametrize("seed", range(3))
def test_known_edges_are_found_as_the_benchmark_counts_them(seed):
    graph = Graph(2, 2, parallel_attn_mlp=seed == 2)
    torch.manual_seed(seed)
    scores = scores_of(graph, {})
    scores = replace(scores, edges=torch.randn(graph.mask.shape) * graph.mask)
    names = [graph.edge_name(*place) for place in graph.mask.nonzero().tolist()]
    known = Circuit.from_edges(graph, names[seed::5])
    found = find_known(scores, known)
    false, true = [], []
    for share in SIZES:
        left, n = share * len(names), 0
        while left > 0:  # as the benchmark counts down from a fraction of an edge
            left, n = left - 1, n + 1
        chosen = chosen_by_loops(graph, scores, n, "edge", "greedy")
        hits = len(chosen & set(known.edge_names))
        true.append(hits / len(known.edge_names))
        false.append((len(chosen) - hits) / (len(names) - len(known.edge_names)))
    assert found.true_positives == pytest.approx(true)
    assert found.false_positives == pytest.approx(false)
    area = sum(
        (false[i + 1] - false[i]) * (true[i] + true[i + 1]) / 2 for i in range(len(SIZES) - 1)
    )
    assert found.auroc_of_sizes == pytest.approx(area)
    strength = {name: abs(float(scores.edges[graph.edge_index(name)])) for name in names}
    pairs = [strength[a] > strength[b] for a in known.edge_names for b in names
             if b not in known.edge_names]  # fmt: skip
    assert found.auroc == pytest.approx(sum(pairs) / len(pairs))


def test_known_nodes_are_heads_and_mlps():
    graph = Graph(1, 2)
    known = Circuit.from_edges(graph, ["input->a0.h1<q>", "a0.h1->logits"])
    scores = scores_of(graph, {"input->m0": 9.0, "a0.h1->logits": -2.0, "m0->logits": 1.0})
    assert find_known(scores, known, "node").auroc == 1
    assert math.isnan(find_known(scores, known, "node").auroc_of_sizes)


def test_what_cannot_be_measured_is_refused(experiment):
    scores = attribution_patching(experiment)
    with pytest.raises(ValueError, match="unknown level 'neuron'; choose one of edge, node"):
        measure_mib(experiment, scores, level="neuron")
    with pytest.raises(ValueError, match="nodes have no greedy order"):
        measure_mib(experiment, scores, level="node", selection="greedy")
    with pytest.raises(ValueError, match="the scores are of Graph"):
        measure_mib(experiment, scores_of(Graph(1, 2), {}))
    with pytest.raises(ValueError, match=r"score of input->m0 is nan"):
        measure_mib(experiment, scores_of(experiment.graph, {"input->m0": math.nan}))
    idle = replace(experiment.prompts, wrong_answers=experiment.prompts.answers)
    with pytest.raises(CannotDoTask):
        measure_mib(prepare_experiment(experiment.model, idle, metric="logit_diff"), scores)
    with pytest.raises(ValueError, match="give a circuit of this architecture"):
        find_known(scores, Circuit.from_edges(Graph(1, 2), ["m0->logits"]))
