"""How sparse the models are: the share of attention edges open in each layer and each head."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from circuits.figures.style import COLOURS, safe, styled
from circuits.numbers import percent
from circuits.results.comparison import Comparison


def density_figure(comparison: Comparison) -> go.Figure:
    """Returns the share of open attention edges per layer, in percent, for the models side by side.

    A layer without any open edge has no bar, since the axis is logarithmic; its label says 0.
    """
    figure = go.Figure()
    percents = {
        side: [100 * share for share in comparison.models[side].density_per_layer]
        for side in comparison.sides
    }
    low = min([1.0, *(value for values in percents.values() for value in values if value > 0)])
    floor = 10 ** math.floor(math.log10(low) - 0.3)
    for side, values in percents.items():
        figure.add_bar(
            name=side,
            x=[f"layer {layer}" for layer in range(len(values))],
            y=[value if value > 0 else floor for value in values],
            marker_color=COLOURS[side],
            text=[f"{value:.3g}" for value in values],
            textposition="outside",
            constraintext="none",
            cliponaxis=False,
            customdata=values,
            hovertemplate="%{x}: %{customdata:.4g} % open",
        )
    facts = {side: comparison.models[side] for side in comparison.sides}
    contexts = " and ".join(dict.fromkeys(str(one.context) for one in facts.values()))
    figure.update_yaxes(
        type="log",
        range=[math.log10(floor), 2.3],
        dtick=1,
        title="open attention edges (%)",
    )
    overall = ", ".join(f"{side} {percent(one.density)}" for side, one in facts.items())
    title = f"Attention edges left open, T = {contexts} (overall: {overall})"
    return styled(figure, title, height=400)


def head_density_figure(comparison: Comparison, model: str | None = None) -> go.Figure:
    """Returns the share of open attention edges of every head, in percent: a row a layer.

    The colour is logarithmic, the numbers are in the cells; a head without any open edge is white.

    Args:
        comparison: The comparison.
        model: The model shown, one of `comparison.models`; the sparse or the only one if left out.

    Raises:
        ValueError: the comparison has no such model.
    """
    model = comparison.sides[-1] if model is None else model
    if model not in comparison.models:
        raise ValueError(
            f"the comparison has no model {model!r}; it has {', '.join(comparison.models)}"
        )
    facts = comparison.models[model]
    percents = [[100 * share for share in heads] for heads in facts.density_per_head]
    # A power of ten below the sparsest head is where the colours start, so that it is not white.
    low = min([100.0, *(one for heads in percents for one in heads if one > 0)]) / 10
    figure = go.Figure(
        go.Heatmap(
            z=[[math.log10(max(one, low)) for one in heads] for heads in percents],
            x=[f"head {head}" for head in range(len(percents[0]))],
            y=[f"layer {layer}" for layer in range(len(percents))],
            zmin=math.log10(low),
            zmax=2,
            colorscale=[[0, "#FFFFFF"], [1, COLOURS.get(model, COLOURS["sparse"])]],
            showscale=False,
            text=[[f"{one:.2g}" if one else "0" for one in heads] for heads in percents],
            texttemplate="%{text}",
            customdata=percents,
            hovertemplate="%{y}, %{x}: %{customdata:.4g} % open<extra></extra>",
        )
    )
    title = f"Attention edges that each head of {safe(model)} leaves open (%), T = {facts.context}"
    return styled(figure, title, 190 + 34 * len(percents), legend_rows=0)
