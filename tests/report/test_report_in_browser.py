"""The report in a real browser: opened from disk, its controls used, nothing fetched."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from circuits.graph import Graph
from circuits.report import write_results
from circuits.report.page import figures_of, report_html
from circuits.results.circuit import Circuit
from circuits.results.roles import HeadRole
from tests.browser import in_browser, opened
from tests.fake_comparison import make_comparison, make_found, make_study

pytestmark = in_browser
HOSTILE = ("<script>alert(3)</script>", '"><img src=x>', "\u202eright to left", "&amp;", "\n")
N_EDGES = 9029
"""A circuit of a real model of 30 layers has as many."""
TEXTS = "all => all.map(one => one.textContent)"


def hostile_comparison():
    """Two tasks at all granularities, tokens that try to break out, and roles of some heads."""
    comparison = make_comparison()
    pattern = torch.ones(len(HOSTILE), len(HOSTILE)).tril().tolist()
    examples = {
        task: tuple(
            replace(
                one,
                clean=(*HOSTILE[:-1], last),
                corrupted=HOSTILE,
                patterns={side: [[pattern] * 2] * 2 for side in one.patterns},
            )
            for one, last in zip(several, (HOSTILE[-1], " second"), strict=True)
        )
        for task, several in comparison.examples.items()
    }
    roles = tuple(
        HeadRole("ioi", side, "a1.h0", True, 0, 0, 0, 0.9, 0, 1.0, "name_mover", "a0.h1", 0.5)
        for side in ("dense", "sparse")
    )
    return replace(comparison, examples=examples, roles=roles)


def big_comparison():
    """Circuits of edges, and of heads, as big as those of a real model of 30 layers."""
    graph = Graph(30, 9)
    comparison = make_comparison(tasks=("ioi",), granularities=("edge", "head"))
    generator = torch.Generator().manual_seed(0)
    used = torch.rand(graph.n_sources, generator=generator) < 0.6
    places = (graph.mask & used[:, None]).nonzero()
    sides = {}
    for side, discovery in comparison.discoveries["ioi"].items():
        chosen = places[torch.randperm(len(places), generator=generator)[:N_EDGES]]
        edges = torch.zeros_like(graph.mask)
        edges[chosen[:, 0], chosen[:, 1]] = True
        # Every node that is read has been written by something.
        nodes = edges.any(dim=1)
        for row, name in enumerate(graph.sources[1:], start=1):
            nodes[row] |= bool(edges[:, graph.node_destinations[name]].any())
        scores = torch.randn(graph.mask.shape, generator=generator) ** 5 * edges
        sides[side] = replace(
            discovery,
            circuits={
                name: make_found(Circuit(graph, name, nodes, edges, scores))
                for name in ("edge", "head")
            },
        )
    return replace(comparison, discoveries={"ioi": sides})


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the report stands that most tests share; it is written once."""
    comparison = hostile_comparison()
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report_html(comparison, dict(figures_of(comparison))))
    return path.as_uri()


@pytest.fixture(scope="module")
def shared(browser, address):
    return opened(browser, address)


@pytest.fixture
def page(shared):
    """The shared page as it is when opened."""
    page = shared[0]
    page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    choose(page, "#task=ioi&by=edge")
    return page


def choose(page, words):
    """Sets the page's address, and waits until it has followed."""
    page.evaluate(
        """words => new Promise(done => {
            if (location.hash === words) return done();
            addEventListener("hashchange", done, { once: true });
            location.hash = words;
        })""",
        words,
    )


def captions(page):
    return page.eval_on_selector_all("#graphs figcaption", TEXTS)


def n_drawn(page, where="svg.edges"):
    """How many edges are drawn in each model: one path holds many, each begins with an M."""
    return page.eval_on_selector_all(
        f"#graphs {where}",
        "all => all.map(svg => [...svg.querySelectorAll('path')]"
        ".reduce((sum, path) => sum + path.getAttribute('d').split('M').length - 1, 0))",
    )


