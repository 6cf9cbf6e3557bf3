import math
from dataclasses import replace

import plotly.io as pio
import pytest
import torch

from circuits.figures import (
    COLOURS,
    arcs_figure,
    attention_figure,
    circuit_figure,
    density_figure,
    faithfulness_figure,
    head_density_figure,
    sizes_figure,
)
from circuits.figures.diagram import MAX_EDGES
from circuits.figures.style import COUNTERS, SHARED, SUPPORTS
from circuits.graph import Graph
from circuits.results.circuit import AttentionEdge, Circuit
from circuits.results.comparison import SIDES
from circuits.results.stability import Stability
from tests.fake_comparison import GRAPH, TOKENS, make_circuit, make_comparison, make_found
from tests.traces import layout, traces

FIGURES = {
    "density": density_figure,
    "density per head": head_density_figure,
    "arcs": lambda comparison: arcs_figure(comparison, "ioi"),
    "sizes": sizes_figure,
    "faithfulness": lambda comparison: faithfulness_figure(comparison, "ioi"),
    "circuit": lambda comparison: circuit_figure(comparison, "ioi"),
    "attention": lambda comparison: attention_figure(comparison, "ioi"),
}


def texts(figure):
    return [annotation.text for annotation in layout(figure).annotations]


def with_circuit(comparison, task, side, granularity, circuit):
    """The comparison with one circuit, and the evidence for it, replaced."""
    discovery = comparison.discoveries[task][side]
    changed = replace(discovery, circuits=discovery.circuits | {granularity: make_found(circuit)})
    sides = comparison.discoveries[task] | {side: changed}
    return replace(comparison, discoveries=comparison.discoveries | {task: sides})


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_drawing_leaves_plotlys_defaults_alone(draw):
    before = pio.templates.default
    figure = draw(make_comparison())
    assert pio.templates.default == before
    assert layout(figure).title.text
    assert layout(figure).paper_bgcolor is None
    assert layout(figure).template.layout.paper_bgcolor == "white"


def test_dense_and_sparse_have_the_same_two_colours_in_every_figure():
    comparison = make_comparison()
    for side in SIDES:
        (bar,) = traces(density_figure(comparison), name=side)
        assert bar.marker.color == COLOURS[side]
        assert {t.marker.color for t in traces(sizes_figure(comparison), name=side)} == {
            COLOURS[side]
        }
        lines = traces(faithfulness_figure(comparison, "ioi"), name=side)
        assert {line.line.color for line in lines} == {COLOURS[side]}


def test_density_is_in_percent_and_a_closed_layer_says_0():
    figure = density_figure(make_comparison())
    (sparse,) = traces(figure, name="sparse")
    assert sparse.y[0] == pytest.approx(1.2)
    assert list(sparse.customdata) == pytest.approx([1.2, 0.0])
    assert list(sparse.text) == ["1.2", "0"]
    assert sparse.y[1] == 10 ** layout(figure).yaxis.range[0]  # at the foot: no height
    assert layout(figure).yaxis.type == "log"
    assert layout(figure).yaxis.title.text == "open attention edges (%)"
    assert "T = 128" in layout(figure).title.text
    assert "dense 100 %, sparse 0.6 %" in layout(figure).title.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "95 % interval 5 to 8"),
        ({"redrawn_sizes": (6.0,) * 4}, "the same on all halves"),
        (
            {
                "size_low": math.nan,
                "size_high": math.nan,
                "interval": "none: 6 prompts are too few",
            },
            "no interval (6 prompts are too few)",
        ),
    ],
    ids=["interval", "one size", "too few"],
)
def test_a_size_says_what_its_interval_is(changes, words):
    comparison = make_comparison(tasks=("ioi",), granularities=("edge",))
    found = comparison.discoveries["ioi"]["dense"].circuits
    found["edge"] = replace(found["edge"], **changes)
    (bars,) = traces(sizes_figure(comparison), type="bar", name="dense")
    assert list(bars.customdata[0]) == ["6", "40", words]


