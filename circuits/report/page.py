"""The report: a comparison as one HTML page, an instrument first and then its evidence.

`report.html.j2` is the page. It holds its style (that of all pages, and page.css), its scripts,
plotly and all data, and needs no network. Whatever comes from data is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from circuits.figures import (
    arcs_figure,
    attention_figure,
    circuit_figure,
    density_figure,
    faithfulness_figure,
    head_density_figure,
    sizes_figure,
    strongest_figure,
)
from circuits.figures.export import fits
from circuits.figures.strongest import N_NARROW
from circuits.figures.style import PAGE_CONFIG
from circuits.pages import as_packed_script, as_script_data, read_text_of, rendered
from circuits.report.explorer import explorer_data
from circuits.report.opening import pictured_head, verdicts
from circuits.report.tables import page_table, roles_by_head, run_table, tables_of
from circuits.report.words import warnings_of
from circuits.results.comparison import Comparison

SCRIPTS = ("draw.js", "graph.js", "arcs.js", "detail.js", "explorer.js", "evidence.js")
"""The page's scripts, in the order in which they need each other."""


def figures_of(comparison: Comparison, *, narrow: bool = False) -> Iterator[tuple[str, go.Figure]]:
    """Yields all figures with their names.

    Args:
        comparison: The comparison.
        narrow: Whether panels stand one above the other in a figure that has a form for a single
            column, and is short enough in it.
    """
    # A dense model alone leaves every edge open: there is nothing to see.
    if comparison.is_pair or comparison.models[comparison.sides[0]].density < 1:
        yield "density", density_figure(comparison)
        yield "density_per_head", head_density_figure(comparison)
    yield "sizes", sizes_figure(comparison)
    for task, found in comparison.discoveries.items():
        yield f"{task}.faithfulness", faithfulness_figure(comparison, task)
        known = found[comparison.sides[0]].circuits
        granularity = "edge" if "edge" in known else next(iter(known))
        yield f"{task}.circuits", circuit_figure(comparison, task, granularity)
        yield f"{task}.strongest", _strongest(comparison, task, granularity, narrow=narrow)
        if task in comparison.examples:
            yield f"{task}.attention", attention_figure(comparison, task)
            if "attention_edge" in known:
                yield f"{task}.arcs", arcs_figure(comparison, task)


def _strongest(comparison: Comparison, task: str, granularity: str, *, narrow: bool) -> go.Figure:
    if narrow:
        figure = strongest_figure(comparison, task, granularity, n_edges=N_NARROW, stacked=True)
        if fits(figure, "single"):
            return figure
    return strongest_figure(comparison, task, granularity)


def report_html(comparison: Comparison, figures: dict[str, go.Figure]) -> str:
    """Returns the whole report as one HTML page that needs no network.

    Args:
        comparison: The comparison.
        figures: Those of `figures_of`, by name; the page shows the ones that it has a place for.
    """
    frames = tables_of(comparison)
    frames["roles_by_head"] = roles_by_head(comparison)
    frames["run"] = run_table(comparison)
    tables = {name: page_table(frame) for name, frame in frames.items()}
    # What stands in the explorer is not shown a second time; its figures are in their own files.
    shown = {"density", "density_per_head", "sizes"}
    shown |= {f"{task}.faithfulness" for task in comparison.discoveries}
    shown &= set(figures)
    return rendered(
        "circuits.report",
        "report.html.j2",
        models=comparison.models,
        sides=comparison.sides,
        is_pair=comparison.is_pair,
        verdicts=verdicts(comparison),
        pictured=pictured_head(comparison),
        examples={task: several[0] for task, several in comparison.examples.items() if several},
        warnings=warnings_of(comparison),
        tables=tables,
        figures=shown,
        tasks=list(comparison.discoveries),
        explorer_data=as_script_data(explorer_data(comparison)),
        evidence_data=as_script_data(
            {
                "config": PAGE_CONFIG,
                "figures": {
                    name: json.loads(str(figure.to_json()))
                    for name, figure in figures.items()
                    if name in shown
                },
                "csv": {name: table.csv for name, table in tables.items()},
            }
        ),
        style=read_text_of("circuits.report", "page.css"),
        scripts=[read_text_of("circuits.report", name) for name in SCRIPTS],
        plotly=as_packed_script(get_plotlyjs()),
    )