def slide(page, step):
    page.eval_on_selector(
        "#count",
        "(one, step) => { one.value = step; one.dispatchEvent(new Event('input')); }",
        step,
    )


def node(page, name, model=0):
    return page.locator("#graphs svg.nodes").nth(model).locator(f'[data-node="{name}"]')


def told_of_buttons(path):
    """What a figure's page gives plotly last: how to show it, its buttons among that."""
    return json.loads(re.findall(r"(\{[^{}]*\})\s*\)\s*\};\s*</script>", path.read_text())[-1])


def test_it_opens_without_error_and_asks_no_network(shared):
    page, said, asked = shared
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len(asked) == 1
    assert page.title() == "Circuits, dense and sparse"


def test_no_figure_offers_to_upload_its_data(browser, page, tmp_path):
    titles = "all => all.map(one => one.dataset.title)"
    page.locator("[data-figure=sizes]").scroll_into_view_if_needed()
    page.wait_for_selector("[data-figure=sizes] .modebar-btn", state="attached")
    shown = page.eval_on_selector_all(".modebar-btn", titles)
    assert any("Download plot" in title for title in shown)
    assert [title for title in shown if "Share" in title or "loud" in title] == []
    write_results(make_comparison(tasks=("ioi",), granularities=("edge",)), tmp_path / "results")
    first, *others = sorted((tmp_path / "results" / "figures").glob("*.html"))
    figure = browser.new_page()
    figure.goto(first.as_uri())
    shown = figure.eval_on_selector_all(".modebar-btn", titles)
    assert any("Download plot" in title for title in shown)
    assert [title for title in shown if "Share" in title or "loud" in title] == []
    figure.close()
    # What else is written tells plotly the same: to open each takes plotly a second or two.
    assert others
    assert {path.name: told_of_buttons(path) for path in others} == {
        path.name: told_of_buttons(first) for path in others
    }


def test_one_control_changes_both_drawings(page):
    assert captions(page) == ["dense: 6 edges, all drawn", "sparse: 3 edges, all drawn"]
    page.select_option("#granularity", "head")
    assert captions(page)[0] == "dense: 2 heads; 6 of 6 edges drawn"
    page.select_option("#task", "greater_than")
    assert page.eval_on_selector("#granularity", "one => one.value") == "head"
    assert page.inner_text("#said") == "greater_than, heads; nothing chosen"


def test_the_slider_draws_the_strongest_and_the_numbers_keep_the_whole_circuit(page):
    assert n_drawn(page) == [6, 3]
    slide(page, 0)
    assert n_drawn(page) == [1, 1]
    assert captions(page) == [
        "dense: 6 edges; 1 of 6 edges drawn",
        "sparse: 3 edges; 1 of 3 edges drawn",
    ]
    assert node(page, "a1.h0").get_attribute("class") == "node shared shaded"
    assert "faint" in node(page, "a0.h0").get_attribute("class")
    assert "6" in page.inner_text(".verdicts .sizes >> nth=0")


def test_what_fewer_halves_have_is_paler(page):
    colours = {
        name: page.evaluate(
            "node => getComputedStyle(node.querySelector('rect')).fill",
            node(page, name).element_handle(),
        )
        for name in ("a0.h0", "m0", "a1.h0")
    }
    assert colours["a0.h0"] == colours["m0"]  # in the dense circuit only, and in all halves
    assert node(page, "a1.h0").get_attribute("style") == "--shade: 81%"
    assert colours["a1.h0"].startswith("color(srgb")  # mixed with the page's colour
    said = node(page, "a1.h0").get_attribute("aria-label")
    assert said.endswith("in 3 of 4 halves of the prompts")
    opacities = page.eval_on_selector_all(
        "svg.edges >> nth=0 >> path",
        "paths => paths.map(path => Number(path.getAttribute('opacity')))",
    )
    # Drawn last, a1.h0->logits is the strongest, but in 3 of 4 halves only.
    assert opacities[-1] == pytest.approx(0.9 * 0.8125, abs=0.01)
    assert max(opacities[:-1]) == 0.8
    assert "the paler, the fewer halves" in page.inner_text("#reading")


