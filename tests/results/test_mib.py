"""The areas of a curve, and the benchmark's file read field by field as its format says.

The format is that of EAP-IG's `Graph.from_json`: it looks up every node and edge of the file by
name in a graph that it makes from `cfg`, and takes `in_graph` and `score` as they are.
"""

import json
import math

import pytest
import torch

from circuits.graph import Graph
from circuits.results.circuit import Circuit
from circuits.results.mib import areas, submission, why_not_handed_in, write_submission

SIZES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]


@pytest.mark.parametrize("log_scale", [False, True])
def test_areas_are_trapezoids_between_the_ten_sizes(log_scale):
    torch.manual_seed(0)
    curves = torch.randn(3, 10).double() + 1  # under 0 and over 1 too
    cpr, cmd = areas(curves, log_scale=log_scale)
    for row, curve in enumerate(curves.tolist()):
        under = apart = 0.0
        for i in range(9):
            x1, x2 = (math.log(x) if log_scale else x for x in SIZES[i : i + 2])
            under += (x2 - x1) * (curve[i] + curve[i + 1]) / 2
            apart += (x2 - x1) * (abs(1 - curve[i]) + abs(1 - curve[i + 1])) / 2
        assert (float(cpr[row]), float(cmd[row])) == pytest.approx((under, apart))


def test_a_perfect_curve_starts_at_the_smallest_size():
    cpr, cmd = areas(torch.ones(10))
    assert (float(cpr), float(cmd)) == pytest.approx((0.999, 0))
    with pytest.raises(ValueError, match="faithfulness at 9 sizes"):
        areas(torch.ones(9))


def names_of(cfg):
    """Nodes and edges of EAP-IG's graph, from the `cfg` of a file alone."""
    nodes, edges, stream = ["input"], [], ["input"]
    for layer in range(cfg["n_layers"]):
        heads = [f"a{layer}.h{head}" for head in range(cfg["n_heads"])]
        mlp = f"m{layer}"
        edges += [f"{src}->{head}<{read}>" for src in stream for head in heads for read in "qkv"]
        seen = stream if cfg["parallel_attn_mlp"] else [*stream, *heads]
        edges += [f"{src}->{mlp}" for src in seen]
        stream = [*stream, *heads, mlp]
        nodes += [*heads, mlp]
    return [*nodes, "logits"], [*edges, *(f"{src}->logits" for src in stream)]


@pytest.mark.parametrize("level", ["edge", "node"])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_submission_is_read_field_by_field(tmp_path, level, parallel):
    graph = Graph(2, 3, parallel_attn_mlp=parallel, d_model=12)
    torch.manual_seed(0)
    edges = torch.randn(graph.mask.shape) * graph.mask
    nodes = torch.randn(graph.n_sources) if level == "node" else None
    path = write_submission(tmp_path, "arc_easy", "gpt2-small", submission(graph, edges, nodes))
    assert path == tmp_path / "arc-easy_gpt2" / "importances.json"

    def no_constant(name):
        raise AssertionError(f"{name} is no JSON")

    content = json.loads(path.read_text(), parse_constant=no_constant)
    assert content.keys() == {"cfg", "nodes", "edges"}
    cfg = content["cfg"]
    assert cfg == {"n_layers": 2, "n_heads": 3, "parallel_attn_mlp": parallel, "d_model": 12}
    assert type(cfg["parallel_attn_mlp"]) is bool
    node_names, edge_names = names_of(cfg)
    assert sorted(content["nodes"]) == sorted(node_names)
    assert sorted(content["edges"]) == sorted(edge_names)
    for name, node in content["nodes"].items():
        assert type(node["in_graph"]) is bool
        has_score = level == "node" and name != "logits"
        assert node.keys() == ({"in_graph", "score"} if has_score else {"in_graph"})
        if nodes is not None and has_score:
            assert node["score"] == pytest.approx(float(nodes[graph.sources.index(name)]))
    for name, edge in content["edges"].items():
        assert edge.keys() == {"in_graph", "score"}
        assert type(edge["in_graph"]) is bool
        assert type(edge["score"]) is float
        assert edge["score"] == pytest.approx(float(edges[graph.edge_index(name)]))
    loaded = Circuit.load(path)  # our own reader takes it for a circuit of no edge
    assert torch.equal(loaded.scores, edges)
    assert loaded.size == 0


def test_models_without_a_name_in_the_benchmark_keep_theirs(tmp_path):
    content = submission(Graph(1, 1, d_model=4), torch.zeros(3, 5))
    for model, folder in (
        ("Qwen/Qwen2.5-0.5B", "ioi_qwen2.5"),
        ("runs/my_model", "ioi_my-model"),
        ("sparse", "ioi_sparse"),
    ):
        assert write_submission(tmp_path, "ioi", model, content).parent.name == folder


def test_what_the_benchmark_cannot_read_is_not_handed_in():
    assert why_not_handed_in(Graph(1, 1, d_model=4)) is None
    for graph, why in (
        (Graph(1, 1, has_mlps=False, d_model=4), "an MLP in every layer"),
        (Graph(1, 1), "does not know"),
    ):
        with pytest.raises(ValueError, match=why):
            submission(graph, torch.zeros(graph.mask.shape))
    scores = torch.zeros(3, 5)
    scores[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        submission(Graph(1, 1, d_model=4), scores)
