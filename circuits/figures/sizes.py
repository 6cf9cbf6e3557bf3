"""How big the circuits are, and how faithful at each size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.figures.style import COLOURS, GREY, SHADES, UNITS, styled, titled
from circuits.numbers import percent, rounded, sized
from circuits.results.comparison import Comparison
from circuits.results.discovery import Evidence
from circuits.results.pair import size_ratio

IN_ROW = 2


def sizes_figure(comparison: Comparison) -> go.Figure:
    """Returns circuit sizes at the target with 95 % intervals, of two models with their ratios.

    The axis is logarithmic where the sizes span more than a factor of ten; an empty circuit has
    no bar there, only its 0.
    """
    tasks = list(comparison.discoveries)
    n_rows, n_cols = math.ceil(len(tasks) / IN_ROW), min(len(tasks), IN_ROW)
    figure = make_subplots(
        cols=n_cols,
        rows=n_rows,
        shared_yaxes="all",  # type: ignore[arg-type]
        subplot_titles=[titled(task) for task in tasks],
        vertical_spacing=0.22 / n_rows,
        horizontal_spacing=0.03,
    )
    every = [
        one
        for found in comparison.discoveries.values()
        for discovery in found.values()
        for one in discovery.circuits.values()
    ]
    positive = [one.size for one in every if one.size > 0]
    is_log = bool(positive) and max(positive) > 10 * min(positive)
    for number, task in enumerate(tasks):
        row, column = 1 + number // IN_ROW, 1 + number % IN_ROW
        found = comparison.discoveries[task]
        names = list(found[comparison.sides[0]].circuits)
        for side in comparison.sides:
            sizes = [found[side].circuits[name] for name in names]
            bars = _size_bars(sizes, [UNITS[name] for name in names], side, first=number == 0)
            figure.add_trace(bars, row=row, col=column)
        for name in names if comparison.is_pair else ():
            pair = [found[side].circuits[name] for side in comparison.sides]
            top = max(1.0, *(max(one.size, one.size_high) for one in pair))
            figure.add_annotation(
                row=row,
                col=column,
                x=UNITS[name],
                y=math.log10(top) if is_log else top,
                yshift=26,
                text=_ratio_text(*size_ratio(*pair)),
                showarrow=False,
                font={"size": 12},
            )
    top = max(1.0, *(max(one.size, one.size_high) for one in every))
    if is_log:
        floor = min([0.4, *(0.4 * size for size in positive)])
        figure.update_yaxes(type="log", dtick=1, range=[math.log10(floor), math.log10(4 * top)])
    else:  # Room for the ratios above the bars.
        figure.update_yaxes(range=[0, 1.25 * top])
    figure.update_yaxes(title="components in the circuit", col=1)
    target = next(iter(comparison.discoveries.values()))[comparison.sides[0]].config.target
    what = "above: dense / sparse, 95 % interval" if comparison.is_pair else "95 % interval"
    title = f"Components that recover {percent(target, 4)} ({what})"
    figure.update_layout(showlegend=comparison.is_pair)
    return styled(figure, title, height=140 + 320 * n_rows)


def _size_bars(sizes: Sequence[Evidence], labels: list[str], side: str, *, first: bool) -> go.Bar:
    return go.Bar(
        name=side,
        legendgroup=side,
        showlegend=first,
        x=labels,
        y=[one.size for one in sizes],
        marker_color=COLOURS[side],
        text=[sized(one.size) for one in sizes],
        # At the foot, away from the error bars.
        textposition="inside",
        insidetextanchor="start",
        constraintext="none",
        textangle=0,
        textfont={"color": "white"},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, one.size_high - one.size) for one in sizes],
            "arrayminus": [max(0.0, one.size - one.size_low) for one in sizes],
            "color": "#222222",
        },
        customdata=[
            [sized(one.size), sized(one.n_components), _interval_words(one)] for one in sizes
        ],
        hovertemplate="%{customdata[0]} of %{customdata[1]} %{x}, %{customdata[2]}",
    )


def _interval_words(one: Evidence) -> str:
    """The interval of a size, or why there is none or none that has a width."""
    if math.isnan(one.size_low):
        return f"no interval ({one.interval.removeprefix('none: ')})"
    if one.is_in_every_half:
        return "the same on all halves"
    return f"95 % interval {sized(one.size_low)} to {sized(one.size_high)}"


def _ratio_text(ratio: float, low: float, high: float) -> str:
    if math.isnan(ratio):
        return "both empty"
    text = f"<b>{rounded(ratio)}×</b>"
    return text if math.isnan(low) else f"{text}<br>[{rounded(low)}, {rounded(high)}]"


def faithfulness_figure(comparison: Comparison, task: str) -> go.Figure:
    """Returns faithfulness against circuit size on the reporting prompts, for each granularity.

    Sizes are drawn as size + 1, so that the empty circuit has a place on the logarithmic axis.
    """
    found = comparison.discoveries[task]
    names = list(found[comparison.sides[0]].circuits)
    figure = make_subplots(
        rows=1, cols=len(names), shared_yaxes=True, subplot_titles=[UNITS[name] for name in names]
    )
    shown = []
    for column, name in enumerate(names, start=1):
        for side in comparison.sides:
            one = found[side].circuits[name]
            shown += [*one.curve_faithfulness, *one.random_faithfulness]
            for trace in _curve_traces(one, side, first=column == 1):
                figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(type="log", dtick=1, title=f"{UNITS[name]} + 1", col=column)
    target = found[comparison.sides[0]].config.target
    figure.add_hline(y=target, line_dash="dash", line_color=GREY)
    # Where a circuit overshoots wildly the axis still shows what matters, 0 to 1.
    low, high = max(-0.6, min([0.0, *shown])), min(1.7, max([1.0, *shown]))
    figure.update_yaxes(range=[low - 0.08, high + 0.08])
    figure.update_yaxes(title="faithfulness", row=1, col=1)
    title = f"{titled(task)}: faithfulness at each size (dashed: target, {percent(target, 4)})"
    return styled(figure, title, height=480, legend_rows=3)


def _curve_traces(one: Evidence, side: str, *, first: bool) -> list[go.Scatter]:
    """Band, curve, the chosen size, and random circuits of that size."""
    sizes = [1 + size for size in one.curve_sizes]
    place = "size %{customdata}, faithfulness %{y:.3f}"
    common = {"legendgroup": side}
    return [
        go.Scatter(
            x=[*sizes, *reversed(sizes)],
            y=[*one.curve_high, *reversed(one.curve_low)],
            name=f"{side}, 95 % interval",
            mode="lines",
            fill="toself",
            fillcolor=SHADES[side],
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            **common,
        ),
        go.Scatter(
            x=sizes,
            y=one.curve_faithfulness,
            mode="lines",
            name=side,
            showlegend=first,
            line={"color": COLOURS[side]},
            customdata=[sized(size) for size in one.curve_sizes],
            hovertemplate=place,
            **common,
        ),
        go.Scatter(
            x=[1 + one.size] * len(one.random_faithfulness),
            y=one.random_faithfulness,
            mode="markers",
            name=f"{side}, random of that size",
            showlegend=first,
            marker={
                "symbol": "x-thin",
                "size": 7,
                "line": {"color": COLOURS[side], "width": 1.5},
            },
            customdata=[sized(one.size)] * len(one.random_faithfulness),
            hovertemplate=f"random circuit, {place}",
            **common,
        ),
        go.Scatter(
            x=[1 + one.size],
            y=[one.faithfulness],
            mode="markers",
            name=f"{side}, the circuit",
            showlegend=first,
            marker={
                "color": COLOURS[side],
                "size": 11,
                "symbol": "diamond" if side == "sparse" else "circle",
                "line": {"color": "white", "width": 1},
            },
            customdata=[sized(one.size)],
            hovertemplate=place,
            **common,
        ),
    ]
