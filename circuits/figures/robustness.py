"""The ratio of circuit sizes under other choices than the default ones."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.figures.style import GREY, UNITS, safe, styled

# Okabe and Ito (2008), from the first setting on.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


def robustness_figure(table: pd.DataFrame) -> go.Figure:
    """Returns the ratio dense / sparse over the target, a line for each method and ablation.

    Vertical bars are 95 % intervals over prompts. Above the grey line the sparse model's circuit
    is the smaller one. Settings without a size are left out.
    """
    tasks, granularities = list(table["task"].unique()), list(table["granularity"].unique())
    figure = make_subplots(
        rows=len(granularities),
        cols=len(tasks),
        shared_xaxes=True,
        shared_yaxes=True,
        subplot_titles=[
            f"{safe(task)}: {UNITS[granularity]}" for granularity in granularities for task in tasks
        ],
        vertical_spacing=0.12,
    )
    settings = list(dict.fromkeys(zip(table["method"], table["ablation"], strict=True)))
    for row, granularity in enumerate(granularities, start=1):
        for column, task in enumerate(tasks, start=1):
            panel: Any = table[(table["task"] == task) & (table["granularity"] == granularity)]
            for number, (method, ablation) in enumerate(settings):
                line = panel[(panel["method"] == method) & (panel["ablation"] == ablation)]
                line = line[line["ratio"].notna()]
                figure.add_scatter(
                    row=row,
                    col=column,
                    name=f"{method.replace('_', ' ')}, {ablation}",
                    legendgroup=f"{number}",
                    showlegend=row == column == 1,
                    # Settings stand side by side, so that their intervals can be told apart.
                    x=line["target"] + 0.003 * (number - len(settings) / 2),
                    y=line["ratio"],
                    mode="lines+markers",
                    line={"color": _COLOURS[number % len(_COLOURS)], "width": 1.5},
                    error_y={
                        "type": "data",
                        "symmetric": False,
                        "array": line["ratio_high"] - line["ratio"],
                        "arrayminus": line["ratio"] - line["ratio_low"],
                        "width": 0,
                        "thickness": 1,
                    },
                    hovertemplate="target %{x:.2f}: %{y:.2f}",
                )
            figure.update_yaxes(type="log", row=row, col=column)
        figure.update_yaxes(title="dense / sparse", row=row, col=1)
    figure.add_hline(y=1, line={"color": GREY, "dash": "dash"})
    figure.update_xaxes(title="target", row=len(granularities))
    return styled(
        figure,
        "Ratio of circuit sizes under each method and ablation",
        height=200 + 260 * len(granularities),
        legend_rows=2,
    )