def test_a_node_that_is_clicked_lights_up_in_both_models_and_its_edges_are_listed(page):
    node(page, "a1.h0").click()
    assert n_drawn(page, ".lit") == [4, 2]
    assert [node(page, "a1.h0", model).get_attribute("aria-pressed") for model in (0, 1)] == [
        "true"
    ] * 2
    rows = page.locator("#detail section", has_text="Edges in").locator("tbody tr")
    assert [row.split("\t") for row in rows.all_inner_texts()] == [
        ["a0.h1 value", "–", "+1.5"],
        ["a0.h0 query", "+0.5", "–"],
        ["input key", "-0.25", "–"],
        ["m0 value", "+0.1", "–"],
    ]
    assert "name mover" in page.inner_text("#detail .facts")
    assert page.locator("#detail .pattern").count() == 2
    rows.nth(1).locator("button").click()
    assert page.inner_text("#detail h3").startswith("a0.h0")


def test_without_a_choice_all_nodes_are_listed_with_their_roles(page):
    rows = page.locator("#detail tbody tr").all_inner_texts()
    assert rows[0].split("\t") == ["a1.h0", "+2", "+2", "name mover"]
    assert len(rows) == 4


def test_controls_come_within_ten_tabs_and_then_the_nodes(browser, address):
    page, *_ = opened(browser, address)
    reached = []
    for _ in range(10):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.dataset.node")
        )
    assert [name for name in reached if name in ("task", "granularity", "prompt", "node")] == [
        *("task", "granularity", "prompt", "node")
    ]
    assert reached[-4:-2] == ["search", "count"]
    # One stop for each model, on a node that is chosen by coming to it; arrows go on from there.
    assert reached[-2:] == ["input", "input"]
    assert page.inner_text("#detail h3").startswith("input")
    page.keyboard.press("ArrowUp")
    first = page.evaluate("document.activeElement.dataset.node")
    assert first != "input"
    assert page.inner_text("#detail h3").startswith(first)
    page.keyboard.press("Escape")
    assert page.inner_text("#detail h3") == "All nodes"
    page.close()


def test_a_node_is_found_by_its_name(page):
    page.fill("#search", "a0")
    marked = page.eval_on_selector_all("#graphs .marked", "all => all.map(one => one.dataset.node)")
    assert sorted(set(marked)) == ["a0.h0", "a0.h1"]
    page.press("#search", "Enter")
    assert page.inner_text("#detail h3").startswith("a0.h")
    page.fill("#search", "m0")
    assert page.inner_text("#detail h3").startswith("m0")
    page.fill("#search", "nothing")
    assert page.inner_text("#said") == "0 nodes match nothing"
    page.fill("#search", "")


def test_the_address_holds_what_is_chosen(browser, page):
    page.select_option("#task", "greater_than")
    page.select_option("#granularity", "edge")
    page.select_option("#node", "a1.h0")
    page.locator("#legend [data-key=counters]").click()
    slide(page, 0)
    held = page.evaluate("location.href")
    again, said, _ = opened(browser, held)
    assert again.eval_on_selector("#task", "one => one.value") == "greater_than"
    assert again.inner_text("#detail h3").startswith("a1.h0")
    assert again.get_attribute("#legend [data-key=counters]", "aria-pressed") == "false"
    assert n_drawn(again) == [1, 1]
    assert said == []
    again.close()


def test_an_address_that_makes_no_sense_does_no_harm(browser, address):
    words = "#task=<img src=x>&by=constructor&prompt=99&node=__proto__&n=1e9&hide=<b> q"
    page, said, _ = opened(browser, address + words)
    assert said == []
    assert captions(page) == ["dense: 6 edges, all drawn", "sparse: 3 edges, all drawn"]
    assert page.locator("body img").count() == 0
    page.close()


