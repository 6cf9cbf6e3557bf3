"""The attention edges that carry a behaviour, as arcs over the tokens of one prompt."""

from __future__ import annotations

import math
from collections import Counter

import plotly.graph_objects as go

from circuits.figures.attention import short_label
from circuits.figures.style import COLOURS, counted, styled, titled
from circuits.results.circuit import AttentionEdge
from circuits.results.comparison import Comparison

MAX_ARCS = 200
_POINTS = 21
_DASHES = {"supports": "solid", "counters": "dot"}
_LIFT = 2.5  # how far apart, in the same unit, the arcs of one pair of tokens are at most
_BAND = 1.0  # half the height that the tokens take, in units of the distance of two tokens


def arcs_figure(comparison: Comparison, task: str, prompt: int = 0) -> go.Figure:
    """Returns the circuits of attention edges on one prompt: dense above the tokens, sparse below.

    That of a model alone stands above.

    An arc leads from the query at its right end to the key at its left; a loop stays at its
    token. It is the wider the stronger its score, and dashed where it counters the behaviour.
    The edges are those chosen for the prompt's template; of more than 200 the strongest are drawn
    and a note says so. `prompt` is the number of one in `comparison.examples[task]`.

    Raises:
        ValueError: attention edges were not looked for, or the comparison holds no prompt.
    """
    found, examples = comparison.discoveries[task], comparison.examples.get(task, ())
    if not examples or any(
        "attention_edge" not in found[side].circuits for side in comparison.sides
    ):
        raise ValueError(
            f"the comparison holds no circuit of attention edges on a prompt of {task!r}; compare "
            "with --granularity attention_edge"
        )
    example = examples[prompt]
    tokens = example.clean
    figure = go.Figure()
    notes = []
    heights = [_BAND]
    for side, sign in zip(comparison.sides, (1, -1), strict=False):
        circuit = found[side].circuits["attention_edge"].circuit
        edges = sorted(
            circuit.attention_edges.get(example.template, []), key=lambda edge: -abs(edge.score)
        )
        for trace in _arc_traces(edges[:MAX_ARCS], tokens, side, sign):
            figure.add_trace(trace)
            heights += [abs(y) for y in trace["y"] or () if y is not None]
        note = f"{side}: {counted(len(edges), 'attention_edge')}"
        if len(edges) > MAX_ARCS:
            note += f", the {MAX_ARCS} strongest drawn"
        notes.append(note)
    for place, token in enumerate(tokens):
        figure.add_annotation(
            x=place, y=0, text=short_label(token), textangle=-90, showarrow=False,
            font={"size": 12}, align="center",
        )  # fmt: skip
    reach = 0.5 + max(heights)
    figure.update_xaxes(visible=False, range=[-0.8, len(tokens) - 0.2])
    below = reach if comparison.is_pair else _BAND + 0.5
    figure.update_yaxes(visible=False, range=[-below, reach])
    title = f"{titled(task)}: attention edges of one prompt ({'; '.join(notes)})"
    return styled(figure, title, 360 + 14 * len(tokens), legend_rows=1)


def _arc_traces(
    edges: list[AttentionEdge], tokens: tuple[str, ...], side: str, sign: int
) -> list[go.Scatter]:
    strongest = max((abs(edge.score) for edge in edges), default=0.0) or 1.0
    # Heads that share a pair of tokens are drawn one over the other.
    n_sharing = Counter((edge.key, edge.query) for edge in edges)
    drawn: Counter[tuple[int, int]] = Counter()
    classes: dict[tuple[int, str], list[tuple[float | None, float | None]]] = {}
    tops: dict[str, list[tuple[float, float]]] = {word: [] for word in _DASHES}
    texts: dict[str, list[str]] = {word: [] for word in _DASHES}
    for edge in edges:
        width = 1 + round(4 * math.sqrt(abs(edge.score) / strongest))
        word = "supports" if edge.score >= 0 else "counters"
        ends = (edge.key, edge.query)
        lift = min(0.16, _LIFT / n_sharing[ends]) * drawn[ends]
        drawn[ends] += 1
        arc = _arc(*ends, lift, sign)
        classes.setdefault((width, word), []).extend([*arc, (None, None)])
        tops[word].append(arc[_POINTS // 2])
        link = f"{short_label(tokens[edge.query])} → {short_label(tokens[edge.key])}"
        texts[word].append(f"a{edge.layer}.h{edge.head}  {link}  {edge.score:+.3g}")
    lines = [
        go.Scatter(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            mode="lines",
            line={"color": COLOURS[side], "width": width, "dash": _DASHES[word]},
            opacity=0.75,
            hoverinfo="skip",
            showlegend=False,
            legendgroup=f"{side} {word}",
        )
        for (width, word), points in sorted(classes.items())
    ]
    # An entry of the legend hides its group: the arcs, and the markers that are pointed at.
    legend = [
        go.Scatter(
            x=[None], y=[None], mode="lines", name=f"{side}, {word}",
            line={"color": COLOURS[side], "width": 3, "dash": dash},
            legendgroup=f"{side} {word}",
        )
        for word, dash in _DASHES.items()
    ]  # fmt: skip
    pointers = [
        go.Scatter(
            x=[x for x, _ in tops[word]],
            y=[y for _, y in tops[word]],
            mode="markers",
            name=f"{side} edges",
            marker={"size": 9, "opacity": 0},
            text=texts[word],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
            legendgroup=f"{side} {word}",
        )
        for word in _DASHES
        if tops[word]
    ]
    return [*lines, *legend, *pointers]


def _arc(key: int, query: int, lift: float, sign: int) -> list[tuple[float, float]]:
    """Half an ellipse from key to query, or a small loop where they are the same token."""
    middle, half = (key + query) / 2, max((query - key) / 2, 0.18)
    height = half if query > key else 0.35
    angles = [math.pi * step / (_POINTS - 1) for step in range(_POINTS)]
    return [
        (
            round(middle - half * math.cos(angle), 3),
            round(sign * (_BAND + (height + lift) * math.sin(angle)), 3),
        )
        for angle in angles
    ]
