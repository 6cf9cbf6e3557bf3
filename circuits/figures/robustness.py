"""The ratio of circuit sizes under other choices than the default ones."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.figures.style import GREY, UNITS, styled, titled

_CHOICES = ["method", "selection", "gates", "ablation", "metric", "prompts"]
# Okabe and Ito (2008), from the first setting on.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


def robustness_figure(table: pd.DataFrame) -> go.Figure:
    """Returns the ratio dense / sparse over the target, a line for each setting.

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
            f"{titled(task)}: {UNITS[granularity]}"
            for granularity in granularities
            for task in tasks
        ],
        vertical_spacing=0.12,
    )
    # The task's own metric is one setting, whatever its name.
    own = table.groupby("task", sort=False)["metric"].transform("first")
    table = table.assign(metric=table["metric"].where(table["metric"] != own, ""))
    settings = [tuple(one) for one in table[_CHOICES].drop_duplicates().itertuples(index=False)]
    for row, granularity in enumerate(granularities, start=1):
        for column, task in enumerate(tasks, start=1):
            panel: Any = table[(table["task"] == task) & (table["granularity"] == granularity)]
            for number, setting in enumerate(settings):
                chosen = (panel[_CHOICES] == list(setting)).all(axis=1)
                line = panel[chosen & panel["ratio"].notna()]
                figure.add_scatter(
                    row=row,
                    col=column,
                    name=_in_words(setting, settings[0]),
                    legendgroup=f"{number}",
                    showlegend=row == column == 1,
                    # Settings stand side by side, so that their intervals can be told apart.
                    x=line["target"] + 0.003 * (number - len(settings) / 2),
                    y=line["ratio"],
                    mode="lines+markers",
                    line={
                        "color": _COLOURS[number % len(_COLOURS)],
                        "dash": "solid" if number < len(_COLOURS) else "dot",
                        "width": 1.5,
                    },
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
        "Ratio of circuit sizes when one choice is changed",
        height=200 + 260 * len(granularities),
        legend_rows=3,
    )


def _in_words(setting: tuple[Any, ...], base: tuple[Any, ...]) -> str:
    """The base setting in full, another one by what it changes."""
    method, selection, gates, ablation, _, prompts = base
    for name, own, other in zip(_CHOICES, setting, base, strict=True):
        if own != other:
            return f"{own} prompts" if name == "prompts" else f"{name} {own.replace('_', ' ')}"
    return f"{method.replace('_', ' ')}, {selection}, gates {gates}, {ablation}, {prompts} prompts"
