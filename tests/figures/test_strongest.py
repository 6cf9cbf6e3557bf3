import random
from dataclasses import replace
from itertools import combinations

import pytest

from circuits.figures import for_print, strongest_figure
from circuits.figures.export import fits
from circuits.figures.layered import Box, routed, text_width
from circuits.figures.style import COLOURS, COUNTERS, SHARED, SUPPORTS
from circuits.graph import Graph
from circuits.results.circuit import Circuit
from circuits.results.comparison import SIDES
from circuits.results.roles import HeadRole
from tests.browser import CHROMIUM, in_browser
from tests.fake_comparison import EDGES, make_circuit, make_comparison, make_study
from tests.figures.test_figures import with_circuit
from tests.traces import layout, traces

ROLES = ("", "negative_name_mover", "changed_token", "induction")


def role_of(model, head, role, task="ioi"):
    return HeadRole(task, model, head, True, 0.1, 0.1, 0.1, None, 0.1, 0.1, role, "", None)


def random_comparison(graph, n_edges, seed):
    """Circuits of random edges, of which each head has a random role or none."""
    draw = random.Random(seed)
    known = graph.mask.nonzero().tolist()
    comparison = make_comparison(tasks=("ioi",), granularities=("edge",))
    for side in SIDES:
        scores = {graph.edge_name(*e): draw.gauss(0, 1) for e in draw.sample(known, n_edges)}
        circuit = make_circuit(scores, graph=graph)
        comparison = with_circuit(comparison, "ioi", side, "edge", circuit)
    heads = [name for name in graph.sources if name.startswith("a")]
    roles = tuple(role_of(side, head, draw.choice(ROLES)) for side in SIDES for head in heads)
    return replace(comparison, roles=roles)


def labels(figure):
    """Panel and text of each label, with its left, right, foot and top."""
    return [
        (shape.xref, shape.label.text, (shape.x0, shape.x1, shape.y0, shape.y1))
        for shape in layout(figure).shapes
    ]


def names_in(figure, panel="x"):
    return {text.split("</b>")[0][3:] for xref, text, _ in labels(figure) if xref == panel}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    ("graph", "n_edges"),
    [
        (Graph(30, 9), 60),
        (Graph(2, 16), 40),
        (Graph(6, 8), 25),
        (Graph(12, 2), 30),
        (Graph(3, 4, has_mlps=False), 9),
    ],
    ids=str,
)
def test_no_label_covers_another_or_leaves_its_panel(graph, n_edges, stacked):
    figure = strongest_figure(random_comparison(graph, n_edges, n_edges), "ioi", stacked=stacked)
    shown = labels(figure)
    assert len(shown) > 10
    for (panel, _, a), (other, _, b) in combinations(shown, 2):
        apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
        assert panel != other or apart, (a, b)
    axes = {"x": (layout(figure).xaxis, layout(figure).yaxis)}
    axes["x2"] = (layout(figure).xaxis2, layout(figure).yaxis2)
    for panel, _, (left, right, foot, top) in shown:
        across, along = (axis.range for axis in axes[panel])
        assert across[0] <= left + 1e-6 and right <= across[1] + 1e-6
        assert along[0] <= foot + 1e-6 and top <= along[1] + 1e-6


@pytest.mark.parametrize("stacked", [False, True])
def test_the_drawing_keeps_its_size_in_print(stacked):
    """A unit of both axes is a pixel: labels have the room that was measured for them."""
    figure = strongest_figure(random_comparison(Graph(2, 8), 9, 0), "ioi", stacked=stacked)
    for drawn in map(layout, (figure, for_print(figure, "single" if stacked else "double"))):
        margin = drawn.margin
        plot = drawn.width - margin.l - margin.r, drawn.height - margin.t - margin.b
        for axis, pixels in ((drawn.xaxis, plot[0]), (drawn.yaxis, plot[1])):
            low, high = axis.domain
            assert (high - low) * pixels == pytest.approx(axis.range[1], abs=0.5)


def test_the_strongest_edges_alone_are_drawn_and_the_panels_say_of_how_many():
    comparison = random_comparison(Graph(4, 4), 40, 1)
    figure = strongest_figure(comparison, "ioi", n_edges=7)
    assert [one.text for one in layout(figure).annotations] == [
        "dense: the strongest 7 of 40 edges",
        "sparse: the strongest 7 of 40 edges",
    ]
    for side, panel in zip(SIDES, ("x", "x2"), strict=True):
        frame = comparison.discoveries["ioi"][side].circuits["edge"].circuit.to_dataframe()[:7]
        (pointer,) = [t for t in traces(figure) if t.name == "edges" and t.xaxis == panel]
        assert {text.split("  ")[0].replace("&gt;", ">").replace("&lt;", "<")
                for text in pointer.text} == set(frame.component)  # fmt: skip
        ends = {name.split("<")[0] for name in (*frame.source, *frame.destination)}
        assert names_in(figure, panel) == ends | {"input", "logits"}


def test_a_circuit_with_fewer_edges_is_whole():
    figure = strongest_figure(make_comparison(), "ioi")
    assert [one.text for one in layout(figure).annotations] == ["dense: 6 edges", "sparse: 3 edges"]
    assert len([t for t in traces(figure) if t.name == "tip"]) == 9


