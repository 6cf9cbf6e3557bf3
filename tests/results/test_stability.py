import dataclasses
import json
import random

import pytest
import torch

from circuits.graph import Graph
from circuits.results.circuit import Circuit
from circuits.results.comparison_file import load_comparison, save_comparison
from circuits.results.stability import Stability, chance_jaccard
from tests.fake_comparison import make_comparison

GRAPH = Graph(2, 2)


def shared(circuits):
    """The mean Jaccard index of sets of names, pair after pair."""
    found = []
    for i in range(len(circuits)):
        for j in range(i):
            both = [name for name in circuits[i] if name in circuits[j]]
            either = [*circuits[i], *(name for name in circuits[j] if name not in circuits[i])]
            found.append(len(both) / len(either) if either else 1)
    return sum(found) / len(found)


@pytest.mark.parametrize("kind", ["edge", "head"])
def test_shares_are_counts_over_halves_and_survive_a_file(kind):
    names = [GRAPH.edge_name(*place) for place in GRAPH.mask.nonzero().tolist()]
    heads = [GRAPH.sources[row] for row in GRAPH.nodes_of_kind("head")]
    pick = random.Random(3)
    known = names if kind == "edge" else heads
    chosen = [pick.sample(known, size) for size in (0, 1, 3, 4, 2)]
    make = Circuit.from_edges if kind == "edge" else Circuit.from_heads
    circuits = [make(GRAPH, some) for some in chosen]
    members = chosen if kind == "edge" else [one.heads for one in circuits]
    stability = Stability.of(circuits)
    assert stability is not None
    assert stability.jaccard == pytest.approx(shared(members))
    again = Stability.from_json(json.loads(json.dumps(dataclasses.asdict(stability))))
    assert again == stability
    of_nodes = again.node_shares(circuits[0])
    for row, name in enumerate(GRAPH.sources):
        expected = sum(bool(one.nodes[row]) for one in circuits) / 5
        assert of_nodes[row] == pytest.approx(expected), name
    of_edges = again.edge_shares(circuits[0])
    if kind == "head":
        assert of_edges is None
    else:
        assert of_edges is not None
        for name in names:
            expected = sum(name in some for some in chosen) / 5
            assert of_edges[GRAPH.edge_index(name)] == pytest.approx(expected)
    for share, least in ((1.0, 5), (0.5, 3), (0.2, 1)):
        counted = [sum(name in some for some in members) for name in known]
        assert again.n_in(kind, circuits[0], share) == sum(n >= least for n in counted)


def test_there_is_none_of_one_circuit_and_of_attention_edges():
    one = Circuit.from_heads(GRAPH, ["a0.h0"])
    assert Stability.of([one]) is None
    of_prompts = dataclasses.replace(one, granularity="attention_edge")
    assert Stability.of([of_prompts, of_prompts]) is None


def test_chance_is_that_of_random_sets():
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(2000):
        draws = [set(torch.randperm(200, generator=generator)[:n].tolist()) for n in (40, 60)]
        found.append(len(draws[0] & draws[1]) / len(draws[0] | draws[1]))
    assert chance_jaccard((40, 60), 200) == pytest.approx(sum(found) / len(found), abs=0.004)
    assert chance_jaccard((0, 0), 10) == 1
    assert chance_jaccard((5, 5, 5), 5) == 1


def test_the_table_has_a_row_for_each_circuit_but_those_of_prompts(tmp_path):
    comparison = make_comparison(tasks=("ioi",))
    table = comparison.stability_table()
    rows = table.set_index(["granularity", "model"])
    assert set(rows.index) == {(g, m) for g in ("head", "mlp", "edge") for m in ("dense", "sparse")}
    edges = rows.loc["edge", "dense"]
    assert (edges.halves, edges.in_all, edges.in_half, edges.in_any) == (4, 5, 6, 6)
    assert edges.jaccard == pytest.approx((3 + 3 * 5 / 6) / 6)
    save_comparison(comparison, tmp_path / "new.json")
    assert load_comparison(tmp_path / "new.json").stability_table().equals(table)


def test_a_file_of_before_it_was_kept_is_read_without_it(tmp_path):
    path = tmp_path / "old.json"
    save_comparison(make_comparison(tasks=("ioi",)), path)
    content = json.loads(path.read_text()) | {"format": 4}
    for discovery in content["discoveries"]["ioi"].values():
        for found in discovery["found"].values():
            del found["stability"]
    path.write_text(json.dumps(content))
    old = load_comparison(path)
    assert old.stability_table().empty
    assert old.summary_table().equals(make_comparison(tasks=("ioi",)).summary_table())