def test_sizes_stand_side_by_side_with_their_intervals_and_ratios():
    figure = sizes_figure(make_comparison(granularities=("edge",)))
    assert layout(figure).barmode == "group"
    dense, sparse = (traces(figure, name=side)[0] for side in SIDES)
    assert (list(dense.x), list(dense.y), list(sparse.y)) == (["edges"], [6], [3])
    # The resampled sizes run from one below the size to two above.
    assert (dense.error_y.array[0], dense.error_y.arrayminus[0]) == (2, 1)
    # Shared resamples: 5/2, 6/3, 6/3 and 8/5.
    ratios = [text for text in texts(figure) if "×" in text]
    assert ratios == ["<b>2.0×</b><br>[1.1, 3.6]"] * 2


def test_sizes_have_a_log_axis_only_where_they_span_more_than_tenfold():
    comparison = make_comparison(granularities=("edge",))
    assert layout(sizes_figure(comparison)).yaxis.type is None
    graph = Graph(3, 4)
    names = [graph.edge_name(*edge) for edge in graph.mask.nonzero().tolist()]
    circuit = make_circuit(dict.fromkeys(names, 1.0), graph=graph)
    assert circuit.size > 30
    larger = with_circuit(comparison, "ioi", "dense", "edge", circuit)
    assert layout(sizes_figure(larger)).yaxis.type == "log"


def test_an_empty_sparse_circuit_is_a_ratio_without_end():
    figure = sizes_figure(make_comparison(granularities=("mlp",)))
    assert any(text.startswith("<b>∞×</b>") for text in texts(figure))


def test_faithfulness_is_drawn_against_size_plus_1_with_band_target_and_random_circuits():
    figure = faithfulness_figure(make_comparison(granularities=("edge",)), "ioi")
    (curve,) = traces(figure, name="dense")
    assert list(curve.x) == [1, 7, 41]
    assert list(curve.y) == [0, 0.92, 1]
    (band,) = traces(figure, name="dense, 95 % interval")
    assert list(band.x) == [1, 7, 41, 41, 7, 1]
    assert list(band.y) == [0, 0.97, 1, 1, 0.85, 0]
    assert band.mode == "lines"  # plotly would mark the corners of a short band
    (chosen,) = traces(figure, name="dense, the circuit")
    assert (list(chosen.x), list(chosen.y)) == ([7], [0.92])
    (crosses,) = traces(figure, name="dense, random of that size")
    assert (list(crosses.x), list(crosses.y)) == ([7, 7, 7], [0, 0.1, -0.1])
    assert [shape.y0 for shape in layout(figure).shapes] == [0.9]
    assert layout(figure).shapes[0].line.dash == "dash"
    assert layout(figure).xaxis.title.text == "edges + 1"
    assert layout(figure).xaxis.type == "log"
    assert layout(figure).yaxis.title.text == "faithfulness"


def test_faithfulness_has_a_panel_for_each_granularity():
    figure = faithfulness_figure(make_comparison(), "ioi")
    assert texts(figure) == ["heads", "MLPs", "edges", "attention edges"]
    assert len(traces(figure, name="dense")) == 4
    assert sum(trace.showlegend is not False for trace in traces(figure, name="dense")) == 1


def test_both_circuits_have_each_node_at_the_same_place():
    dense, sparse = traces(circuit_figure(make_comparison(), "ioi"), name="nodes")
    assert (dense.x, dense.y) == (sparse.x, sparse.y)
    assert (dense.xaxis, sparse.xaxis) == ("x", "x2")
    height = dict(zip([text.split()[0] for text in dense.customdata], dense.y, strict=True))
    assert height["input"] < height["a0.h0"] < height["m0"] < height["a1.h0"] < height["logits"]


