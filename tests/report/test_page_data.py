"""What the report's page holds: verdicts, the picture, the explorer's data, tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from circuits.pages import as_script_data
from circuits.report.columns import COLUMNS
from circuits.report.explorer import explorer_data, largest_share
from circuits.report.opening import pictured_head, verdicts
from circuits.report.tables import page_table, roles_by_head, tables_of
from circuits.results.circuit import AttentionEdge
from circuits.results.roles import HeadRole
from tests.fake_comparison import EDGES, make_circuit, make_comparison, make_found


def one_task(*granularities):
    return make_comparison(tasks=("ioi",), granularities=granularities or ("edge",))


def with_circuits(comparison, granularity, circuits):
    """The comparison of one task with other circuits, by model."""
    sides = {
        side: replace(
            discovery, circuits=discovery.circuits | {granularity: make_found(circuits[side])}
        )
        for side, discovery in comparison.discoveries["ioi"].items()
    }
    return replace(comparison, discoveries={"ioi": sides})


def edges_of(data):
    """The edges of a graph of the explorer by name, in its order."""
    return {
        f"{data['nodes'][src]}->{data['nodes'][dest]}" + (f"<{read}>" if read != "-" else ""): score
        for src, dest, read, score in zip(
            data["src"], data["dest"], data["read"], data["score"], strict=True
        )
    }


@pytest.mark.parametrize("side", ["dense", "sparse"])
def test_the_explorer_holds_every_edge_of_the_circuit_the_strongest_first(side):
    data = explorer_data(one_task())["tasks"]["ioi"]["circuits"]["edge"][side]
    assert edges_of(data) == pytest.approx(EDGES[side])
    assert data["size"] == data["n_edges"] == len(EDGES[side])
    sizes = [abs(score) for score in data["score"]]
    assert sizes == sorted(sizes, reverse=True)
    totals = dict(zip(data["nodes"], data["totals"], strict=True))
    for name, total in totals.items():
        own = [score for edge, score in EDGES[side].items() if edge.startswith(f"{name}->")]
        assert total == pytest.approx(sum(own))


def test_the_explorer_says_in_how_many_halves_each_node_and_edge_is():
    circuits = explorer_data(one_task("edge", "head"))["tasks"]["ioi"]["circuits"]
    data = circuits["edge"]["dense"]
    assert data["halves"] == 4
    in_halves = dict(zip(edges_of(data), data["edges_in"], strict=True))
    assert in_halves == {name: 3 if name == "a1.h0->logits" else 4 for name in EDGES["dense"]}
    nodes = dict(zip(data["nodes"], data["nodes_in"], strict=True))
    assert nodes == {"input": 4, "a0.h0": 4, "m0": 4, "a1.h0": 3, "logits": 4}
    assert "edges_in" not in circuits["head"]["dense"]  # its edges were not chosen
    comparison = one_task()
    found = comparison.discoveries["ioi"]["dense"].circuits
    found["edge"] = replace(found["edge"], stability=None)
    unknown = explorer_data(comparison)["tasks"]["ioi"]["circuits"]["edge"]["dense"]
    assert not {"halves", "nodes_in", "edges_in"} & set(unknown)


def test_with_too_many_edges_the_weakest_go_and_the_count_stays():
    data = explorer_data(one_task(), most_edges=5)["tasks"]["ioi"]["circuits"]["edge"]
    assert [len(data[side]["score"]) for side in ("dense", "sparse")] == [2, 2]
    assert edges_of(data["dense"]) == {"a1.h0->logits": 2.0, "input->a0.h0<v>": 1.0}
    assert [data[side]["n_edges"] for side in ("dense", "sparse")] == [6, 3]


@pytest.mark.parametrize("sizes", [[], [5], [3, 3, 3], [1, 10, 100], [7, 0, 2, 9, 9]])
def test_the_largest_share_is_the_greatest_that_fits(sizes):
    def taken(share):
        return sum(min(size, share) for size in sizes)

    for whole in range(sum(sizes) + 3):
        share = largest_share(sizes, whole)
        assert taken(share) <= whole
        assert share >= max(sizes, default=0) or taken(share + 1) > whole


def test_attention_edges_are_those_of_each_prompts_template():
    edges = [AttentionEdge(0, 1, 3, 1, 0.25), AttentionEdge(1, 0, 4, 2, -0.5)]
    circuit = replace(
        make_circuit({}, "attention_edge"),
        attention_edges={"template": edges, "another": [AttentionEdge(1, 1, 2, 2, 9.0)]},
    )
    comparison = one_task("attention_edge")
    comparison = with_circuits(
        comparison,
        "attention_edge",
        {"dense": circuit, "sparse": make_circuit({}, "attention_edge")},
    )
    data = explorer_data(comparison)["tasks"]["ioi"]["circuits"]["attention_edge"]["dense"]
    assert data["prompts"] == [[["a1.h0", 4, 2, -0.5], ["a0.h1", 3, 1, 0.25]]] * 2
    assert data["size"] == 1.5


def test_without_prompts_attention_edges_are_shown_as_nodes():
    comparison = replace(one_task("attention_edge"), examples={})
    task = explorer_data(comparison)["tasks"]["ioi"]
    assert set(edges_of(task["circuits"]["attention_edge"]["sparse"])) == set(EDGES["sparse"])
    assert task["examples"] == []
    assert explorer_data(comparison)["picture"] is None


def test_roles_stand_with_their_heads():
    role = HeadRole(
        "ioi", "sparse", "a1.h0", True, 0.1, 0, 0, 0.9, 0, 2.0, "name_mover", "a0.h1", 0.5
    )
    data = explorer_data(replace(one_task(), roles=(role,)))["tasks"]["ioi"]["roles"]
    assert data == {"dense": {}, "sparse": {"a1.h0": ["name_mover", "a0.h1", 0.5]}}


def test_nothing_in_the_data_can_end_its_script():
    text = as_script_data({"a": "</script><!--&\u2028\u2029", "b": [0.5, None]})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": "</script><!--&\u2028\u2029", "b": [0.5, None]}


def test_a_verdict_is_a_sentence_and_a_ratio_for_each_kind_of_component():
    first, second = verdicts(make_comparison(granularities=("head", "edge")))
    assert (first.task, second.task) == ("ioi", "greater_than")
    assert first.sentence == (
        "90 % of the behaviour takes 6 edges in the dense model and 3 in the sparse one "
        "(ratio 2.0, 95 % interval 1.1 to 3.6)."
    )
    edges, heads = first.ratios
    assert (edges.unit, edges.dense, edges.sparse, edges.clear) == ("edges", "6", "3", "fewer")
    assert (heads.unit, heads.at, heads.clear) == ("heads", 50, "")
    # The axis is logarithmic about 1: equal factors are equal lengths.
    assert edges.at is not None and edges.low is not None and edges.high is not None
    assert edges.low < edges.at < edges.high
    row = one_task().summary_table().iloc[0]
    for place, value in ((edges.low, row["ratio_low"]), (edges.high, row["ratio_high"])):
        expected = math.log(value) / math.log(2)
        assert (place - 50) / (edges.at - 50) == pytest.approx(expected, abs=1e-3)


def test_a_ratio_without_bounds_stands_at_the_end_of_its_axis():
    (verdict,) = verdicts(one_task("mlp"))
    (ratio,) = verdict.ratios
    assert (ratio.dense, ratio.sparse, ratio.at) == ("1", "0", 100)


def test_a_task_that_was_not_compared_has_a_sentence_alone():
    refused = {"pronoun": {"sparse": "too few right answers"}}
    *_, last = verdicts(replace(one_task(), refused=refused))
    assert last.task == "pronoun"
    assert last.sentence == "not compared. sparse model: too few right answers"
    assert last.ratios == ()


def test_the_head_that_changed_most_is_found():
    comparison = one_task("edge")
    (example, other) = comparison.examples["ioi"]
    dense = [[[list(row) for row in head] for head in layer] for layer in example.patterns["dense"]]
    # a1.h0 alone is in both circuits: it wins, though a0.h1 changed as much.
    changed = pictured_head(comparison)
    assert changed is not None
    assert (changed.task, changed.head) == ("ioi", "a1.h0")
    # Worked by hand: dense query i gives 1/(i+1) to each of i+1 tokens, sparse 1 to itself.
    assert changed.change == pytest.approx(sum(i / (i + 1) for i in range(5)) / 5)
    assert changed.seen == {"dense": 3.0, "sparse": 1.0}
    assert changed.visible == 3.0
    # The same pattern in both models: nothing changed.
    same = replace(example, patterns={"dense": dense, "sparse": dense})
    unchanged = pictured_head(replace(comparison, examples={"ioi": (same, other)}))
    assert unchanged is not None and unchanged.change == 0


def test_a_table_shows_intervals_in_their_cells_and_says_once_what_is_the_same():
    frame = pd.DataFrame(
        {
            "task": ["ioi", "ioi"],
            "size": [3.0, 4.5],
            "size_low": [2.0, math.nan],
            "size_high": [5.0, math.nan],
            "templates_low": [0.5, math.nan],
            "templates_high": [1.5, math.nan],
            "target": [0.9, 0.9],
            "granularity": ["edge", "attention_edge"],
        }
    )
    table = page_table(frame)
    assert [head.text for head in table.heads] == ["task", "size", "templates", "granularity"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["ioi", "3 [2, 5]", "[0.5, 1.5]", "edges"],
        ["ioi", "4.5", "-", "attention edges"],
    ]
    assert [row[1].value for row in table.rows] == [3.0, 4.5]
    assert table.same == [("target", "90 %")]
    assert [head.is_text for head in table.heads] == [True, False, False, True]
    assert table.csv == frame.to_csv(index=False)


def test_every_column_of_every_table_says_what_it_means():
    comparison = replace(make_comparison(), twins=("sparse",))
    frames = [*tables_of(comparison).values()]
    named = {str(name).removesuffix("_low").removesuffix("_high") for f in frames for name in f}
    missing = named - set(COLUMNS) - {"note"}
    assert missing == set()


def test_roles_are_listed_by_head():
    def role(model, head, name, in_circuit=True):
        return HeadRole("ioi", model, head, in_circuit, 0, 0, 0, 0, 0, 0, name, "a0.h0", 0)

    roles = (
        role("dense", "a0.h0", ""),
        role("dense", "a0.h1", "induction"),
        role("sparse", "a0.h1", "induction"),
        role("sparse", "a1.h1", "induction"),
        role("sparse", "a1.h0", "name_mover", in_circuit=False),
    )
    assert roles_by_head(replace(one_task(), roles=roles)).to_dict("records") == [
        {
            "task": "ioi",
            "role": "induction",
            "dense_heads": "a0.h1",
            "sparse_heads": "a0.h1, a1.h1",
        },
        {"task": "ioi", "role": "none of these", "dense_heads": "a0.h0", "sparse_heads": ""},
    ]
