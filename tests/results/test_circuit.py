import json

import pytest
import torch

from circuits.graph import Graph
from circuits.results.circuit import AttentionEdge, Circuit
from circuits.results.shape import circuit_shape

GRAPH = Graph(2, 2)
NAMES = ("input->a0.h1<v>", "input->a1.h0<q>", "a0.h1->a1.h0<k>", "a1.h0->logits", "a1.h0->m1",
         "m1->logits")  # fmt: skip


def circuit_of(*names, granularity="edge"):
    edges = torch.zeros_like(GRAPH.mask)
    for name in names:
        edges[GRAPH.edge_index(name)] = True
    scores = torch.randn(GRAPH.mask.shape) * GRAPH.mask
    return Circuit(
        graph=GRAPH,
        granularity=granularity,
        nodes=edges.any(dim=1),
        edges=edges,
        scores=scores,
        attention_edges={"t": [AttentionEdge(1, 0, 5, 3, -0.5)]},
        provenance={"task": "ioi"},
    )


def test_edges_are_counted_by_the_kind_of_what_they_end_in():
    counts = circuit_of(*NAMES).edges_by_kind()
    assert counts == {"q": 1, "k": 1, "v": 1, "mlp": 1, "logits": 2}
    assert circuit_of().edges_by_kind() == dict.fromkeys(counts, 0)


def test_all_edges_of_a_graph_are_counted_once():
    graph = Graph(3, 2, has_mlps=False)
    everything = Circuit(graph, "edge", torch.ones(7).bool(), graph.mask, torch.zeros(7, 19))
    assert everything.edges_by_kind() == {"q": 18, "k": 18, "v": 18, "mlp": 0, "logits": 7}


def test_a_file_gives_back_the_circuit(tmp_path):
    circuit = circuit_of(*NAMES)
    circuit.save(tmp_path / "c.json")
    again = Circuit.load(tmp_path / "c.json")
    assert torch.equal(again.edges, circuit.edges)
    assert torch.equal(again.nodes, circuit.nodes)
    torch.testing.assert_close(again.scores, circuit.scores)
    assert again.attention_edges == circuit.attention_edges
    assert (again.granularity, again.provenance) == (circuit.granularity, circuit.provenance)


def test_the_file_has_every_node_and_edge_as_eap_ig_writes_them(tmp_path):
    circuit_of(*NAMES).save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["cfg"]["n_layers"] == 2
    assert content["cfg"]["parallel_attn_mlp"] is False
    assert set(content["nodes"]) == {*GRAPH.sources, "logits"}
    assert len(content["edges"]) == GRAPH.n_edges
    assert {n for n, e in content["edges"].items() if e["in_graph"]} == set(NAMES)
    assert all(isinstance(e["score"], float) for e in content["edges"].values())


@pytest.mark.parametrize("name", ["a1.h0->a0.h0<q>", "m5->logits"], ids=["backwards", "unknown"])
def test_a_file_with_an_impossible_edge_is_refused(tmp_path, name):
    content = circuit_of(*NAMES).to_json()
    content["edges"][name] = {"score": 1.0, "in_graph": True}
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=name):
        Circuit.load(tmp_path / "c.json")


def test_a_file_that_is_no_circuit_is_refused(tmp_path):
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a circuit"):
        Circuit.load(tmp_path / "c.json")


def test_sizes_count_what_was_chosen():
    assert circuit_of(*NAMES).size == 6
    assert circuit_of(*NAMES, granularity="head").size == 2
    assert circuit_of(*NAMES, granularity="mlp").size == 1
    assert circuit_of(*NAMES, granularity="attention_edge").size == 1


def test_networkx_has_nodes_with_layers_and_edges_with_reads():
    graph = circuit_of(*NAMES).to_networkx()
    assert set(graph) == {"input", "a0.h1", "a1.h0", "m1", "logits"}
    assert graph.nodes["a1.h0"] == {"kind": "head", "layer": 1}
    assert graph.edges["a0.h1", "a1.h0", "a0.h1->a1.h0<k>"]["read"] == "k"


def test_the_shape_of_a_circuit_by_hand():
    # input -> a1.h0 directly or through a0.h1; from there to the logits directly or through m1.
    shape = circuit_shape(circuit_of(*NAMES))
    assert shape["paths"] == 4
    assert shape["depth"] == 4
    assert shape["nodes"] == 3
    assert shape["edges"] == 6


def test_a_wrong_granularity_or_shape_is_refused():
    with pytest.raises(ValueError, match="unknown granularity 'neuron'"):
        circuit_of(*NAMES, granularity="neuron")


def test_a_circuit_can_be_made_of_names_of_edges():
    circuit = Circuit.from_edges(GRAPH, NAMES)
    assert sorted(circuit.edge_names) == sorted(NAMES)
    assert circuit.size == len(NAMES)
    assert circuit.heads == ["a0.h1", "a1.h0"]
    with pytest.raises(ValueError, match="does not run forwards"):
        Circuit.from_edges(GRAPH, ["a1.h0->m0"])


def test_a_circuit_of_heads_leaves_every_mlp_in():
    circuit = Circuit.from_heads(GRAPH, ["a1.h1", "a0.h0"])
    assert circuit.heads == ["a0.h0", "a1.h1"]
    assert circuit.mlps == ["m0", "m1"]
    assert circuit.size == 2
    touched = [name for name in circuit.edge_names if "a0.h1" in name or "a1.h0" in name]
    assert touched == []
    # input->a0.h0 and ->a1.h1 in q, k, v; input->m0, m1, logits; a0.h0 and m0 to a1.h1 in q, k, v;
    # a0.h0->m0, m1, logits; m0->m1, logits; a1.h1->m1, logits; m1->logits
    assert circuit.edges.sum() == 6 + 3 + 6 + 3 + 2 + 2 + 1
    with pytest.raises(ValueError, match="'m0' is not a head of a graph with 2 layers of 2 heads"):
        Circuit.from_heads(GRAPH, ["m0"])


def test_circuits_are_equal_where_everything_in_them_is(tmp_path):
    circuit = circuit_of(*NAMES)
    circuit.save(tmp_path / "c.json")
    assert Circuit.load(tmp_path / "c.json") == circuit
    assert circuit != Circuit.from_edges(GRAPH, NAMES)
    assert Circuit.from_edges(GRAPH, NAMES) == Circuit.from_edges(GRAPH, reversed(NAMES))
    assert Circuit.from_edges(GRAPH, NAMES) != Circuit.from_edges(GRAPH, NAMES[1:])
    assert circuit != "a circuit"


def test_a_circuit_is_shown_in_a_line():
    shown = repr(Circuit.from_edges(GRAPH, NAMES))
    assert shown == "Circuit(6 edges: input->a0.h1<v>, input->a1.h0<q>, a0.h1->a1.h0<k>, ...)"
    assert repr(Circuit.from_heads(GRAPH, ["a1.h1"])) == "Circuit(1 heads: a1.h1)"
