"""Figures: a comparison in, a plotly figure out.

One function a figure. None writes files or changes plotly's defaults; colours are those of Okabe
and Ito (2008), told apart by colour-blind readers, and mean the same everywhere: blue is the
dense model, orange the sparse one. Texts that come from data are escaped, because plotly reads
some HTML in labels.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.circuit import Circuit
from circuits.comparison import SIDES, Comparison, size_ratio
from circuits.discovery import Found
from circuits.graph import INPUT, LOGITS, Graph, node_kind, node_layer

COLOURS = {"dense": "#0072B2", "sparse": "#D55E00"}
SHADES = {"dense": "rgba(0,114,178,0.15)", "sparse": "rgba(213,94,0,0.15)"}
SUPPORTS, COUNTERS = "#009E73", "#CC79A7"
SHARED, ONE_SIDE, ABSENT = "#444444", "#E69F00", "#E4E4E4"
UNITS = {
    "head": "heads",
    "mlp": "MLPs",
    "edge": "edges",
    "attention_edge": "attention edges",
}
MAX_EDGES = 400
MAX_HEADS = 6


def density_figure(comparison: Comparison) -> go.Figure:
    """Returns the share of open attention edges per layer, in percent, for both models."""
    figure = go.Figure()
    for side in SIDES:
        facts = comparison.models[side]
        figure.add_bar(
            name=f"{side}: {100 * facts.density:.3g} % overall",
            x=[f"layer {layer}" for layer in range(len(facts.density_per_layer))],
            y=[100 * density for density in facts.density_per_layer],
            marker_color=COLOURS[side],
        )
    context = comparison.models["sparse"].context
    figure.update_yaxes(type="log", title=f"open attention edges (%), T = {context}")
    return _styled(figure, "Attention that is left open", height=380)


def sizes_figure(comparison: Comparison) -> go.Figure:
    """Returns circuit sizes at the target, dense beside sparse, with 95 % intervals and ratios."""
    tasks = list(comparison.discoveries)
    figure = make_subplots(cols=len(tasks), rows=1, subplot_titles=[_safe(task) for task in tasks])
    for column, task in enumerate(tasks, start=1):
        found = comparison.discoveries[task]
        names = list(found["dense"].found)
        for side in SIDES:
            sizes = [found[side].found[name] for name in names]
            figure.add_bar(
                row=1,
                col=column,
                name=side,
                legendgroup=side,
                showlegend=column == 1,
                x=[UNITS[name] for name in names],
                y=[one.size for one in sizes],
                marker_color=COLOURS[side],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [max(0.0, one.size_high - one.size) for one in sizes],
                    "arrayminus": [max(0.0, one.size - one.size_low) for one in sizes],
                    "color": "#555555",
                },
            )
        for name in names:
            pair = [found[side].found[name] for side in SIDES]
            ratio, low, high = size_ratio(*pair)
            figure.add_annotation(
                row=1,
                col=column,
                x=UNITS[name],
                y=math.log10(max(*(max(one.size, one.size_high) for one in pair), 1)),
                yshift=22,
                text=f"x{ratio:.2g} [{low:.2g}, {high:.2g}]",
                showarrow=False,
                font={"size": 11},
            )
    figure.update_yaxes(type="log", title="components in the circuit")
    return _styled(figure, "Components needed, dense and sparse (ratio with 95 % interval)", 420)


def faithfulness_figure(comparison: Comparison, task: str) -> go.Figure:
    """Returns faithfulness against circuit size, one panel for each granularity."""
    found = comparison.discoveries[task]
    names = list(found["dense"].found)
    figure = make_subplots(
        rows=1, cols=len(names), shared_yaxes=True, subplot_titles=[UNITS[name] for name in names]
    )
    for column, name in enumerate(names, start=1):
        for side in SIDES:
            for trace in _curve_traces(found[side].found[name], side, first=column == 1):
                figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(type="log", title=f"1 + {UNITS[name]}", row=1, col=column)
    target = found["dense"].config.target
    figure.add_hline(y=target, line_dash="dash", line_color="#777777")
    figure.update_yaxes(title="faithfulness", row=1, col=1)
    # Where a circuit overshoots wildly the axis still shows what matters, 0 to 1.
    figure.update_yaxes(range=[-0.5, 1.6])
    title = f"{_safe(task)}: how faithful are circuits of each size (dashed: {target:.0%} target)"
    return _styled(figure, title, height=420)


def _curve_traces(one: Found, side: str, *, first: bool) -> list[go.Scatter]:
    """Band, curve, the chosen size, and random circuits of that size."""
    sizes = [1 + size for size in one.curve_sizes]
    common = {"legendgroup": side, "hoverinfo": "skip"}
    return [
        go.Scatter(
            x=[*sizes, *reversed(sizes)],
            y=[*one.curve_high, *reversed(one.curve_low)],
            fill="toself",
            fillcolor=SHADES[side],
            line={"width": 0},
            showlegend=False,
            **common,
        ),
        go.Scatter(
            x=sizes,
            y=one.curve_faithfulness,
            mode="lines",
            name=side,
            legendgroup=side,
            showlegend=first,
            line={"color": COLOURS[side]},
            hovertemplate="1 + size %{x:.4g}<br>faithfulness %{y:.3f}",
        ),
        go.Scatter(
            x=[1 + one.size],
            y=[one.faithfulness],
            mode="markers",
            name=f"{side}, at the target",
            legendgroup=side,
            showlegend=first,
            marker={"color": COLOURS[side], "size": 10},
        ),
        go.Scatter(
            x=[1 + one.size] * len(one.random_faithfulness),
            y=one.random_faithfulness,
            mode="markers",
            name=f"{side}, random of that size",
            legendgroup=side,
            showlegend=first,
            marker={"color": COLOURS[side], "symbol": "x-thin-open", "size": 8},
        ),
    ]


def circuit_figure(comparison: Comparison, task: str, granularity: str = "edge") -> go.Figure:
    """Returns the two circuits side by side, each node at the same place in both.

    Layers run from the bottom to the top. Dark nodes are in both circuits, yellow ones in this
    circuit only. Edges are green where they support the behaviour, pink where they counter it,
    and as wide as their share of the strongest score.
    """
    circuits = {
        side: comparison.discoveries[task][side].found[granularity].circuit  # type: ignore[index]
        for side in SIDES
    }
    titles = []
    for side, circuit in circuits.items():
        drawn = min(int(circuit.edges.sum()), MAX_EDGES)
        cut = f", strongest {drawn} edges drawn" if drawn < int(circuit.edges.sum()) else ""
        titles.append(f"{side}: {circuit.size:.4g} {UNITS[granularity]}{cut}")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.03)
    members = {side: _node_names(circuit) for side, circuit in circuits.items()}
    for column, (side, circuit) in enumerate(circuits.items(), start=1):
        places = _places(circuit.graph)
        for trace in _edge_traces(circuit, places):
            figure.add_trace(trace, row=1, col=column)
        other = members["sparse" if side == "dense" else "dense"]
        figure.add_trace(_node_trace(circuit, places, other), row=1, col=column)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    rows = 2 * circuits["dense"].graph.n_layers + 2
    return _styled(figure, f"{_safe(task)}: the circuits side by side", max(420, 52 * rows))


def _node_names(circuit: Circuit) -> set[str]:
    return {INPUT, LOGITS, *circuit.heads, *circuit.mlps}


def _places(graph: Graph) -> dict[str, tuple[float, float]]:
    """Where each node is drawn: heads of a layer in a row, its MLP above at the right."""
    places = {INPUT: (graph.n_heads / 2, 0.0), LOGITS: (graph.n_heads / 2, 2.0 * graph.n_layers + 1)}
    for name in graph.sources[1:]:
        layer = node_layer(name)
        if node_kind(name) == "mlp":
            places[name] = (graph.n_heads + 0.5, 2 * layer + 1.9)
        else:
            places[name] = (float(name.split("h")[1]), 2 * layer + 1.0)
    return places


def _edge_traces(circuit: Circuit, places: dict[str, tuple[float, float]]) -> list[go.Scatter]:
    graph, scores = circuit.graph, circuit.scores
    chosen = circuit.edges.nonzero().tolist()
    chosen.sort(key=lambda edge: -abs(float(scores[edge[0], edge[1]])))
    chosen = chosen[:MAX_EDGES]
    strongest = max((abs(float(scores[s, d])) for s, d in chosen), default=0.0) or 1.0
    # Plotly draws one width and colour a trace: edges are gathered into a few classes.
    classes: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for src, dest in chosen:
        score = float(scores[src, dest])
        width = 1 + round(3 * math.sqrt(abs(score) / strongest))
        classes.setdefault((SUPPORTS if score >= 0 else COUNTERS, width), []).append((src, dest))
    traces = []
    middle_x, middle_y, texts = [], [], []
    for (colour, width), members in classes.items():
        xs: list[float | None] = []
        ys: list[float | None] = []
        for src, dest in members:
            start = places[graph.sources[src]]
            end = places[graph.destinations[dest].split("<")[0]]
            xs += [start[0], end[0], None]
            ys += [start[1], end[1], None]
            middle_x.append((start[0] + end[0]) / 2)
            middle_y.append((start[1] + end[1]) / 2)
            texts.append(f"{_safe(graph.edge_name(src, dest))}  {float(scores[src, dest]):+.3g}")
        line = {"color": colour, "width": width}
        traces.append(
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines",
                line=line,
                opacity=0.35 + 0.15 * width,
                hoverinfo="skip",
                showlegend=False,
            )
        )
    hover = go.Scatter(
        x=middle_x,
        y=middle_y,
        mode="markers",
        marker={"size": 9, "opacity": 0},
        text=texts,
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    return [*traces, hover]


def _node_trace(
    circuit: Circuit, places: dict[str, tuple[float, float]], other: set[str]
) -> go.Scatter:
    own = _node_names(circuit)
    totals = circuit.scores.sum(dim=1).tolist()
    score_of = dict(zip(circuit.graph.sources, totals, strict=True))
    names = list(places)
    colours = [
        (SHARED if name in other else ONE_SIDE) if name in own else ABSENT for name in names
    ]
    return go.Scatter(
        x=[places[name][0] for name in names],
        y=[places[name][1] for name in names],
        mode="markers+text",
        marker={"size": 15, "color": colours, "line": {"color": "white", "width": 1}},
        text=[name if name in own else "" for name in names],
        textposition="bottom center",
        textfont={"size": 10},
        customdata=[
            f"{name}  {score_of[name]:+.3g}" if name in score_of else name for name in names
        ],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )


def attention_figure(comparison: Comparison, task: str) -> go.Figure:
    """Returns where heads attend on one prompt, after the gate: dense above sparse.

    Shown are the strongest heads of the two head circuits (or of the edge circuits, where heads
    were not looked for), at most six.
    """
    example = comparison.examples[task]
    heads = _strongest_heads(comparison, task)
    figure = make_subplots(
        rows=2,
        cols=len(heads),
        subplot_titles=[f"{side} {name}" for side in SIDES for name in heads],
        horizontal_spacing=0.02,
        vertical_spacing=0.08,
    )
    tokens = [f"{i} {_safe(token.strip())}" for i, token in enumerate(example.clean)]
    for row, side in enumerate(SIDES, start=1):
        for column, name in enumerate(heads, start=1):
            layer, head = (int(part) for part in name[1:].split(".h"))
            figure.add_heatmap(
                row=row,
                col=column,
                z=example.patterns[side][layer][head],
                x=tokens,
                y=tokens,
                zmin=0,
                zmax=1,
                colorscale=[[0, "#FFFFFF"], [1, COLOURS[side]]],
                showscale=False,
                hovertemplate="from %{y}<br>to %{x}<br>%{z:.3f}<extra></extra>",
            )
    figure.update_yaxes(autorange="reversed", showticklabels=False)
    figure.update_yaxes(showticklabels=True, col=1, tickfont={"size": 9})
    figure.update_xaxes(showticklabels=False)
    figure.update_xaxes(showticklabels=True, row=2, tickangle=90, tickfont={"size": 9})
    return _styled(figure, f"{_safe(task)}: attention on one held-out prompt", height=760)


def _strongest_heads(comparison: Comparison, task: str) -> Sequence[str]:
    strength: dict[str, float] = {}
    for side in SIDES:
        found = comparison.discoveries[task][side].found
        circuit = (found.get("head") or next(iter(found.values()))).circuit
        totals = circuit.scores.sum(dim=1).abs()
        largest = float(totals.max()) or 1.0
        for name in circuit.heads or [circuit.graph.sources[1]]:
            share = float(totals[circuit.graph.sources.index(name)]) / largest
            strength[name] = max(strength.get(name, 0.0), share)
    strongest = sorted(strength, key=lambda name: -strength[name])[:MAX_HEADS]
    return sorted(strongest, key=lambda name: [int(part) for part in name[1:].split(".h")])


def _safe(text: str) -> str:
    return html.escape(text)


def _styled(figure: go.Figure, title: str, height: int) -> go.Figure:
    figure.update_layout(
        title={"text": title, "font": {"size": 16}},
        template="simple_white",
        height=height,
        font={"family": "system-ui, sans-serif", "size": 12},
        margin={"l": 60, "r": 20, "t": 80, "b": 60},
        legend={"orientation": "h", "y": -0.2},
        barmode="group",
    )
    return figure
