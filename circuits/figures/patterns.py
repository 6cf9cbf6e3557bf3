"""The attention patterns of two models on the same tokens, every head of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from circuits.figures.attention import short_label
from circuits.figures.style import COLOURS, safe, styled


def patterns_figure(
    tokens: Sequence[str],
    dense: Float[Tensor, "layer head query key"],
    sparse: Float[Tensor, "_ _ _ _"],
    *,
    title: str = "attention after the gate (rows look at columns)",
) -> go.Figure:
    """Returns every head's attention: a column a head, for each layer dense above sparse.

    Args:
        tokens: The tokens as text, or names for their places; equal ones may repeat.
        dense: The dense model's patterns, on one prompt or averaged over aligned ones.
        sparse: The sparse model's, of the same shape.
        title: The figure's title.

    Raises:
        ValueError: the patterns differ in shape or do not fit the tokens.
    """
    patterns: dict[str, Tensor] = {"dense": dense, "sparse": sparse}
    for side, pattern in patterns.items():
        wanted = (*dense.shape[:2], len(tokens), len(tokens))
        if tuple(pattern.shape) != wanted:
            raise ValueError(
                f"the {side} patterns have shape {tuple(pattern.shape)}; with {len(tokens)} tokens "
                f"and the dense model's layers and heads it must be {wanted}"
            )
    n_layers, n_heads = dense.shape[:2]
    rows = [(layer, side) for layer in range(n_layers) for side in patterns]
    figure = make_subplots(
        rows=len(rows),
        cols=n_heads,
        subplot_titles=[
            f"{side} a{layer}.h{head}" for layer, side in rows for head in range(n_heads)
        ],
        horizontal_spacing=0.02,
        vertical_spacing=0.12 / len(rows),
    )
    for row, (layer, side) in enumerate(rows, start=1):
        for head in range(n_heads):
            figure.add_heatmap(
                row=row,
                col=head + 1,
                z=patterns[side][layer, head].tolist(),
                zmin=0,
                zmax=1,
                colorscale=[[0, "#FFFFFF"], [1, COLOURS[side]]],
                showscale=False,
                name=f"{side} a{layer}.h{head}",
                hovertemplate="%{z:.3f}<extra></extra>",
            )
    # Numbers, with the tokens as labels, or plotly would merge equal tokens into one row.
    ticks = {
        "tickvals": list(range(len(tokens))),
        "ticktext": [safe(token) for token in tokens],
        "mirror": True,
    }
    figure.update_xaxes(showticklabels=False, tickangle=0, **ticks)
    figure.update_xaxes(showticklabels=True, row=len(rows))
    figure.update_yaxes(showticklabels=False, autorange="reversed", **ticks)
    figure.update_yaxes(showticklabels=True, col=1)
    figure.update_annotations(font={"size": 12})
    return styled(figure, title, 160 + len(rows) * max(170, 18 * len(tokens)), legend_rows=0)


def head_figure(
    patterns: Mapping[str, tuple[Sequence[str], Float[Tensor, "query key"]]],
    *,
    title: str = "attention after the gate (rows look at columns)",
) -> go.Figure:
    """Returns one head's attention in each model, side by side.

    Args:
        patterns: For each name of a model its tokens as text and the head's pattern on them.
        title: The figure's title.

    Raises:
        ValueError: a pattern does not fit its tokens.
    """
    for name, (tokens, pattern) in patterns.items():
        if tuple(pattern.shape) != (len(tokens), len(tokens)):
            raise ValueError(
                f"the pattern of {name} has shape {tuple(pattern.shape)}, but there are "
                f"{len(tokens)} tokens"
            )
    figure = make_subplots(cols=len(patterns), subplot_titles=[safe(name) for name in patterns])
    longest = max(len(tokens) for tokens, _ in patterns.values())
    for column, (name, (tokens, pattern)) in enumerate(patterns.items(), start=1):
        figure.add_heatmap(
            row=1,
            col=column,
            z=pattern.tolist(),
            zmin=0,
            zmax=1,
            colorscale=[[0, "#FFFFFF"], [1, COLOURS.get(name, COLOURS["dense"])]],
            showscale=False,
            name=safe(name),
            hovertemplate="from %{y} to %{x}: %{z:.3f}<extra></extra>",
        )
        ticks = {"tickvals": list(range(len(tokens))), "ticktext": list(map(short_label, tokens))}
        figure.update_xaxes(tickangle=90, mirror=True, **ticks, row=1, col=column)
        figure.update_yaxes(autorange="reversed", mirror=True, **ticks, row=1, col=column)
    return styled(figure, title, 220 + max(220, 20 * longest), legend_rows=0)