def test_nodes_in_both_circuits_differ_in_colour_from_those_in_one():
    dense, sparse = traces(circuit_figure(make_comparison(), "ioi"), name="nodes")

    def colours(nodes):
        names = [text.split()[0] for text in nodes.customdata]
        return dict(zip(names, nodes.marker.color, strict=True))

    assert colours(dense)["a1.h0"] == colours(sparse)["a1.h0"] == SHARED
    assert colours(dense)["a0.h0"] == COLOURS["dense"]
    assert colours(sparse)["a0.h1"] == COLOURS["sparse"]
    assert colours(sparse)["a0.h0"] not in (SHARED, *COLOURS.values())


def test_edges_show_sign_as_colour_strength_as_width_and_the_read_as_dash():
    figure = circuit_figure(make_comparison(), "ioi")
    lines = [
        trace.line
        for trace in traces(figure)
        if trace.mode == "lines" and trace.xaxis == "x" and trace.showlegend is False
    ]
    assert {line.color for line in lines} == {SUPPORTS, COUNTERS}
    (countering,) = (line for line in lines if line.color == COUNTERS)
    assert countering.dash == "dot"  # input->a1.h0<k>
    assert [line.width for line in lines if line.dash == "dash"] == [3]  # 1 + 3 sqrt(0.5 / 2)
    assert max(line.width for line in lines) == 4


def test_an_edge_tells_its_name_and_score_and_in_how_many_halves_it_is():
    dense, sparse = traces(circuit_figure(make_comparison(), "ioi"), name="edges")
    assert "a0.h0-&gt;a1.h0&lt;q&gt;  +0.5<br>in 4 of 4 halves" in dense.text
    assert "input-&gt;a1.h0&lt;k&gt;  -0.25<br>in 4 of 4 halves" in dense.text
    assert "a1.h0-&gt;logits  +2<br>in 3 of 4 halves" in dense.text
    assert len(sparse.text) == len(sparse.x) == 3


def test_what_few_halves_have_is_pale():
    comparison = make_comparison()
    found = comparison.discoveries["ioi"]["dense"].circuits
    few = make_circuit({"input->a0.h0<v>": 1.0})
    found["edge"] = replace(
        found["edge"], stability=Stability.of([found["edge"].circuit, few, few, few])
    )
    figure = circuit_figure(comparison, "ioi")
    nodes, _ = traces(figure, name="nodes")
    names = [text.split()[0] for text in nodes.customdata]
    opacity = dict(zip(names, nodes.marker.opacity, strict=True))
    assert opacity["input"] == opacity["logits"] == 1
    assert opacity["m0"] == pytest.approx(0.25 + 0.75 / 4)
    assert opacity["a1.h1"] == 1  # in neither circuit, which its colour says
    hover = dict(zip(names, nodes.customdata, strict=True))
    assert hover["m0"].endswith("<br>in 1 of 4 halves")
    lines = [
        t for t in traces(figure) if t.mode == "lines" and t.xaxis == "x" and t.x[0] is not None
    ]
    of_width = {(line.line.width, round(line.opacity / (0.3 + 0.15 * line.line.width), 2))
                for line in lines}  # fmt: skip
    assert {shade for _, shade in of_width} == {1.0, 0.44}
    assert "pale: in few halves of prompts" in [trace.name for trace in traces(figure)]
    unknown = {name: replace(one, stability=None) for name, one in found.items()}
    sides = comparison.discoveries["ioi"]
    sides |= {side: replace(one, circuits=unknown) for side, one in sides.items()}
    plain = circuit_figure(comparison, "ioi")
    assert "pale: in few halves of prompts" not in [trace.name for trace in traces(plain)]
    assert not any("halves" in text for text in traces(plain, name="edges")[0].text)


def test_a_large_circuit_is_cut_and_says_so():
    graph = Graph(4, 4)
    names = [graph.edge_name(*edge) for edge in graph.mask.nonzero().tolist()]
    assert len(names) > MAX_EDGES
    circuit = make_circuit({name: float(i + 1) for i, name in enumerate(names)}, graph=graph)
    comparison = with_circuit(make_comparison(), "ioi", "dense", "edge", circuit)
    figure = circuit_figure(comparison, "ioi")
    dense, _ = traces(figure, name="edges")
    assert len(dense.text) == MAX_EDGES
    assert f"400 strongest of {len(names)} edges drawn" in texts(figure)


