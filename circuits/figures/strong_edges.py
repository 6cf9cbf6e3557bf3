"""The strongest edges of a circuit as lines: their courses, their tips and how they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import plotly.graph_objects as go

from circuits.figures.layered import Box, routed
from circuits.figures.marks import DASHES, Point, hover
from circuits.figures.style import COUNTERS, SUPPORTS, safe
from circuits.results.circuit import Circuit

# Where at the foot of a head its query, key and value arrive, in parts of its width.
_PORTS = {"q": -0.28, "k": 0.0, "v": 0.28, "": 0.0}
_SPREAD = {"q": 0.2, "k": 0.2, "v": 0.2, "": 0.7}
_LEAVING = 0.5


class Edge(NamedTuple):
    """An edge of a circuit, by the names of its ends."""

    source: str
    destination: str
    read: str
    score: float


def strongest_edges(circuit: Circuit, n_edges: int) -> list[Edge]:
    """Returns a circuit's strongest edges, the strongest first."""
    graph, scores = circuit.graph, circuit.scores
    found = sorted(circuit.edges.nonzero().tolist(), key=lambda edge: -abs(float(scores[*edge])))
    chosen = []
    for src, dest in found[:n_edges]:
        node, _, read = graph.destinations[dest].partition("<")
        chosen.append(Edge(graph.sources[src], node, read.rstrip(">"), float(scores[src, dest])))
    return chosen


def traces_of(edges: list[Edge], boxes: Mapping[str, Box], width: float) -> list[go.Scatter]:
    """Returns edges as lines between labels, their tips, and what is pointed at.

    Args:
        edges: The edges.
        boxes: The label of each node in the drawing, in pixels.
        width: Of the drawing.
    """
    strongest = max((abs(edge.score) for edge in edges), default=0.0) or 1.0
    lines = _lines(edges, boxes, width)
    traces = []
    for edge, line in sorted(zip(edges, lines, strict=True), key=lambda one: abs(one[0].score)):
        thick = 1 + round(3 * math.sqrt(abs(edge.score) / strongest))
        colour = SUPPORTS if edge.score >= 0 else COUNTERS
        xs, ys = ([round(one, 1) for one in axis] for axis in zip(*line, strict=True))
        traces.append(
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines",
                line={"color": colour, "width": thick, "dash": DASHES[edge.read]},
                hoverinfo="skip",
                showlegend=False,
            )
        )
        traces.append(
            go.Scatter(
                x=xs[-1:],
                y=ys[-1:],
                mode="markers",
                name="tip",
                marker=tip(edge.score, thick) | {"angle": _angle(line)},
                hoverinfo="skip",
                showlegend=False,
            )
        )
    names = [f"{e.source}->{e.destination}{f'<{e.read}>' if e.read else ''}" for e in edges]
    texts = [f"{safe(name)}  {e.score:+.3g}" for name, e in zip(names, edges, strict=True)]
    return [*traces, hover([line[len(line) // 2] for line in lines], texts)]


def _lines(edges: list[Edge], boxes: Mapping[str, Box], width: float) -> list[list[Point]]:
    """The course of each edge; those that leave or reach one place stand side by side there."""
    leaving: dict[str, list[int]] = {}
    reaching: dict[tuple[str, str], list[int]] = {}
    for number, edge in enumerate(edges):
        leaving.setdefault(edge.source, []).append(number)
        reaching.setdefault((edge.destination, edge.read), []).append(number)
    starts, ends = {}, {}
    for name, numbers in leaving.items():
        box = boxes[name]
        numbers.sort(key=lambda number: boxes[edges[number].destination].x)
        for number, part in zip(numbers, _fan(len(numbers), _LEAVING), strict=True):
            starts[number] = (box.x + part * box.width, box.y + box.height / 2)
    for (name, read), numbers in reaching.items():
        box = boxes[name]
        numbers.sort(key=lambda number: boxes[edges[number].source].x)
        for number, part in zip(numbers, _fan(len(numbers), _SPREAD[read]), strict=True):
            ends[number] = (box.x + (_PORTS[read] + part) * box.width, box.y - box.height / 2 - 3)
    lines = []
    for number, edge in enumerate(edges):
        others = [box for name, box in boxes.items() if name not in edge[:2]]
        lines.append(routed(starts[number], ends[number], others, width))
    return lines


def _fan(n: int, spread: float) -> list[float]:
    """Evenly spaced parts of a width around its middle."""
    return [spread * ((place + 0.5) / n - 0.5) for place in range(n)]


def tip(score: float, thick: int) -> dict[str, object]:
    """Returns an arrow, or the bar that stands for what holds back."""
    if score >= 0:
        return {"symbol": "triangle-up", "size": 6 + thick, "color": SUPPORTS}
    line = {"width": 2, "color": COUNTERS}
    return {"symbol": "line-ew", "size": 6 + thick, "color": COUNTERS, "line": line}


def _angle(line: list[Point]) -> float:
    """The direction in which a line ends, in degrees clockwise from upwards."""
    (x0, y0), (x1, y1) = line[-3], line[-1]
    return round(math.degrees(math.atan2(x1 - x0, y1 - y0)), 1)
