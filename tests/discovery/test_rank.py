import pytest
import torch

from circuits.attribute import Scores
from circuits.discovery.rank import (
    build_attention_circuit,
    build_circuit,
    build_circuit_above,
    n_holding,
    rank_attention_edges,
    rank_components,
    select_edges,
)
from circuits.graph import Graph

GRAPH = Graph(2, 2)


def scores_of(edges, attention_edges=None):
    matrix = torch.zeros(GRAPH.mask.shape)
    for name, score in edges.items():
        matrix[GRAPH.edge_index(name)] = score
    return Scores(
        graph=GRAPH,
        edges=matrix,
        attention_edges=attention_edges or {},
        method="attribution_patching",
        ablation="corrupted",
        n_prompts=3,
    )


def chosen_edges(*names):
    flat = [src * GRAPH.n_destinations + dest for src, dest in map(GRAPH.edge_index, names)]
    return torch.tensor(flat, dtype=torch.long)


def rows(*names):
    return torch.tensor([GRAPH.sources.index(name) for name in names], dtype=torch.long)


def test_edges_are_ranked_by_absolute_value():
    scores = scores_of({"input->m0": 0.5, "m1->logits": -2.0, "a0.h1->a1.h0<k>": 1.0})
    strongest = rank_components(scores, "edge")[:3]
    assert torch.equal(strongest, chosen_edges("m1->logits", "a0.h1->a1.h0<k>", "input->m0"))


def test_the_ranking_holds_every_edge_once_and_nothing_else():
    scores = scores_of({})
    ranking = rank_components(scores, "edge")
    assert sorted(ranking.tolist()) == GRAPH.mask.flatten().nonzero()[:, 0].tolist()


def test_heads_are_ranked_by_the_absolute_sum_of_their_edges():
    scores = scores_of(
        {
            "a0.h0->logits": 3.0,
            "a0.h0->a1.h0<q>": -2.9,
            "a0.h1->logits": -1.0,
            "a1.h0->logits": 0.5,
            "m1->logits": 9.0,
        }
    )
    ranking = rank_components(scores, "head")
    assert torch.equal(ranking, rows("a0.h1", "a1.h0", "a0.h0", "a1.h1"))


def test_mlps_are_ranked_among_themselves():
    scores = scores_of({"m0->logits": 0.1, "m1->logits": -0.2, "a0.h0->logits": 5.0})
    assert torch.equal(rank_components(scores, "mlp"), rows("m1", "m0"))


def test_attention_edges_do_not_cover_any_kind_of_node():
    with pytest.raises(ValueError, match="'attention_edge' is not a kind of node"):
        rank_components(scores_of({}), "attention_edge")


def test_attention_edges_are_ranked_and_never_look_ahead():
    values = torch.tensor([[[[0.0, 9.0], [1.0, -2.0]]]])
    assert rank_attention_edges(values).tolist() == [3, 2, 0]


def test_choosing_among_heads_leaves_the_mlps_intact():
    edges = select_edges(GRAPH, "head", rows("a0.h1"))
    kept = {name for name, row in zip(GRAPH.sources, edges.any(dim=1), strict=True) if row}
    assert kept == {"input", "a0.h1", "m0", "m1"}


def test_choosing_among_mlps_leaves_the_heads_intact():
    edges = select_edges(GRAPH, "mlp", rows("m0"))
    kept = {name for name, row in zip(GRAPH.sources, edges.any(dim=1), strict=True) if row}
    assert kept == {"input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1"}


def test_choosing_all_components_is_the_whole_graph():
    for granularity in ("head", "mlp", "edge"):
        chosen = rank_components(scores_of({}), granularity)
        assert torch.equal(select_edges(GRAPH, granularity, chosen), GRAPH.mask)


def test_edges_on_no_path_from_input_to_logits_are_dropped():
    path = ("input->a0.h0<v>", "a0.h0->logits")
    dead_end, from_nowhere = "input->m0", "a1.h1->logits"
    chosen = chosen_edges(*path, dead_end, from_nowhere)
    circuit = build_circuit(scores_of({}), "edge", chosen)
    assert circuit.edge_names == list(path)


def test_dropped_edges_do_not_count():
    chosen = chosen_edges("input->a0.h0<v>", "a0.h0->logits", "a0.h1->logits")
    assert build_circuit(scores_of({}), "edge", chosen).size == 2


def test_the_nodes_of_a_circuit_of_edges_are_those_that_its_edges_leave():
    chosen = chosen_edges("input->a0.h0<v>", "a0.h0->m1", "m1->logits", "a0.h1->logits")
    circuit = build_circuit(scores_of({}), "edge", chosen)
    assert (circuit.heads, circuit.mlps) == (["a0.h0"], ["m1"])


def test_a_circuit_of_nothing_is_empty():
    circuit = build_circuit(scores_of({}), "edge", chosen_edges())
    assert (circuit.size, circuit.heads, circuit.edge_names) == (0, [], [])


def test_a_circuit_of_heads_counts_heads():
    assert build_circuit(scores_of({}), "head", rows("a0.h0", "a1.h1")).size == 2


def test_a_circuit_of_attention_edges_has_the_heads_that_have_one():
    values = {"t": torch.randn(2, 2, 4, 4), "u": torch.randn(2, 2, 4, 4)}
    place = 1 * 32 + 0 * 16 + 3 * 4 + 1  # layer 1, head 0, query 3, key 1
    chosen = {"t": torch.tensor([place]), "u": torch.tensor([], dtype=torch.long)}
    circuit = build_attention_circuit(scores_of({}, values), chosen)
    (edge,) = circuit.attention_edges["t"]
    assert (edge.layer, edge.head, edge.query, edge.key) == (1, 0, 3, 1)
    assert edge.score == float(values["t"][1, 0, 3, 1])
    assert circuit.heads == ["a1.h0"]
    assert circuit.mlps == ["m0", "m1"]