def test_an_entry_of_the_legend_hides_what_it_names(page):
    for key, left in (("counters", [5, 3]), ("q", [4, 3]), ("dense", [1, 3])):
        page.locator(f"#legend [data-key={key}]").click()
        assert n_drawn(page) == left
    assert not node(page, "a0.h0").is_visible()
    page.locator("#legend [data-key=dense]").click()
    assert node(page, "a0.h0").is_visible()
    assert n_drawn(page) == [4, 3]


def test_attention_edges_are_arcs_over_the_tokens_with_the_names_of_heads(page):
    page.select_option("#granularity", "attention_edge")
    assert captions(page) == [
        f"{side}: 1 attention edge on this prompt; mean over prompts 1"
        for side in ("dense", "sparse")
    ]
    assert page.eval_on_selector_all("#graphs .arc-name", TEXTS) == ["a1.h0", "a1.h0"]
    page.locator("#graphs .arc-name").first.click()
    assert page.inner_text("#detail h3").startswith("a1.h0")
    assert page.locator("#graphs .arc.chosen").count() == 2
    tokens = page.eval_on_selector_all("#graphs .token", TEXTS)
    assert tokens[-1] == "\\n"
    page.select_option("#prompt", "1")
    assert page.eval_on_selector_all("#graphs .token", TEXTS)[-1] == "second"
    assert "second" in page.text_content("#detail .patterns")


def test_the_picture_leads_to_its_head_in_the_explorer(page):
    assert page.locator("#picture .pattern").count() == 2
    page.click("#open-picture")
    assert page.inner_text("#detail h3").startswith("a1.h0")


def test_hostile_tokens_are_shown_as_text(page):
    node(page, "a1.h0").click()
    for place in ("#detail .patterns", "#picture", "#prompt"):
        shown = page.text_content(place)
        for token in HOSTILE[1:4]:
            assert token[:8].strip() in shown
    assert page.locator("body img").count() == 0
    assert page.locator("body script", has_text="alert(3)").count() == 0


def test_tables_are_sorted_by_keyboard_and_their_columns_explained(page):
    table = page.locator("figure.table table").first
    head = table.locator("th button", has_text="dense").first
    column = head.evaluate("one => one.parentElement.cellIndex")
    values = (
        "table => [...table.tBodies[0].rows].map(row => parseFloat(row.cells[COLUMN].textContent))"
    ).replace("COLUMN", str(column))
    head.focus()
    assert page.inner_text("#tip") == "Size of the dense model's circuit, in components."
    page.keyboard.press("Enter")
    rising = table.evaluate(values)
    assert rising == sorted(rising)
    page.keyboard.press("Enter")
    assert table.evaluate(values) == sorted(rising, reverse=True)
    assert table.locator("th[aria-sort=descending]").count() == 1


def test_tables_and_drawings_can_be_downloaded(page, tmp_path):
    with page.expect_download() as download:
        page.locator("[data-csv=summary]").click()
    assert download.value.suggested_filename == "summary.csv"
    download.value.save_as(tmp_path / "summary.csv")
    assert (tmp_path / "summary.csv").read_text() == hostile_comparison().summary_table().to_csv(
        index=False
    )
    with page.expect_download() as download:
        page.locator("#save").click()
    download.value.save_as(tmp_path / "circuits.svg")
    drawing = (tmp_path / "circuits.svg").read_text()
    assert drawing.count("a1.h0</text>") == 2
    assert "stroke: rgb(" in drawing
    figure = page.locator("[data-figure=density]")
    figure.scroll_into_view_if_needed()
    with page.expect_download() as download:
        figure.locator("button", has_text="Download as SVG").click()
    assert download.value.suggested_filename == "density.svg"


