"""Where the heads that matter attend on one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.figures.style import COLOURS, safe, styled, titled
from circuits.results.comparison import Comparison

MAX_HEADS = 8
IN_ROW = 4
LONGEST = 16


def attention_figure(comparison: Comparison, task: str, prompt: int = 0) -> go.Figure:
    """Returns the attention patterns after the gate on one prompt: of two, dense above sparse.

    `prompt` is the number of one in `comparison.examples[task]`.

    Shown are the heads in either head circuit (in either circuit of the first granularity, where
    heads were not looked for), at most eight. They are ordered by the absolute value of their
    score as a share of their model's strongest, the larger of the two.
    """
    example = comparison.examples[task][prompt]
    heads = _heads_that_matter(comparison, task)
    # Blocks of a row a model, dense above sparse, or the names of the tokens would not fit.
    sides = comparison.sides
    n_columns = min(len(heads), IN_ROW)
    blocks = [heads[start : start + n_columns] for start in range(0, len(heads), n_columns)]
    cells = {
        (len(sides) * block + row, column): (side, name)
        for block, names in enumerate(blocks)
        for row, side in enumerate(sides, start=1)
        for column, name in enumerate(names, start=1)
    }
    n_rows = len(sides) * len(blocks)
    columns = range(1, n_columns + 1)
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        specs=[
            [{} if (row, column) in cells else None for column in columns]
            for row in range(1, n_rows + 1)
        ],
        subplot_titles=[" ".join(cells[place]) for place in sorted(cells)],
        horizontal_spacing=0.015,
        vertical_spacing=0.12 / n_rows,
    )
    tokens = token_labels(example.clean)
    for (row, column), (side, name) in cells.items():
        layer, head = (int(part) for part in name[1:].split(".h"))
        figure.add_heatmap(
            row=row,
            col=column,
            z=[[round(p, 3) for p in query] for query in example.patterns[side][layer][head]],
            x=tokens,
            y=tokens,
            zmin=0,
            zmax=1,
            colorscale=[[0, "#FFFFFF"], [1, COLOURS[side]]],
            showscale=False,
            name=f"{side} {name}",
            hovertemplate="from %{y}<br>to %{x}<br>%{z:.3f}<extra></extra>",
        )
    # Panels share the names of the tokens at the left and at the foot of their column.
    labels = [f"{i} {short_label(token)}" for i, token in enumerate(example.clean)]
    ticks = {"tickvals": tokens, "ticktext": labels, "mirror": True}
    figure.update_yaxes(autorange="reversed", showticklabels=False, **ticks)
    figure.update_yaxes(showticklabels=True, col=1)
    figure.update_xaxes(showticklabels=False, tickangle=90, **ticks)
    for column in columns:
        last = max(row for row, other in cells if other == column)
        figure.update_xaxes(showticklabels=True, row=last, col=column)
    figure.update_annotations(font={"size": 12})
    title = (
        f"{titled(task)}: attention after the gate on one reporting prompt (rows look at columns)"
    )
    return styled(figure, title, 200 + n_rows * max(160, 15 * len(tokens)), legend_rows=0)


def token_labels(tokens: Sequence[str]) -> list[str]:
    """Returns the tokens as labels of an axis: visible, escaped, and no two alike.

    They are numbered, or plotly would merge equal tokens into one row.
    """
    return [f"{i} {_visible(token)}" for i, token in enumerate(tokens)]


def short_label(token: str) -> str:
    """Returns a token as a label without its number, cut where it is long."""
    return _visible(token if len(token) <= LONGEST else token[: LONGEST - 1] + "…")


def _heads_that_matter(comparison: Comparison, task: str) -> list[str]:
    strength: dict[str, float] = {}
    for side in comparison.sides:
        found = comparison.discoveries[task][side].circuits
        circuit = (found.get("head") or next(iter(found.values()))).circuit
        totals = circuit.scores.sum(dim=1).abs().tolist()
        score_of = dict(zip(circuit.graph.sources, totals, strict=True))
        largest = max(totals) or 1.0
        # A circuit without heads still shows one, so that there is a figure.
        for name in circuit.heads or [circuit.graph.sources[1]]:
            strength[name] = max(strength.get(name, 0.0), score_of[name] / largest)
    # A head that only the larger of two unlike models has cannot be shown for both.
    shown = [
        name
        for name in strength
        if all(_has(comparison, task, side, name) for side in comparison.sides)
    ]
    return sorted(shown or ["a0.h0"], key=lambda name: -strength.get(name, 0))[:MAX_HEADS]


def _has(comparison: Comparison, task: str, side: str, name: str) -> bool:
    layer, head = (int(part) for part in name[1:].split(".h"))
    patterns = comparison.examples[task][0].patterns[side]
    return layer < len(patterns) and head < len(patterns[layer])


def spelled_token(token: str) -> str:
    """Returns a token as text that can be seen: line breaks spelled out, never empty."""
    spelled = token.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r").strip()
    return spelled or "␣"


def _visible(token: str) -> str:
    """The token as a label of plotly's: visible and escaped."""
    return safe(spelled_token(token))
