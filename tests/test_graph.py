import itertools
from typing import Any

import networkx as nx
import pytest
import torch

from circuits.graph import Graph, node_kind, node_layer


def test_gpt2_small_has_32491_edges():
    assert Graph(12, 12).n_edges == 32_491


def test_sources_and_destinations_stand_in_the_order_of_computation():
    graph = Graph(1, 2)
    assert graph.sources == ("input", "a0.h0", "a0.h1", "m0")
    assert graph.destinations == (
        "a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m0", "logits",
    )  # fmt: skip


def test_a_matrix_over_edges_is_source_by_destination():
    graph = Graph(2, 2)
    assert graph.mask.shape == (graph.n_sources, graph.n_destinations)
    assert graph.edge_index("a0.h1->m1") == (2, graph.mlp_destination(1))
    assert graph.edge_name(2, graph.mlp_destination(1)) == "a0.h1->m1"


@pytest.mark.parametrize("graph", [Graph(3, 2), Graph(2, 3, has_mlps=False)], ids=str)
def test_every_edge_has_a_name_of_its_own_that_leads_back_to_it(graph):
    edges = [tuple(edge) for edge in graph.mask.nonzero().tolist()]
    names = [graph.edge_name(*edge) for edge in edges]
    assert len(set(names)) == len(names) == graph.n_edges
    assert [graph.edge_index(name) for name in names] == edges


def test_parallel_mlps_do_not_read_the_heads_of_their_layer():
    assert Graph(1, 1).mask[1, Graph(1, 1).mlp_destination(0)]
    graph = Graph(1, 1, parallel_attn_mlp=True)
    assert not graph.mask[1, graph.mlp_destination(0)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a0.h0", "is not an edge; an edge is written like"),
        ("a0.h9->logits", "'a0.h9' is not a source of a graph with 2 layers of 2 heads"),
        ("input->a0.h0", "'a0.h0' is not a destination"),
        ("a0.h1->a0.h0<q>", "does not run forwards"),
        ("m1->m0", "does not run forwards; an edge must go to a later layer or to the MLP"),
    ],
)
def test_what_is_no_edge_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        Graph(2, 2).edge_index(name)


def test_a_graph_needs_layers_and_heads():
    with pytest.raises(ValueError, match="at least one layer and one head, got n_layers=0"):
        Graph(0, 2)


def test_kinds_and_layers_of_nodes():
    assert [node_kind(name) for name in ("input", "a3.h7", "a3.h7<q>", "m3", "logits")] == [
        "input", "head", "head", "mlp", "logits",
    ]  # fmt: skip
    assert [node_layer(name) for name in ("input", "a3.h7", "m12")] == [-1, 3, 12]
    with pytest.raises(ValueError, match="'x' is not a node"):
        node_kind("x")
    with pytest.raises(ValueError, match="has no layer"):
        node_layer("logits")


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_connected_keeps_just_the_edges_on_paths_from_input_to_logits(share):
    graph = Graph(2, 2)
    for _ in range(20):
        edges = graph.mask & (torch.rand(graph.mask.shape) < share)
        drawn = nx.MultiDiGraph()
        drawn.add_nodes_from(["input", "logits"])
        for src, dest in edges.nonzero().tolist():
            drawn.add_edge(
                graph.sources[src], graph.destinations[dest].split("<")[0], key=(src, dest)
            )
        paths: Any = nx.all_simple_edge_paths(drawn, "input", "logits")
        expected = torch.zeros_like(edges)
        for _, _, (src, dest) in itertools.chain.from_iterable(paths):
            expected[src, dest] = True
        assert torch.equal(graph.connected(edges), expected)
