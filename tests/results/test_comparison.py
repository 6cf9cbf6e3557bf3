import json
import math
from dataclasses import replace

import pytest

from circuits.graph import Graph
from circuits.results.comparison_file import load_comparison, save_comparison
from circuits.results.shape import circuit_shape
from tests.fake_comparison import make_circuit, make_comparison, make_found, pruned


def test_a_saved_comparison_is_loaded_as_it_was(tmp_path):
    comparison = make_comparison()
    save_comparison(comparison, tmp_path / "a.json")
    again = load_comparison(tmp_path / "a.json")
    save_comparison(again, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (again.models, again.run) == (comparison.models, comparison.run)
    assert again.examples == comparison.examples


def test_a_loaded_comparison_has_the_same_tables(tmp_path):
    comparison = make_comparison()
    save_comparison(comparison, tmp_path / "a.json")
    again = load_comparison(tmp_path / "a.json")
    for table in (
        "models_table",
        "summary_table",
        "evidence_table",
        "overlap_table",
        "structure_table",
    ):
        assert getattr(again, table)().equals(getattr(comparison, table)()), table


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"models": {"dense": {}}}', '{"models": 3}'], ids=repr
)
def test_a_file_that_is_no_comparison_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a saved comparison"):
        load_comparison(path)


def test_a_comparison_without_its_run_is_refused(tmp_path):
    path = tmp_path / "a.json"
    save_comparison(make_comparison(), path)
    content = json.loads(path.read_text())
    del content["run"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not a saved comparison"):
        load_comparison(path)


@pytest.mark.parametrize("format_", [None, 3, 7])
def test_a_comparison_of_another_version_is_refused_in_words(tmp_path, format_):
    path = tmp_path / "a.json"
    save_comparison(make_comparison(), path)
    content = json.loads(path.read_text()) | {"format": format_}
    if format_ is None:  # As before formats were numbered.
        del content["format"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a.json was saved in format \d by another version of"):
        load_comparison(path)


def test_evidence_says_of_circuits_of_edges_what_their_edges_end_in():
    table = make_comparison(tasks=("ioi",), granularities=("head", "edge")).evidence_table()
    rows = table.set_index(["granularity", "model"]).filter(like="edges_")
    assert rows.columns.tolist() == [f"edges_{kind}" for kind in ("q", "k", "v", "mlp", "logits")]
    assert rows.loc[("edge", "dense")].tolist() == [1, 1, 2, 1, 1]
    assert rows.loc[("edge", "sparse")].tolist() == [0, 0, 2, 0, 1]
    assert rows.loc["head"].isna().all(axis=None)


def test_sizes_that_all_halves_have_are_said_to_be_so():
    comparison = make_comparison(tasks=("ioi",), granularities=("edge",))
    assert comparison.summary_table()["note"].tolist() == [""]
    for discovery in comparison.discoveries["ioi"].values():
        one = discovery.circuits["edge"]
        discovery.circuits["edge"] = replace(one, redrawn_sizes=(one.size,) * 5)
    assert comparison.summary_table()["note"].tolist() == ["all halves have these sizes"]
    assert comparison.evidence_table()["note"].tolist() == ["all halves have this size"] * 2


def test_too_few_prompts_have_neither_an_interval_nor_a_p_value():
    comparison = make_comparison(tasks=("ioi",), granularities=("edge",))
    for discovery in comparison.discoveries["ioi"].values():
        few = {"redrawn_sizes": (), "interval": "none: 6 prompts are too few"}
        discovery.circuits["edge"] = replace(discovery.circuits["edge"], **few)
    row = comparison.summary_table().iloc[0]
    assert row["ratio"] == 2
    assert row["interval"] == "none: 6 prompts are too few"
    assert row[["ratio_low", "ratio_high", "p"]].isna().all()


def test_what_has_no_interval_can_be_saved_and_is_loaded_without_one(tmp_path):
    comparison = make_comparison(tasks=("ioi",), granularities=("edge",))
    none = {"size_low": math.nan, "faithfulness_high": math.nan, "curve_low": (math.nan,) * 3}
    for discovery in comparison.discoveries["ioi"].values():
        discovery.circuits["edge"] = replace(discovery.circuits["edge"], **none)
    path = tmp_path / "a.json"
    save_comparison(comparison, path)
    one = load_comparison(path).discoveries["ioi"]["dense"].circuits["edge"]
    assert math.isnan(one.size_low)
    assert math.isnan(one.faithfulness_high)
    assert all(map(math.isnan, one.curve_low))
    assert one.size_high == comparison.discoveries["ioi"]["dense"].circuits["edge"].size_high


def test_the_columns_of_the_summary_are_promised():
    assert ",".join(make_comparison().summary_table().columns) == (
        "task,granularity,dense,sparse,ratio,ratio_low,ratio_high,p,interval,note,templates_low,"
        "templates_high,faithfulness_dense,faithfulness_dense_low,faithfulness_dense_high,"
        "faithfulness_sparse,faithfulness_sparse_low,faithfulness_sparse_high,target,measured_on,"
        "prompts,pruned,minimal,prefix_dense,prefix_sparse,prefix_ratio,prefix_ratio_low,"
        "prefix_ratio_high,attribution_dense,attribution_sparse,attribution_ratio"
    )


def test_pruned_sizes_and_those_before_have_a_ratio_with_an_interval_each():
    before = make_comparison(tasks=("ioi",), granularities=("edge",))
    (plain,) = before.summary_table().to_dict("records")
    (row,) = pruned(before, lambda size: size // 2).summary_table().to_dict("records")
    assert (row["dense"], row["sparse"], row["ratio"]) == (3, 1, 3)
    assert row["ratio_low"] < 3 < row["ratio_high"]
    assert row["p"] < 0.05
    assert (row["pruned"], row["minimal"]) == (True, True)
    names = ("ratio", "ratio_low", "ratio_high")
    assert [row[f"prefix_{name}"] for name in names] == [plain[name] for name in names]
    assert (row["prefix_dense"], row["prefix_sparse"]) == (6, 3)
    assert (plain["pruned"], plain["minimal"]) == (False, None)


def test_the_count_by_attribution_stands_beside_the_size():
    comparison = make_comparison(tasks=("ioi",), granularities=("edge",))
    (row,) = comparison.summary_table().to_dict("records")
    assert (row["attribution_dense"], row["attribution_sparse"]) == (9, 6)
    assert row["attribution_ratio"] == 1.5


def test_the_columns_of_the_models_table_are_promised():
    assert ",".join(make_comparison().models_table().columns) == (
        "model,task,metric,accuracy,ce,density,context,tokenizer"
    )


def test_the_summary_has_a_row_for_each_task_and_granularity():
    table = make_comparison(tasks=("ioi", "sums"), granularities=("head", "edge")).summary_table()
    assert list(zip(table["task"], table["granularity"], strict=True)) == [
        ("ioi", "head"),
        ("ioi", "edge"),
        ("sums", "head"),
        ("sums", "edge"),
    ]


def test_the_ratio_is_dense_over_sparse():
    table = make_comparison(tasks=("ioi",)).summary_table().set_index("granularity")
    assert table.loc["edge", ["dense", "sparse", "ratio"]].tolist() == [6, 3, 2]


def test_the_models_table_has_a_row_for_each_model_and_task():
    table = make_comparison().models_table()
    assert list(zip(table["model"], table["task"], strict=True)) == [
        ("dense", "ioi"),
        ("sparse", "ioi"),
        ("dense", "greater_than"),
        ("sparse", "greater_than"),
    ]


def test_the_overlap_counts_what_both_circuits_have():
    table = make_comparison(tasks=("ioi",)).overlap_table().set_index("granularity")
    # Of 6 and 3 edges only a1.h0->logits is in both.
    assert table.loc["edge"].tolist()[1:] == [1, 5, 2, 1 / 8]


def test_attention_edges_of_two_tokenizers_have_no_overlap() -> None:
    comparison = make_comparison(tasks=("ioi",))
    assert "attention_edge" in [*comparison.overlap_table()["granularity"]]
    comparison.models["sparse"] = replace(comparison.models["sparse"], tokenizer="another")
    assert {*comparison.overlap_table()["granularity"]} == {"head", "mlp", "edge"}


def test_the_overlap_of_two_empty_circuits_is_undefined():
    comparison = make_comparison(tasks=("ioi",), granularities=("edge",))
    found = comparison.discoveries["ioi"]
    for side, discovery in found.items():
        found[side] = replace(
            discovery, circuits={"edge": make_found(make_circuit({}), (0.0, 0.0))}
        )
    assert math.isnan(comparison.overlap_table()["jaccard"].iloc[0])


def test_models_without_a_circuit_of_edges_have_no_structure():
    assert make_comparison(granularities=("head",)).structure_table().empty


def test_the_paths_of_a_circuit_are_counted_by_hand():
    # Into a1.h0: directly by k, by a0.h0's q, and by a0.h0, then m0, then v.
    circuit = make_comparison().discoveries["ioi"]["dense"].circuits["edge"].circuit
    assert circuit_shape(circuit)["paths"] == 3


def test_reads_of_one_head_are_paths_of_their_own():
    names = ["input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "a0.h0->logits"]
    assert circuit_shape(make_circuit(dict.fromkeys(names, 1.0)))["paths"] == 3


def test_the_depth_is_the_number_of_edges_on_the_longest_path():
    # input -> a0.h0 -> m0 -> a1.h0 -> logits
    circuit = make_comparison().discoveries["ioi"]["dense"].circuits["edge"].circuit
    assert circuit_shape(circuit)["depth"] == 4


def test_degrees_are_means_over_heads_and_mlps():
    # a0.h0: 1 in, 2 out; m0: 1 in, 1 out; a1.h0: 3 in, 1 out.
    shape = circuit_shape(make_comparison().discoveries["ioi"]["dense"].circuits["edge"].circuit)
    assert shape["mean_in_degree"] == pytest.approx(5 / 3)
    assert shape["mean_out_degree"] == pytest.approx(4 / 3)


def test_an_empty_circuit_has_no_paths_and_no_depth():
    shape = circuit_shape(make_circuit({}))
    assert shape == {
        "nodes": 0,
        "edges": 0,
        "paths": 0,
        "depth": 0,
        "mean_in_degree": 0,
        "mean_out_degree": 0,
    }


def test_paths_of_a_whole_graph_multiply_with_each_layer():
    # One head a layer, no MLPs: a node with n ways in passes 3 n on to each later head.
    graph = Graph(2, 1, has_mlps=False)
    names = [graph.edge_name(src, dest) for src, dest in graph.mask.nonzero().tolist()]
    # input: 1; a0.h0: 3; a1.h0: 3 * (1 + 3) = 12; logits: 1 + 3 + 12.
    assert circuit_shape(make_circuit(dict.fromkeys(names, 1.0), graph=graph))["paths"] == 16
