"""Figures for print. Drawing needs a browser; where there is none, only the layout is tested."""

from __future__ import annotations

import re
import shutil
import sys
from typing import Any
from xml.etree import ElementTree

import plotly.graph_objects as go
import pytest

from circuits.cli import main
from circuits.figures import (
    PRINT_WIDTHS,
    arcs_figure,
    circuit_figure,
    density_figure,
    for_print,
    save_figure,
    sizes_figure,
)
from circuits.figures.export import fits, one_browser
from circuits.results.comparison_file import save_comparison
from tests.fake_comparison import make_comparison
from tests.traces import layout

BROWSERS = ("google-chrome", "chrome", "chromium", "chromium-browser")
browser = pytest.mark.skipif(
    not any(shutil.which(name) for name in BROWSERS), reason="no Chrome or Chromium"
)


def test_a_figure_for_print_has_the_width_of_its_column_and_no_title():
    figure = density_figure(make_comparison())
    single, double = (for_print(figure, column) for column in ("single", "double"))
    assert layout(single).width < layout(double).width
    assert layout(single).title.text is None
    assert layout(single).height < layout(figure).height
    assert layout(figure).title.text  # the one given stays as it was


def test_text_of_12_pixels_is_7_points_high_and_less_is_refused():
    def with_text_of(size):
        return go.Figure(go.Scatter(x=[0], y=[0], text=["a"], textfont={"size": size}))

    for column in PRINT_WIDTHS:
        assert fits(with_text_of(12), column)
        assert not fits(with_text_of(11.8), column)


def test_panels_side_by_side_do_not_fit_a_single_column():
    figure = circuit_figure(make_comparison(), "ioi")
    assert fits(figure, "double")
    assert not fits(figure, "single")
    with pytest.raises(ValueError, match="too narrow for 2 panels; give column='double'"):
        for_print(figure, "single")


def test_text_that_would_not_be_legible_is_refused():
    figure = go.Figure(go.Scatter(x=[0], y=[0], text=["tiny"], textfont={"size": 6}))
    with pytest.raises(ValueError, match=r"smallest text would be 3\.\d points"):
        for_print(figure)


def test_an_unknown_column_or_format_is_refused(tmp_path):
    figure = density_figure(make_comparison())
    with pytest.raises(ValueError, match="unknown column 'triple'; choose one of single, double"):
        for_print(figure, "triple")
    with pytest.raises(ValueError, match=r"figure.jpg has no known format; end it with .pdf"):
        save_figure(figure, tmp_path / "figure.jpg")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save_figure(figure, tmp_path / "nowhere" / "figure.pdf")


def test_without_kaleido_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(RuntimeError, match=r"pip install 'sparse-circuits\[print\]'"):
        save_figure(density_figure(make_comparison()), tmp_path / "figure.pdf")


def test_without_a_browser_the_message_says_what_to_install(tmp_path, monkeypatch):
    def no_chrome(*_args, **_kwargs):
        raise RuntimeError("Kaleido requires Google Chrome to be installed.\nMore.")

    monkeypatch.setattr(go.Figure, "to_image", no_chrome)
    with pytest.raises(RuntimeError, match="Chrome to be installed.*; .* run plotly_get_chrome"):
        save_figure(density_figure(make_comparison()), tmp_path / "figure.pdf")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@browser
def test_files_are_as_wide_as_their_column(tmp_path):
    comparison = make_comparison()
    with one_browser():
        for column, inches in PRINT_WIDTHS.items():
            paths = [tmp_path / f"arcs.{column}.{suffix}" for suffix in ("pdf", "svg", "png")]
            for path in paths:
                save_figure(arcs_figure(comparison, "ioi"), path, column)
            pdf, svg, png = (path.read_bytes() for path in paths)
            (box,) = re.findall(rb"/MediaBox \[0 0 ([\d.]+) [\d.]+\]", pdf)  # one page
            assert float(box) / 72 == pytest.approx(inches, abs=0.02)
            assert ElementTree.fromstring(svg).get("width") == f"{inches:.4f}in"
            assert int.from_bytes(png[16:20], "big") == pytest.approx(300 * inches, abs=2)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        *(".pdf", ".pdf", ".png", ".png", ".svg", ".svg")
    ]


@pytest.mark.slow
@browser
def test_a_saved_svg_shows_hostile_tokens_as_text(tmp_path):
    save_figure(arcs_figure(make_comparison(), "ioi"), tmp_path / "arcs.svg")
    tree = ElementTree.fromstring((tmp_path / "arcs.svg").read_bytes())
    texts = {"".join(one.itertext()) for one in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert "<script>alert(…" in texts
    assert not list(tree.iter("{http://www.w3.org/2000/svg}script"))


@pytest.mark.slow
@browser
def test_the_command_writes_every_figure_of_a_comparison(tmp_path, capsys):
    save_comparison(make_comparison(tasks=["ioi"]), tmp_path / "comparison.json")
    out = tmp_path / "figures"
    assert main(["figures", str(tmp_path), "--out", str(out), "--format", "svg"]) == 0
    assert "ioi.arcs.svg  (3.35 in)" in capsys.readouterr().out
    names = ("density", "density_per_head", "sizes")
    names += tuple(
        f"ioi.{name}" for name in ("arcs", "attention", "circuits", "faithfulness", "strongest")
    )
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{name}.svg" for name in names)


@pytest.mark.slow
@browser
def test_the_command_writes_the_figures_that_are_named_in_the_font_that_is_given(tmp_path):
    save_comparison(make_comparison(tasks=["ioi"]), tmp_path / "comparison.json")
    out = tmp_path / "figures"
    wanted = ["--only", "sizes", "--only", "*.arcs", "--font", "Times New Roman"]
    assert main(["figures", str(tmp_path), "--out", str(out), "--format", "svg", *wanted]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["ioi.arcs.svg", "sizes.svg"]
    for path in out.iterdir():
        text = path.read_text()
        assert "Times New Roman" in text
        assert "system-ui" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "jpg"], "unknown format 'jpg'; choose one of pdf, svg, png"),
        (
            ["--only", "nothing"],
            "--only nothing names no figure; there is density, density_per_head",
        ),
        (["--column", "triple"], "unknown column 'triple'; choose one of single, double"),
        ([], "make one with `circuits compare`"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, tmp_path, capsys):
    out = tmp_path / "figures"
    if "--only" in arguments:
        save_comparison(make_comparison(tasks=["ioi"]), tmp_path / "comparison.json")
    assert main(["figures", str(tmp_path), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_more_than_two_behaviours_make_rows_of_panels():
    figure = sizes_figure(make_comparison(tasks=["ioi", "greater_than", "induction"]))
    axes: list[Any] = [*figure.select_xaxes(), *figure.select_yaxes()]
    domains = {kind: {axis.domain for axis in axes if axis.plotly_name[0] == kind} for kind in "xy"}
    assert domains["x"] == {(0, 0.485), (0.515, 1)}
    assert len(domains["y"]) == 2