def test_the_size_of_a_circuit_of_attention_edges_is_the_mean_over_templates():
    values = {name: torch.randn(2, 2, 4, 4) for name in "tu"}
    chosen = {"t": torch.tensor([0, 4, 5]), "u": torch.tensor([0])}
    assert build_attention_circuit(scores_of({}, values), chosen).size == 2


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 1), (0.6, 2), (0.8, 2), (0.82, 3), (0.9, 3), (1.0, 4)]
)
def test_the_strongest_that_hold_a_share_of_all_attribution_by_hand(share, expected):
    # Of a total of 16: 8, 13, 15, 16.
    assert n_holding(torch.tensor([1.0, -8.0, 2.0, -5.0]), share) == expected


def test_all_of_the_attribution_is_never_held_by_more_than_there_are():
    # Values of many magnitudes: their sum depends on the order in which they are added.
    for n in (5, 50, 1000) * 20:
        assert n_holding(torch.randn(n) * (8 * torch.randn(n)).exp(), 1.0) <= n


def test_scores_that_are_all_zero_hold_nothing():
    assert n_holding(torch.zeros(5), 0.9) == 0


def test_signed_selection_puts_supporting_edges_first_and_countering_ones_last():
    scores = scores_of({"input->m0": 0.5, "m1->logits": -2.0, "a0.h1->a1.h0<k>": 1.0})
    ranking = rank_components(scores, "edge", "signed")
    assert torch.equal(ranking[:2], chosen_edges("a0.h1->a1.h0<k>", "input->m0"))
    assert torch.equal(ranking[-1:], chosen_edges("m1->logits"))
    pairs = torch.tensor([[[[0.0, 9.0], [-3.0, 1.0]]]])
    assert rank_attention_edges(pairs, "signed").tolist() == [3, 0, 2]
    assert rank_attention_edges(pairs).tolist() == [2, 3, 0]


def test_greedy_selection_grows_from_the_logits_by_the_strongest_edge():
    """A plain loop over all edges that may be added next."""
    torch.manual_seed(0)
    scores = scores_of({})
    scores.edges[GRAPH.mask] = torch.randn(int(GRAPH.mask.sum()))
    inside, order = {"logits"}, []
    left = {(row, column) for row, column in GRAPH.mask.nonzero().tolist()}
    while left:
        open_ = [
            place for place in left if GRAPH.destinations[place[1]].partition("<")[0] in inside
        ]
        best = max(open_, key=lambda place: abs(scores.edges[place].item()))
        order.append(best[0] * GRAPH.n_destinations + best[1])
        inside.add(GRAPH.sources[best[0]])
        left.remove(best)
    assert rank_components(scores, "edge", "greedy").tolist() == order


def test_greedy_selection_keeps_every_edge_on_a_way_to_the_logits():
    torch.manual_seed(1)
    scores = scores_of({})
    scores.edges[GRAPH.mask] = torch.randn(int(GRAPH.mask.sum()))
    for size in (1, 5, 20):
        edges = select_edges(GRAPH, "edge", rank_components(scores, "edge", "greedy")[:size])
        with_input = edges.clone()
        with_input[0] |= GRAPH.mask[0]  # Every node then hears the input.
        assert (GRAPH.connected(with_input) & edges).sum() == size


def test_a_threshold_keeps_what_is_at_least_as_strong():
    edges = {"input->m0": 0.5, "m0->logits": -0.5, "input->logits": 0.49, "input->m1": 3.0}
    circuit = build_circuit_above(scores_of(edges), "edge", 0.5)
    # The edge into m1 is strong but leads nowhere.
    assert circuit.edge_names == ["input->m0", "m0->logits"]
    heads = build_circuit_above(scores_of({"a1.h0->logits": -1.0, "a0.h1->m0": 0.2}), "head", 0.5)
    assert heads.heads == ["a1.h0"]


@pytest.mark.parametrize("threshold", [-0.1, float("nan")])
def test_a_bad_threshold_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be 0 or more"):
        build_circuit_above(scores_of({}), "edge", threshold)


def test_scores_are_listed_by_component_greatest_first():
    attention = torch.zeros(2, 2, 3, 3)
    attention[1, 0, 2, 1] = -4.0
    scores = scores_of({"input->m0": 0.5, "m1->logits": -2.0, "a0.h1->m1": 1.0}, {"t": attention})
    edges = scores.to_dataframe()
    assert len(edges) == GRAPH.n_edges
    assert list(edges["component"][:3]) == ["m1->logits", "a0.h1->m1", "input->m0"]
    assert list(edges.iloc[0]) == ["m1->logits", "m1", "logits", -2.0]
    heads = scores.to_dataframe("head")
    assert list(heads["component"]) == ["a0.h1", "a0.h0", "a1.h0", "a1.h1"]
    assert list(scores.to_dataframe("mlp")["score"]) == [-2.0, 0.0]
    between = scores.to_dataframe("attention_edge")
    assert len(between) == 2 * 2 * 6  # keys up to the query
    assert list(between.iloc[0]) == ["t", 1, 0, 2, 1, -4.0]
    with pytest.raises(ValueError, match="unknown granularity 'node'"):
        scores.to_dataframe("node")
    assert "<table" in scores._repr_html_()
    assert len(repr(scores)) < 100
