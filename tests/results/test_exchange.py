"""What other tools read and write: EAP-IG's JSON, networkx and GraphML."""

import json

import networkx as nx
import pytest
import torch

from circuits.graph import Graph
from circuits.results.circuit import AttentionEdge, Circuit
from circuits.results.exchange import (
    check_fits,
    from_networkx,
    read_graphml,
    to_networkx,
    write_graphml,
)

GRAPHS = {
    "plain": Graph(2, 3, d_model=12),
    "parallel": Graph(2, 2, parallel_attn_mlp=True, d_model=8),
    "attention only": Graph(3, 2, has_mlps=False, d_model=8),
}


@pytest.fixture(params=GRAPHS.values(), ids=list(GRAPHS))
def circuit(request):
    graph = request.param
    torch.manual_seed(0)
    edges = graph.connected(graph.mask & (torch.rand(graph.mask.shape) < 0.5))
    nodes = edges.any(dim=1)
    nodes[0] = True
    return Circuit(
        graph=graph,
        granularity="edge",
        nodes=nodes,
        edges=edges,
        scores=torch.randn(graph.mask.shape) * graph.mask,
        attention_edges={"a <template> & more": [AttentionEdge(0, 1, 4, 2, -0.125)]},
        provenance={"task": "ioi", "target": 0.9, "nested": {"list": [1, None, "x"]}},
    )


def test_every_form_gives_the_same_circuit_back(circuit, tmp_path):
    circuit.save(tmp_path / "circuit.json")
    loaded = Circuit.load(tmp_path / "circuit.json")
    through_networkx = from_networkx(to_networkx(loaded))
    write_graphml(through_networkx, tmp_path / "circuit.graphml")
    last = read_graphml(tmp_path / "circuit.graphml")
    assert last.to_json() == circuit.to_json()
    assert last.graph.d_model == circuit.graph.d_model


def test_networkx_can_measure_the_whole_graph(circuit):
    graph = to_networkx(circuit)
    assert graph.number_of_edges() == circuit.graph.n_edges
    assert nx.dag_longest_path(graph)[0] == "input"
    inside = [key for *_, key, data in graph.edges(keys=True, data=True) if data["in_graph"]]
    assert sorted(inside) == sorted(circuit.edge_names)


def test_the_json_holds_what_eap_ig_reads(circuit):
    """The keys that Graph.from_json of EAP-IG takes from a file, and what it takes them for."""
    content = json.loads(json.dumps(circuit.to_json()))
    cfg = content["cfg"]
    layers, heads = range(cfg["n_layers"]), range(cfg["n_heads"])
    assert isinstance(cfg["d_model"], int)  # the width of its neuron masks
    nodes = ["input", *(f"a{layer}.h{head}" for layer in layers for head in heads), "logits"]
    if circuit.graph.has_mlps:
        nodes += [f"m{layer}" for layer in layers]
    assert set(content["nodes"]) == set(nodes)
    for name, node in content["nodes"].items():
        assert isinstance(node["in_graph"], bool)
        assert name == "logits" or isinstance(node["score"], float)
        assert "neurons" not in node
    expected = set()
    order = []
    for layer in layers:
        stage = [f"a{layer}.h{head}" for head in heads]
        order += [stage, [f"m{layer}"]] if circuit.graph.has_mlps else [stage]
    before = ["input"]
    for stage in order:
        for node in stage:
            for read in ("<q>", "<k>", "<v>") if node.startswith("a") else ("",):
                expected |= {
                    f"{source}->{node}{read}"
                    for source in before
                    if not (cfg["parallel_attn_mlp"] and source.split(".")[0][1:] == node[1:])
                }
        before += stage
    expected |= {f"{source}->logits" for source in before}
    assert set(content["edges"]) == expected
    for edge in content["edges"].values():
        assert isinstance(edge["score"], float)
        assert isinstance(edge["in_graph"], bool)


def plain_json(**changes):
    content = {
        "cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 4},
        "nodes": {name: {"in_graph": True} for name in ("input", "a0.h0", "m0", "logits")},
        "edges": {"input->a0.h0<q>": {"in_graph": True, "score": 0.5}},
    }
    return content | changes


def test_a_file_without_scores_of_nodes_or_unlisted_edges_is_read():
    circuit = Circuit.from_json(plain_json())
    assert circuit.edge_names == ["input->a0.h0<q>"]
    assert circuit.granularity == "edge"


def test_a_file_without_nodes_has_those_of_its_edges():
    edges = {"input->m0": {"in_graph": True}, "a0.h0->m0": {"in_graph": False}}
    circuit = Circuit.from_json(plain_json(nodes={}, edges=edges))
    assert circuit.nodes.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": {"m0->a0.h0<q>": {"in_graph": True}}}, "does not run forwards"),
        ({"edges": {"a7.h0->m0": {"in_graph": True}}}, "'a7.h0' is not a source"),
        ({"edges": {"input->m0": {"in_graph": 1}}}, "in_graph of input->m0 is 1"),
        (
            {"edges": {"input->m0": {"in_graph": True, "score": float("nan")}}},
            "score of input->m0 is nan; it must be a finite number",
        ),
        ({"nodes": {"m3": {"in_graph": True}}}, r"lacks the nodes \['m3'\]"),
        (
            {
                "nodes": {"a0.h0": {"in_graph": False}},
                "edges": {"a0.h0->m0": {"in_graph": True}},
            },
            "its node a0.h0 is not; set in_graph of both",
        ),
    ],
    ids=["backwards", "unknown edge", "flag", "nan", "unknown node", "lonely edge"],
)
def test_a_bad_file_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Circuit.from_json(plain_json(**changes))


def test_a_cyclic_graph_is_refused():
    graph = to_networkx(Circuit.from_json(plain_json()))
    graph.add_edge("m0", "a0.h0", read="q", score=1.0, in_graph=True)
    with pytest.raises(ValueError, match="the graph is cyclic"):
        from_networkx(graph)


def test_a_graph_without_its_attributes_is_refused():
    with pytest.raises(ValueError, match="no attribute 'cfg'"):
        from_networkx(nx.MultiDiGraph())


def test_what_is_no_graphml_is_refused(tmp_path):
    (tmp_path / "circuit.graphml").write_text("{}")
    with pytest.raises(ValueError, match="it is not the GraphML of a circuit"):
        read_graphml(tmp_path / "circuit.graphml")


def test_a_circuit_of_another_architecture_does_not_fit(circuit):
    check_fits(circuit, circuit.graph)
    with pytest.raises(ValueError, match="n_layers=9"):
        check_fits(circuit, Graph(9, 1))