def test_an_empty_circuit_can_be_drawn():
    nothing = Circuit(
        graph=GRAPH,
        granularity="edge",
        nodes=torch.tensor([True] + [False] * (GRAPH.n_sources - 1)),
        edges=torch.zeros_like(GRAPH.mask),
        scores=torch.zeros(GRAPH.mask.shape),
    )
    figure = circuit_figure(
        with_circuit(make_comparison(), "ioi", "sparse", "edge", nothing), "ioi"
    )
    assert "sparse: 0 edges" in texts(figure)


def test_a_granularity_that_was_not_looked_for_is_refused():
    with pytest.raises(ValueError, match="granularity 'edge' for task 'ioi'; it holds head, mlp"):
        circuit_figure(make_comparison(granularities=("head", "mlp")), "ioi")


def test_attention_shows_the_heads_of_either_circuit_strongest_first():
    figure = attention_figure(make_comparison(), "ioi")
    # Dense: a1.h0 2.0, a0.h0 1.25 of 2.0; sparse: a1.h0 2.0, a0.h1 1.5 of 2.0.
    assert [trace.name for trace in traces(figure)] == [
        "dense a1.h0", "dense a0.h1", "dense a0.h0",
        "sparse a1.h0", "sparse a0.h1", "sparse a0.h0",
    ]  # fmt: skip
    dense, sparse = traces(figure)[0], traces(figure)[3]
    assert dense.z[1][0] == 0.5
    assert sparse.z[1][0] == 0
    assert list(dense.x) == list(dense.y)
    assert len(dense.x) == len(TOKENS)


def test_attention_shows_at_most_8_heads_in_rows_of_4():
    graph = Graph(3, 4)
    heads = [name for name in graph.sources if name.startswith("a")]
    circuit = make_circuit({f"{name}->logits": 1.0 for name in heads}, "head", graph)
    comparison = make_comparison()
    for side in SIDES:
        comparison = with_circuit(comparison, "ioi", side, "head", circuit)
    example = comparison.examples["ioi"][0]
    patterns = {side: [[example.patterns[side][0][0]] * 4] * 3 for side in SIDES}
    examples = {"ioi": (replace(example, patterns=patterns),)}
    figure = attention_figure(replace(comparison, examples=examples), "ioi")
    assert len(traces(figure)) == 16
    assert [trace.name[:6].strip() for trace in traces(figure)[:8]] == ["dense"] * 4 + [
        "sparse"
    ] * 4


def test_tokens_are_shown_as_they_are():
    tokens = traces(attention_figure(make_comparison(), "ioi"))[0].x
    assert tokens[0] == "0 &lt;|endoftext|&gt;"
    assert tokens[2] == "2 &lt;script&gt;alert(1)&lt;/script&gt;"
    assert tokens[3] == '3 "quoted"'
    assert tokens[4] == "4 \\n"


def test_long_tokens_are_cut_at_the_axis_only():
    axis = layout(attention_figure(make_comparison(), "ioi")).xaxis
    assert axis.ticktext[0] == "0 &lt;|endoftext|&gt;"
    assert axis.ticktext[2] == "2 &lt;script&gt;alert(…"
    assert axis.tickvals[2] == "2 &lt;script&gt;alert(1)&lt;/script&gt;"


def test_a_tasks_name_is_escaped_in_titles():
    comparison = make_comparison(tasks=("<b>x</b>",))
    for figure in (
        faithfulness_figure(comparison, "<b>x</b>"),
        circuit_figure(comparison, "<b>x</b>"),
        attention_figure(comparison, "<b>x</b>"),
    ):
        assert layout(figure).title.text.startswith("&lt;b&gt;x&lt;/b&gt;")
    assert "&lt;b&gt;x&lt;/b&gt;" in texts(sizes_figure(comparison))