@pytest.mark.parametrize("width", [420, 1024, 1440])
def test_it_fits_the_screen(browser, address, width):
    page, *_ = opened(browser, address, viewport={"width": width, "height": 900})
    for granularity in ("edge", "attention_edge"):
        page.select_option("#granularity", granularity)
        page.select_option("#node", "a1.h0")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_dark_pages_have_dark_figures_and_paper_has_dark_ink(browser, address):
    page, said, _ = opened(browser, address, color_scheme="dark")
    figure = page.locator("[data-figure=sizes]")
    figure.scroll_into_view_if_needed()
    page.wait_for_selector("[data-figure=sizes] .xtick text")

    def ink():
        return figure.locator(".xtick text").first.evaluate("one => getComputedStyle(one).fill")

    assert ink() == "rgb(220, 220, 220)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 26)"
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_selector("[data-figure='greater_than.faithfulness'] .xtick text")
    assert ink() == "rgb(34, 34, 34)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".controls").is_visible()
    assert page.locator("#legend").is_visible()
    assert figure.locator("g.legend").is_visible()
    assert said == []
    page.close()


def test_big_circuits_stay_quick_to_change(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report_html(big_comparison(), {}))
    assert path.stat().st_size < 8e6
    page, said, _ = opened(browser, path.as_uri())
    assert "dense: 9,029 edges; 60 of 9,029 edges drawn" in captions(page)
    # The median of several, as seen from inside the page; a machine under load is given room.
    times = page.evaluate(
        """() => {
            const set = (id, value, kind) => {
                const control = document.getElementById(id);
                control.value = value;
                control.dispatchEvent(new Event(kind));
                document.getElementById("graphs").getBoundingClientRect();
            };
            const { options } = document.getElementById("node");
            const names = [...options].slice(1).map((one) => one.value);
            const median = (act) => {
                const times = [...Array(5).keys()].map((turn) => {
                    const started = performance.now();
                    act(turn);
                    return performance.now() - started;
                });
                return times.sort((one, other) => one - other)[2];
            };
            return {
                slider: median((turn) => set("count", 50 + turn, "input")),
                whole: median((turn) => set("count", 100 - turn, "input")),
                node: median((turn) => set("node", names[turn], "change")),
                search: median((turn) => set("search", `a1${turn}`, "input")),
                kind: median((turn) => set("granularity", turn % 2 ? "edge" : "head", "change")),
            };
        }"""
    )
    assert max(times.values()) < 1000, times
    slide(page, 100)
    assert n_drawn(page) == [9029, 9029]
    assert said == []
    page.close()


def test_one_model_has_the_whole_width_and_nothing_beside_it(browser, tmp_path):
    study = make_study(tasks=("ioi",))
    hostile = hostile_comparison().examples["ioi"]
    examples = tuple(replace(one, patterns={"model": one.patterns["dense"]}) for one in hostile)
    study = replace(study, examples={"ioi": examples})
    path = tmp_path / "report.html"
    path.write_text(report_html(study, dict(figures_of(study))))
    page, said, asked = opened(browser, path.as_uri(), viewport={"width": 1440, "height": 900})
    page.wait_for_selector(".figure[data-figure='sizes'] .main-svg")
    assert (said, asked) == ([], [path.as_uri()])
    assert page.locator("#graphs figure").count() == 1
    assert page.locator("#picture svg .pattern.model").count() == 1
    drawn, room = (page.locator(one).first.bounding_box() for one in ("#graphs svg", "#graphs"))
    assert drawn["width"] > 0.95 * room["width"]
    assert page.locator("#legend button").evaluate_all(TEXTS)[:2] == ["supports", "counters"]
    page.click("#graphs [data-node='a1.h0']")
    assert page.locator("#detail tbody tr").evaluate_all(TEXTS)[:3] == [
        *("in the circuityes", "score+2", "rolename mover"),
    ]
    heads = page.locator("#detail table:not(.facts) thead tr").evaluate_all(TEXTS)
    assert heads == ["fromscore", "toscore"]
    page.select_option("#granularity", "attention_edge")
    assert page.locator("#graphs figcaption").evaluate_all(TEXTS) == [
        "1 attention edge on this prompt; mean over prompts 1"
    ]
    page.set_viewport_size({"width": 420, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    assert (said, asked) == ([], [path.as_uri()])