def test_an_empty_circuit_shows_both_ends_of_the_model():
    nothing = Circuit.from_edges(Graph(2, 2), [])
    comparison = with_circuit(make_comparison(), "ioi", "sparse", "edge", nothing)
    figure = strongest_figure(comparison, "ioi")
    assert layout(figure).annotations[1].text == "sparse: 0 edges"
    assert names_in(figure, "x2") == {"input", "logits"}
    for side in SIDES:
        comparison = with_circuit(comparison, "ioi", side, "edge", nothing)
    assert names_in(strongest_figure(comparison, "ioi", stacked=True)) == {"input", "logits"}


def test_what_supports_ends_in_an_arrow_and_what_counters_in_a_bar():
    figure = strongest_figure(make_comparison(), "ioi")
    own = [trace for trace in traces(figure) if trace.xaxis == "x"]
    lines = [t for t in own if t.mode == "lines" and t.x[0] is not None]
    tips = [t for t in own if t.name == "tip"]
    assert len(lines) == len(tips) == len(EDGES["dense"])
    assert [(line.x[-1], line.y[-1]) for line in lines] == [(t.x[0], t.y[0]) for t in tips]
    looks = [(line.line.color, t.marker.symbol) for line, t in zip(lines, tips, strict=True)]
    assert looks.count((COUNTERS, "line-ew")) == 1
    assert looks.count((SUPPORTS, "triangle-up")) == 5
    # a1.h0->logits, drawn over the others
    assert lines[-1].line.width == 4 == max(line.line.width for line in lines)


def test_colours_say_which_model_has_a_node_and_its_place_is_one():
    figure = strongest_figure(make_comparison(), "ioi")
    colours, middles = {}, {}
    for shape in layout(figure).shapes:
        name = shape.label.text.split("</b>")[0][3:]
        colours[shape.xref, name] = shape.fillcolor
        middles.setdefault(name, set()).add(((shape.x0 + shape.x1) / 2, (shape.y0 + shape.y1) / 2))
    assert colours["x", "a1.h0"] == colours["x2", "a1.h0"] == SHARED
    assert colours["x", "a0.h0"] == COLOURS["dense"]
    assert colours["x2", "a0.h1"] == COLOURS["sparse"]
    assert {len(places) for places in middles.values()} == {1}


def test_hostile_names_are_shown_as_they_are_and_cut():
    hostile = "<img src=x onerror=alert(1)>" * 9
    comparison = make_comparison(tasks=("<b>x</b>",))
    comparison = replace(comparison, roles=(role_of("dense", "a1.h0", hostile, task="<b>x</b>"),))
    figure = strongest_figure(comparison, "<b>x</b>")
    assert layout(figure).title.text.startswith("&lt;b&gt;x&lt;/b&gt;: the strongest edges")
    (text,) = [text for _, text, _ in labels(figure) if "onerror" in text]
    assert text == "<b>a1.h0</b><br>&lt;img src=x onerror=alert(1)&gt;&lt;…"


def test_a_single_column_takes_panels_that_are_stacked():
    comparison = make_comparison()
    assert fits(strongest_figure(comparison, "ioi", stacked=True), "single")
    wide = strongest_figure(comparison, "ioi")
    assert fits(wide, "double")
    assert not fits(wide, "single")
    alone = strongest_figure(make_study(), "ioi")
    assert [one.text for one in layout(alone).annotations] == ["model: 6 edges"]
    with pytest.raises(ValueError, match="too wide for a single column; give column='double'"):
        for_print(alone, "single")
    assert "<b>a1.h0</b><br>name mover" in [text for _, text, _ in labels(alone)]
    tall = strongest_figure(random_comparison(Graph(30, 9), 60, 0), "ioi", stacked=True)
    with pytest.raises(ValueError, match=r"would be \d+\.\d inches high in a single column"):
        for_print(tall, "single")


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="n_edges is 0; give 1 or more"):
        strongest_figure(make_comparison(), "ioi", n_edges=0)
    with pytest.raises(ValueError, match="no circuits of granularity 'edge' for task 'ioi'"):
        strongest_figure(make_comparison(granularities=("head",)), "ioi")


def test_a_line_goes_around_what_stands_between():
    start, end = (100.0, 0.0), (100.0, 300.0)
    between = [Box(100, 100, 90, 40), Box(140, 180, 60, 20)]
    straight = routed(start, end, [], 300)
    assert {round(x, 6) for x, _ in straight} == {100}
    around = routed(start, end, between, 300)
    assert (around[0], around[-1]) == (start, end)
    for x, y in around:
        assert all(abs(x - b.x) > b.width / 2 or abs(y - b.y) > b.height / 2 for b in between)
        assert 0 <= x <= 300


@in_browser[0]
@in_browser[1]
def test_no_text_is_wider_than_the_room_that_it_gets():
    """The referee is a browser that measures the texts in several fonts."""
    from playwright.sync_api import sync_playwright

    names = ["input", "logits", "a29.h11", "m29", "a11.h1"]
    texts = [(name, True) for name in names]
    roles = ["name mover", "negative name mover", "changed token", "induction", "duplicate token"]
    texts += [(role, False) for role in (*roles, "previous token")]
    measure = """([text, isBold, font]) => {
        const context = document.createElement("canvas").getContext("2d");
        context.font = `${isBold ? "bold " : ""}12px ${font}`;
        return context.measureText(text).width;
    }"""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        for font in ("system-ui", "DejaVu Sans", "Times New Roman", "serif"):
            for text, is_bold in texts:
                measured = page.evaluate(measure, [text, is_bold, font])
                assert measured <= text_width(text, bold=is_bold), (font, text)
        browser.close()
