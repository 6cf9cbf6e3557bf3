"""The report: a comparison as one HTML page that tells the story from top to bottom.

`report.html.j2` is the page; it holds its style (page.css), its script (page.js), plotly and all
data, and needs no network. Whatever comes from data is escaped.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jinja2
import pandas as pd
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
)
from circuits.figures.style import PAGE_CONFIG
from circuits.report.explorer import as_script_data, explorer_data
from circuits.report.words import headlines, warnings_of
from circuits.results.comparison import Comparison

TABLES = (
    *("summary", "models", "others", "seeds", "evidence"),
    *("overlap", "transfer", "structure", "roles"),
)


class _Cell(NamedTuple):
    text: str
    is_text: bool  # not a number: it stands at the left


class _Table(NamedTuple):
    head: list[_Cell]
    rows: list[list[_Cell]]


def tables_of(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Returns all tables by name."""
    return {name: getattr(comparison, f"{name}_table")() for name in TABLES}


def figures_of(comparison: Comparison) -> Iterator[tuple[str, go.Figure]]:
    """Yields all figures with their names."""
    yield "density", density_figure(comparison)
    yield "density_per_head", head_density_figure(comparison)
    yield "sizes", sizes_figure(comparison)
    for task, found in comparison.discoveries.items():
        yield f"{task}.faithfulness", faithfulness_figure(comparison, task)
        granularity = "edge" if "edge" in found["dense"].found else next(iter(found["dense"].found))
        yield f"{task}.circuits", circuit_figure(comparison, task, granularity)
        if task in comparison.examples:
            yield f"{task}.attention", attention_figure(comparison, task)
            if "attention_edge" in found["dense"].found:
                yield f"{task}.arcs", arcs_figure(comparison, task)


def report_html(comparison: Comparison, figures: dict[str, go.Figure]) -> str:
    """Returns the whole report as one HTML page that needs no network."""
    frames = tables_of(comparison)
    frames["role_counts"] = _role_counts(frames["roles"])
    frames["run"] = _run_table(comparison)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        models=comparison.models,
        headlines=headlines(comparison),
        warnings=warnings_of(comparison),
        tables={name: _table(frame) for name, frame in frames.items()},
        figures=figures,
        figure_html=lambda name: _figure(figures[name]),
        tasks=list(comparison.discoveries),
        examples={task: examples[0] for task, examples in comparison.examples.items()},
        explorer_data=as_script_data(explorer_data(comparison)),
        style=_read("page.css"),
        script=_read("page.js"),
        plotly=get_plotlyjs(),
    )


def _role_counts(roles: pd.DataFrame) -> pd.DataFrame:
    inside = roles[roles["in_circuit"].astype(bool)].replace({"role": {"": "none of these"}})
    counts: Any = inside.groupby(["task", "model", "role"], sort=False).size()
    return counts.unstack(fill_value=0).reset_index() if len(inside) else pd.DataFrame()


def _read(name: str) -> str:
    return (importlib.resources.files("circuits.report") / name).read_text(encoding="utf-8")


def _run_table(comparison: Comparison) -> pd.DataFrame:
    rows = []
    for name, value in comparison.run.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        rows.append({"run": name, "value": str(value)})
    return pd.DataFrame(rows)


def _figure(figure: go.Figure) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=False, config=PAGE_CONFIG)


def _table(frame: pd.DataFrame) -> _Table:
    """A table as the page shows it; without a row it has no head either."""
    if frame.empty:
        return _Table([], [])
    head = [
        _Cell(str(name).replace("_", " "), isinstance(frame[name].iloc[0], str))
        for name in frame.columns
    ]
    rows = [
        [
            _Cell(_in_words(str(name), value), isinstance(value, str))
            for name, value in zip(frame.columns, row, strict=True)
        ]
        for row in frame.itertuples(index=False)
    ]
    return _Table(head, rows)


def _in_words(column: str, value: Any) -> str:
    """A value as a person reads it; the CSV files hold it in full."""
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return "-"
    if column in ("accuracy", "density", "target"):
        return f"{100 * value:.3g} %"
    if column == "ce":  # Twins differ in the third decimal.
        return f"{value:.4f}"
    if math.isinf(value):
        return "∞"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"
