from dataclasses import replace

import pandas as pd
import pytest

from circuits.results.notebook import MAX_ROWS, table_html
from tests.fake_comparison import EDGES, make_circuit, make_comparison

SCRIPT = "<script>alert(1)</script>"


def test_a_table_escapes_caption_columns_and_cells():
    shown = table_html(SCRIPT, pd.DataFrame({SCRIPT: [SCRIPT], "b": [0.123456]}))
    assert "<script>" not in shown
    assert shown.count("&lt;script&gt;") == 3
    assert "0.1235" in shown


@pytest.mark.parametrize("n_rows", [MAX_ROWS, MAX_ROWS + 3], ids=["all", "some"])
def test_a_long_table_says_how_much_is_left_out(n_rows):
    shown = table_html("long", pd.DataFrame({"row": [f"row {i}" for i in range(n_rows)]}))
    assert shown.count("row ") == MAX_ROWS
    assert ("and 3 more" in shown) == (n_rows > MAX_ROWS)


def test_a_circuit_of_edges_lists_them_by_absolute_score():
    frame = make_circuit(EDGES["dense"]).to_dataframe()
    assert dict(zip(frame["component"], frame["score"], strict=True)) == pytest.approx(
        EDGES["dense"]
    )
    assert frame["score"].abs().is_monotonic_decreasing
    last = frame[frame["component"] == "input->a1.h0<k>"].iloc[0]
    assert (last["source"], last["destination"]) == ("input", "a1.h0<k>")


def test_a_circuit_of_heads_scores_each_by_the_sum_of_its_edges():
    frame = make_circuit(EDGES["dense"], "head").to_dataframe()
    # a0.h0 has edges of 0.5 and 0.75, a1.h0 one of 2.
    assert frame.to_dict("list") == {
        "component": ["a1.h0", "a0.h0"],
        "layer": [1, 0],
        "score": [2.0, 1.25],
    }


def test_a_circuit_of_attention_edges_has_a_row_for_each_template_and_edge():
    frame = make_circuit(EDGES["dense"], "attention_edge").to_dataframe()
    assert frame.iloc[0].tolist() == ["template", 1, 0, 4, 2, 0.5]


def test_an_empty_circuit_has_a_table_without_rows():
    frame = make_circuit({}).to_dataframe()
    assert list(frame.columns) == ["component", "source", "destination", "score"]
    assert len(frame) == 0


def test_a_circuit_shows_itself_with_its_size_and_faithfulness():
    circuit = make_circuit(EDGES["dense"])
    shown = replace(circuit, provenance={"faithfulness": 0.91234})._repr_html_()
    assert "circuit of edges, size 6; 2 layers of 2 heads; faithfulness 0.912" in shown
    assert "a0.h0-&gt;m0" in shown


def test_a_discovery_has_one_row_for_each_granularity():
    discovery = make_comparison().discoveries["ioi"]["dense"]
    frame = discovery.to_dataframe()
    assert frame["granularity"].tolist() == ["head", "mlp", "edge", "attention_edge"]
    edge = frame.set_index("granularity").loc["edge"]
    words = {"interval": "halves of ranking and sizing prompts", "measured_on": "reporting"}
    assert edge[list(words)].to_dict() == words
    assert edge["minimal"] is None
    assert edge.drop([*words, "minimal"]).to_dict() == pytest.approx(
        {
            "size": 6,
            "size_low": 5,
            "size_high": 8,
            "prefix": 6,
            "prefix_low": 5,
            "prefix_high": 8,
            "components": 40,
            "faithfulness": 0.92,
            "faithfulness_low": 0.85,
            "faithfulness_high": 0.97,
            "prompts": 20,
            "rest": 0.1,
            "random_same_size": 0.0,
        }
    )


def test_a_discovery_shows_its_task_escaped():
    discovery = replace(make_comparison().discoveries["ioi"]["dense"], task=SCRIPT)
    shown = discovery._repr_html_()
    assert "<script>" not in shown
    assert "logit_diff 4.000 (ablated -1.000), accuracy 99 % on 20 reporting prompts" in shown


def test_a_comparison_shows_both_tables_escaped():
    shown = make_comparison(tasks=(SCRIPT,))._repr_html_()
    assert "<script>" not in shown
    assert shown.count("<table") == 2
    assert "ratio_low" in shown and "accuracy" in shown