def test_arcs_join_query_and_key_above_for_dense_and_below_for_sparse():
    figure = arcs_figure(make_comparison(), "ioi")
    for side, sign in zip(SIDES, (1, -1), strict=True):
        (lines,) = [
            t for t in traces(figure) if t.line.color == COLOURS[side] and t.x[0] is not None
        ]
        assert (min(lines.x[:-1]), max(lines.x[:-1])) == (2, 4)
        assert all(sign * y > 0 for y in lines.y[:-1])
        (pointer,) = traces(figure, name=f"{side} edges")
        assert list(pointer.text) == ["a1.h0  \\n → &lt;script&gt;alert(…  +0.5"]
    assert "&lt;|endoftext|&gt;" in texts(figure)
    assert "dense: 1 attention edge; sparse: 1 attention edge" in layout(figure).title.text


def test_arcs_of_one_pair_of_tokens_lie_over_each_other_and_many_are_cut():
    comparison = make_comparison()
    edges = [AttentionEdge(0, 0, 3, 1, 1.0)] * 150 + [AttentionEdge(1, 1, 2, 2, -0.5)] * 60
    circuit = replace(make_circuit({}, "attention_edge"), attention_edges={"template": edges})
    figure = arcs_figure(
        with_circuit(comparison, "ioi", "sparse", "attention_edge", circuit), "ioi"
    )
    supporting, countering = traces(figure, name="sparse edges")
    heights = (*supporting.y, *countering.y)
    assert len(heights) == 200
    assert {*supporting.x, *countering.x} == {2}
    assert len(set(heights)) > 150
    assert "sparse: 210 attention edges, the 200 strongest drawn" in layout(figure).title.text
    dotted = [t for t in traces(figure) if t.line.dash == "dot" and t.x and t.x[0] is not None]
    assert len(dotted) == 1


def test_an_entry_of_the_legend_hides_what_it_names_or_cannot_be_clicked():
    edges = [AttentionEdge(0, 0, 3, 1, 1.0), AttentionEdge(1, 1, 2, 2, -0.5)]
    circuit = replace(make_circuit({}, "attention_edge"), attention_edges={"template": edges})
    figure = arcs_figure(
        with_circuit(make_comparison(), "ioi", "sparse", "attention_edge", circuit), "ioi"
    )
    for word, dash in (("supports", "solid"), ("counters", "dot")):
        (entry,) = traces(figure, name=f"sparse, {word}")
        group = [t for t in traces(figure) if t.legendgroup == entry.legendgroup and t is not entry]
        assert [t.mode for t in group if t.x[0] is not None] == ["lines", "markers"]
        assert [t.line.dash for t in group if t.mode == "lines"] == [dash]
    legend = layout(circuit_figure(make_comparison(), "ioi")).legend
    assert (legend.itemclick, legend.itemdoubleclick) == (False, False)


def test_arcs_need_attention_edges():
    with pytest.raises(ValueError, match="compare with --granularity attention_edge"):
        arcs_figure(make_comparison(granularities=("edge",)), "ioi")


def test_density_per_head_is_in_percent_and_a_closed_head_is_white():
    figure = head_density_figure(make_comparison())
    (heat,) = traces(figure)
    assert [list(row) for row in heat.text] == [["2", "0.4"], ["0", "0"]]
    assert heat.z[1][0] == heat.zmin < heat.z[0][1] < heat.z[0][0] < heat.zmax
    with pytest.raises(ValueError, match="no model 'other'; it has dense, sparse"):
        head_density_figure(make_comparison(), "other")


def test_no_arc_is_cut_off_however_many_there_are():
    edges = [AttentionEdge(0, head, 4, 0, 1.0) for head in range(150)]
    circuit = replace(make_circuit({}, "attention_edge"), attention_edges={"template": edges})
    comparison = with_circuit(make_comparison(), "ioi", "dense", "attention_edge", circuit)
    figure = arcs_figure(comparison, "ioi")
    low, high = layout(figure).yaxis.range
    heights = [y for trace in traces(figure) for y in trace.y if y is not None]
    assert low < min(heights) and max(heights) < high
