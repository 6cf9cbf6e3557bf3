"""The strongest edges of circuits, few enough to be followed, with the roles of their heads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.figures.layered import FONT_SIZE, Box, crowded, label_size, placed, text_width
from circuits.figures.marks import DASHES, circuits_of, node_legend
from circuits.figures.strong_edges import Edge, strongest_edges, tip, traces_of
from circuits.figures.style import (
    COLOURS,
    COUNTERS,
    GREY,
    SHARED,
    SUPPORTS,
    counted,
    safe,
    styled,
    titled,
)
from circuits.graph import INPUT, LOGITS
from circuits.names import spaced
from circuits.results.circuit import Circuit
from circuits.results.comparison import Comparison

N_STRONGEST, N_NARROW = 25, 15
"""Edges of each circuit that are drawn: side by side, and where a single column has to do."""
# Pixels: what `for_print` lays figures out in, less its margins, so that drawings keep their scale.
_WIDTHS = {"side by side": 806, "stacked": 368}
_HEIGHTS = {"side by side": 520, "stacked": 400}
_BETWEEN = {"side by side": 24, "stacked": 44}
_MARGINS = {"l": 10, "r": 10, "b": 16}
_LONGEST_ROLE = 30


def strongest_figure(
    comparison: Comparison,
    task: str,
    granularity: str = "edge",
    *,
    n_edges: int = N_STRONGEST,
    stacked: bool = False,
) -> go.Figure:
    """Returns the strongest edges of a task's circuits, of two models side by side.

    Drawn are the edges of each circuit with the greatest absolute scores and the nodes that they
    join, at the same place in both models, from the input at the foot to the logits; no label
    covers another. Colours and dashes are those of `circuit_figure`. Edges that support the
    behaviour end in an arrow, those that counter it in a bar; queries arrive at the left of a
    head's foot, keys at its middle, values at its right. Under the name of a head stands its role
    in that model, where it has one.

    Args:
        comparison: The comparison.
        task: One of its behaviours.
        granularity: Of which of its circuits. One of heads has all edges between them.
        n_edges: How many edges of each circuit are drawn at most.
        stacked: Whether the dense model stands above the sparse one, as a single column needs it.

    Raises:
        ValueError: this granularity was not looked for, or `n_edges` is below 1.
    """
    if n_edges < 1:
        raise ValueError(f"n_edges is {n_edges}; give 1 or more")
    circuits = {
        side: one.circuit for side, one in circuits_of(comparison, task, granularity).items()
    }
    edges = {side: strongest_edges(circuit, n_edges) for side, circuit in circuits.items()}
    drawn = {side: _ends(some) for side, some in edges.items()}
    panels = 1 if stacked else len(circuits)
    layout = "stacked" if stacked else "side by side"
    width = (_WIDTHS[layout] - (panels - 1) * _BETWEEN[layout]) / panels
    labels = {side: _labels(comparison, task, side, drawn[side]) for side in circuits}
    tight = crowded(_room(labels), width)
    labels = {
        side: {name: _broken(lines) if name in tight else lines for name, lines in some.items()}
        for side, some in labels.items()
    }
    places, height = placed(_room(labels), _pairs(edges), width, _HEIGHTS[layout])
    boxes = {side: _boxes(places, labels[side]) for side in circuits}
    rows = len(circuits) // panels
    whole = rows * height + (rows - 1) * _BETWEEN[layout]
    figure = make_subplots(
        rows=rows,
        cols=panels,
        subplot_titles=[_panel_title(side, c, len(edges[side])) for side, c in circuits.items()],
        horizontal_spacing=_BETWEEN[layout] / _WIDTHS[layout] if panels > 1 else 0,
        vertical_spacing=_BETWEEN[layout] / whole if rows > 1 else 0,
    )
    figure.update_annotations(font={"size": FONT_SIZE + 1}, yshift=2)
    shared = set.intersection(*drawn.values()) if comparison.is_pair else set()
    shapes = []
    for number, side in enumerate(circuits, start=1):
        ordinal = "" if number == 1 else str(number)
        axes = {"xref": f"x{ordinal}", "yref": f"y{ordinal}"}
        traces = traces_of(edges[side], boxes[side], width)
        figure.add_traces(
            [trace.update(xaxis=axes["xref"], yaxis=axes["yref"]) for trace in traces]
        )
        for name, box in boxes[side].items():
            colour = SHARED if name in shared else COLOURS[side]
            shapes.append(_drawn(box, labels[side][name], colour, axes))
    # All at once: plotly reads all of them again for each that is added.
    figure.update_layout(shapes=shapes)
    entries = list(_legend(comparison))
    figure.add_traces(entries)
    figure.update_xaxes(visible=False, range=[0, width], fixedrange=True)
    figure.update_yaxes(visible=False, range=[0, height], fixedrange=True)
    title = f"{titled(task)}: the strongest edges of the circuit{'s' if comparison.is_pair else ''}"
    return _framed(figure, title, whole, [str(one.name) for one in entries], layout)


def _ends(edges: list[Edge]) -> set[str]:
    """The nodes that edges join, and both ends of the model, which show where it begins."""
    return {INPUT, LOGITS} | {name for edge in edges for name in (edge.source, edge.destination)}


def _labels(
    comparison: Comparison, task: str, side: str, names: set[str]
) -> dict[str, tuple[str, ...]]:
    """The lines of each node's label: its name, and the role of a head that has one."""
    roles = {
        one.head: one.role for one in comparison.roles if (one.task, one.model) == (task, side)
    }
    return {name: (name, *_clipped(roles.get(name, ""))) for name in names}


