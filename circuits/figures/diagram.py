"""Circuits as diagrams: of two models side by side, each node at the same place in both."""

from __future__ import annotations

import math
from collections.abc import Iterable

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.figures.marks import DASHES, Point, circuits_of, hover, node_legend
from circuits.figures.style import (
    ABSENT,
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
from circuits.graph import INPUT, LOGITS, Graph, node_kind, node_layer
from circuits.numbers import sized
from circuits.results.circuit import Circuit
from circuits.results.comparison import Comparison
from circuits.results.stability import Stability

MAX_EDGES = 400
PALEST = 0.25
"""How opaque is what no half of the prompts has in its circuit."""
_BEND = 0.09
_POINTS = 9


def circuit_figure(comparison: Comparison, task: str, granularity: str = "edge") -> go.Figure:
    """Returns the circuits of a task side by side, layers from the bottom to the top.

    A model alone has one circuit, in blue. Of two, dark nodes are in both circuits, blue ones in
    the dense model's only, orange ones in the sparse model's only, pale ones in neither or only in
    the other. Edges are green where they support the behaviour and pink where they counter it, as
    wide as the root of their share of the circuit's strongest score, dashed where they are read as
    a query and dotted as a key. Nodes, and edges of a circuit of edges, are the paler, the fewer of
    the circuits that were found again on halves of the prompts have them (`Evidence.stability`,
    where it is known). Of a circuit with more than 400 edges the strongest 400 are drawn, and the
    panel says so.

    Raises:
        ValueError: this granularity was not looked for.
    """
    chosen = circuits_of(comparison, task, granularity)
    circuits = {side: one.circuit for side, one in chosen.items()}
    figure = make_subplots(
        rows=1,
        cols=len(circuits),
        subplot_titles=[
            f"{side}: {counted(circuit.size, granularity)}" for side, circuit in circuits.items()
        ],
        horizontal_spacing=0.03,
    )
    members = {side: _node_names(circuit) for side, circuit in circuits.items()}
    shared = set.intersection(*members.values()) if comparison.is_pair else {INPUT, LOGITS}
    for column, (side, circuit) in enumerate(circuits.items(), start=1):
        places, stability = _places(circuit.graph), chosen[side].stability
        for trace in _edge_traces(circuit, places, stability):
            figure.add_trace(trace, row=1, col=column)
        nodes = _node_trace(circuit, side, places, shared, stability)
        figure.add_trace(nodes, row=1, col=column)
        n_edges = int(circuit.edges.sum())
        if n_edges > MAX_EDGES:
            figure.add_annotation(
                row=1,
                col=column,
                xref="x domain",
                yref="y domain",
                x=0,
                y=0,
                text=f"{MAX_EDGES} strongest of {sized(n_edges)} edges drawn",
                showarrow=False,
                font={"color": GREY},
            )
    is_shaded = any(one.stability is not None for one in chosen.values())
    for trace in _legend(node_legend(comparison), is_shaded=is_shaded):
        figure.add_trace(trace, row=1, col=1)
    graphs = [circuit.graph for circuit in circuits.values()]
    width, n_layers = max(g.n_heads for g in graphs), max(g.n_layers for g in graphs)
    figure.update_xaxes(visible=False, range=[-0.8, width + 1.4])
    figure.update_yaxes(visible=False, range=[-0.8, 2 * n_layers + 1.6])
    title = f"{titled(task)}: the circuit{'s side by side' if comparison.is_pair else ''}"
    # The legend explains colours and dashes, which cross: no trace is one entry's alone to hide.
    figure.update_layout(legend={"itemclick": False, "itemdoubleclick": False})
    return styled(figure, title, 280 + 92 * n_layers, legend_rows=2)


def _node_names(circuit: Circuit) -> set[str]:
    return {INPUT, LOGITS, *circuit.heads, *circuit.mlps}


def _places(graph: Graph) -> dict[str, Point]:
    """Where each node is drawn: heads of a layer in a row, its MLP above at the right.

    Rows are shifted a little against each other, or edges between equal heads would coincide.
    """
    middle = (graph.n_heads - 1) / 2
    places = {INPUT: (middle, 0.0), LOGITS: (middle, 2.0 * graph.n_layers + 1)}
    for name in graph.sources[1:]:
        layer = node_layer(name)
        shift = 0.22 * (layer % 3)
        if node_kind(name) == "mlp":
            places[name] = (graph.n_heads + 0.1 + shift, 2 * layer + 1.9)
        else:
            places[name] = (float(name.split("h")[1]) + shift, 2 * layer + 1.0)
    return places


def _shade(share: float) -> float:
    """How opaque is drawn what a share of the halves has: seen also where none has it."""
    return PALEST + (1 - PALEST) * round(4 * share) / 4


def _in_halves(share: float | None, stability: Stability | None) -> str:
    """The share in words, for what is pointed at; nothing where it is not known."""
    if share is None or stability is None:
        return ""
    return f"<br>in {share * stability.n:.0f} of {stability.n} halves"


def _edge_traces(
    circuit: Circuit, places: dict[str, Point], stability: Stability | None
) -> list[go.Scatter]:
    graph, scores = circuit.graph, circuit.scores
    shares = None if stability is None else stability.edge_shares(circuit)
    drawn = sorted(circuit.edges.nonzero().tolist(), key=lambda edge: -abs(float(scores[*edge])))
    drawn = drawn[:MAX_EDGES]
    strongest = abs(float(scores[*drawn[0]])) if drawn else 0.0
    # Plotly draws one width, dash and colour a trace: edges are gathered into a few classes.
    classes: dict[tuple[str, str, int, float], list[tuple[int, int]]] = {}
    for src, dest in drawn:
        score = float(scores[src, dest])
        width = 1 + round(3 * math.sqrt(abs(score) / (strongest or 1.0)))
        read = graph.destinations[dest].partition("<")[2].rstrip(">")
        colour = SUPPORTS if score >= 0 else COUNTERS
        shade = 1.0 if shares is None else _shade(float(shares[src, dest]))
        classes.setdefault((colour, DASHES[read], width, shade), []).append((src, dest))
    traces = []
    middles: list[Point] = []
    texts = []
    for (colour, dash, width, shade), members in sorted(
        classes.items(), key=lambda item: item[0][2]
    ):
        points: list[Point | tuple[None, None]] = []
        for src, dest in members:
            ends = graph.sources[src], graph.destinations[dest].partition("<")[0]
            arc = _arc(places[ends[0]], places[ends[1]])
            points += [*arc, (None, None)]
            middles.append(arc[_POINTS // 2])
            text = f"{safe(graph.edge_name(src, dest))}  {float(scores[src, dest]):+.3g}"
            known = "" if shares is None else _in_halves(float(shares[src, dest]), stability)
            texts.append(text + known)
        xs, ys = zip(*points, strict=True)
        traces.append(
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines",
                line={"color": colour, "width": width, "dash": dash},
                opacity=(0.3 + 0.15 * width) * shade,
                hoverinfo="skip",
                showlegend=False,
            )
        )
    return [*traces, hover(middles, texts)]


def _arc(start: Point, end: Point) -> list[Point]:
    """A line that bends the more the longer it is, so that it passes by what lies between."""
    (x0, y0), (x1, y1) = start, end
    bend = _BEND * (y1 - y0 - 1)
    arc = []
    for step in range(_POINTS):
        t = step / (_POINTS - 1)
        out = 4 * t * (1 - t) * bend
        arc.append((round(x0 + t * (x1 - x0) + out, 3), round(y0 + t * (y1 - y0), 3)))
    return arc


def _node_trace(
    circuit: Circuit,
    side: str,
    places: dict[str, Point],
    shared: set[str],
    stability: Stability | None,
) -> go.Scatter:
    own = _node_names(circuit)
    totals = circuit.scores.sum(dim=1).tolist()
    score_of = dict(zip(circuit.graph.sources, totals, strict=True))
    names = list(places)
    share_of: dict[str, float] = {}
    if stability is not None:
        shares = stability.node_shares(circuit).tolist()
        share_of = dict(zip(circuit.graph.sources[1:], shares[1:], strict=True))
    # What is not in the circuit is pale by its colour.
    shades = [_shade(share_of.get(name, 1.0)) if name in own else 1.0 for name in names]
    colours = [
        (SHARED if name in shared else COLOURS[side]) if name in own else ABSENT for name in names
    ]
    # Names stand inside the markers, where no edge crosses them; wide models have room for none.
    size = min(32.0, 420 / (circuit.graph.n_heads + 1))
    return go.Scatter(
        x=[places[name][0] for name in names],
        y=[places[name][1] for name in names],
        mode="markers+text",
        name="nodes",
        marker={
            "size": [size if name in own else size / 2 for name in names],
            "color": colours,
            "opacity": shades,
            "line": {"color": "white", "width": 1},
        },
        text=[name if name in own and size > 30 else "" for name in names],
        textposition="middle center",
        textfont={"size": 12, "color": ["white" if s > 0.6 else "#222222" for s in shades]},
        customdata=[
            f"{name}  {score_of[name]:+.3g}{_in_halves(share_of.get(name), stability)}"
            if name in score_of
            else name
            for name in names
        ],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )


def _legend(nodes: dict[str, str], *, is_shaded: bool) -> Iterable[go.Scatter]:
    """Traces without points that put the meaning of colours and dashes into the legend."""
    for name, colour in nodes.items():
        yield go.Scatter(
            x=[None], y=[None], mode="markers", name=name, marker={"color": colour, "size": 12}
        )
    lines = {
        "supports": (SUPPORTS, "solid"),
        "counters": (COUNTERS, "solid"),
        "read as query": (GREY, DASHES["q"]),
        "as key": (GREY, DASHES["k"]),
        "as value, or by an MLP or the logits": (GREY, DASHES["v"]),
    }
    for name, (colour, dash) in lines.items():
        yield go.Scatter(
            x=[None],
            y=[None],
            mode="lines",
            name=name,
            line={"color": colour, "dash": dash, "width": 2},
        )
    if is_shaded:
        pale = {"color": GREY, "size": 12, "opacity": PALEST}
        yield go.Scatter(
            x=[None], y=[None], mode="markers", name="pale: in few halves of prompts", marker=pale
        )