def _clipped(role: str) -> tuple[str, ...]:
    """The line of a role; none without one."""
    text = spaced(role)
    if len(text) > _LONGEST_ROLE:
        text = text[: _LONGEST_ROLE - 1] + "…"
    return (text,) if text else ()


def _broken(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The label with its role in two lines, broken where the longer is the shortest."""
    name, *roles = lines
    words = " ".join(roles).split()
    halves = [(" ".join(words[:n]), " ".join(words[n:])) for n in range(1, len(words))]
    return (name, *min(halves, key=lambda pair: max(map(text_width, pair)), default=roles))


def _room(labels: Mapping[str, Mapping[str, tuple[str, ...]]]) -> dict[str, tuple[float, float]]:
    """The size of the larger of a node's labels: its place is one, in both models."""
    room: dict[str, tuple[float, float]] = {}
    for side in labels.values():
        for name, lines in side.items():
            old, new = room.get(name, (0.0, 0.0)), label_size(lines)
            room[name] = (max(old[0], new[0]), max(old[1], new[1]))
    return room


def _boxes(places: Mapping[str, Box], labels: Mapping[str, tuple[str, ...]]) -> dict[str, Box]:
    """The labels of one model at the places of both."""
    return {
        name: Box(places[name].x, places[name].y, *label_size(lines))
        for name, lines in labels.items()
    }


def _pairs(edges: Mapping[str, list[Edge]]) -> list[tuple[str, str]]:
    return [(edge.source, edge.destination) for some in edges.values() for edge in some]


def _drawn(box: Box, lines: tuple[str, ...], colour: str, axes: dict[str, str]) -> dict[str, Any]:
    """A label as a shape of plotly's, over the lines of edges."""
    name, *role = map(safe, lines)
    return axes | {
        "type": "rect",
        "x0": box.x - box.width / 2,
        "x1": box.x + box.width / 2,
        "y0": box.y - box.height / 2,
        "y1": box.y + box.height / 2,
        "fillcolor": colour,
        "line": {"width": 0},
        "layer": "above",
        "label": {
            "text": "<br>".join([f"<b>{name}</b>", *role]),
            "font": {"size": FONT_SIZE, "color": "white"},
            "padding": 0,
        },
    }


def _legend(comparison: Comparison) -> Iterator[go.Scatter]:
    """Traces without points that put the meaning of colours, tips and dashes into the legend."""
    nothing = {"x": [None], "y": [None]}
    for name, colour in node_legend(comparison).items():
        yield go.Scatter(
            **nothing,
            mode="markers",
            name=name,
            marker={"symbol": "square", "color": colour, "size": 12},
        )
    for name, score, colour in (("supports", 1.0, SUPPORTS), ("counters", -1.0, COUNTERS)):
        line = {"color": colour, "width": 2}
        yield go.Scatter(
            **nothing,
            mode="lines+markers",
            name=name,
            line=line,
            marker=tip(score, 4) | {"angle": 90},
        )
    for name, read in (("into a query", "q"), ("into a key", "k"), ("into another input", "v")):
        line = {"color": GREY, "width": 2, "dash": DASHES[read]}
        yield go.Scatter(**nothing, mode="lines", name=name, line=line)


def _panel_title(side: str, circuit: Circuit, n_drawn: int) -> str:
    n_edges = int(circuit.edges.sum())
    if n_drawn == n_edges:
        return f"{side}: {counted(n_edges, 'edge')}"
    return f"{side}: the strongest {n_drawn} of {counted(n_edges, 'edge')}"


def _framed(
    figure: go.Figure, title: str, height: float, entries: list[str], layout: str
) -> go.Figure:
    """The figure with its title and legend around drawings that keep their size in pixels."""
    # Plotly gives each entry of a legend that has several rows the width of the longest.
    entry = 46 + max(text_width(name) for name in entries)
    rows = math.ceil(len(entries) / max(1, int(_WIDTHS[layout] / entry)))
    styled(figure, title, 400, legend_rows=rows)
    top = figure.layout.margin.t
    return figure.update_layout(
        width=_WIDTHS[layout] + _MARGINS["l"] + _MARGINS["r"],
        height=height + top + _MARGINS["b"],
        margin=_MARGINS,
        legend={"itemclick": False, "itemdoubleclick": False, "y": 1 + 26 / height},
        title={"y": 1 - 26 / (height + top + _MARGINS["b"])},
    )
