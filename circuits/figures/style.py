"""The look that all figures share, given to each of them; plotly's defaults stay as they are.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart, and mean the
same everywhere: blue is the dense model, or the only one, orange the sparse one. Texts that come
from data go through `safe`, because plotly reads some HTML in labels.
"""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go

from circuits.names import behaviour_name
from circuits.numbers import sized
from circuits.results.comparison import ONLY

COLOURS = {"dense": "#0072B2", "sparse": "#D55E00", ONLY: "#0072B2"}
SHADES = {"dense": "rgba(0,114,178,0.15)", "sparse": "rgba(213,94,0,0.15)"}
SHADES[ONLY] = SHADES["dense"]
SUPPORTS, COUNTERS = "#009E73", "#CC79A7"
SHARED, ABSENT = "#333333", "#E9E9E9"
GREY = "#777777"
UNITS = {
    "head": "heads",
    "mlp": "MLPs",
    "edge": "edges",
    "attention_edge": "attention edges",
}

PAGE_CONFIG = {"responsive": True, "displaylogo": False, "showSendToCloud": False}
"""How plotly shows a figure in a page; without its button that uploads the data."""

_AXIS = {"showline": True, "linecolor": "#444444", "ticks": "outside", "automargin": True}
_THEME: dict[str, Any] = {
    "paper_bgcolor": "white",
    "plot_bgcolor": "white",
    "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#222222"},
    "colorway": list(dict.fromkeys(COLOURS.values())),
    "xaxis": _AXIS,
    "yaxis": _AXIS,
}


def styled(figure: go.Figure, title: str, height: int, *, legend_rows: int = 1) -> go.Figure:
    """Returns the figure with the shared look, a title at the left and the legend under it."""
    top = 90 + 20 * legend_rows
    figure.update_layout(
        template=go.layout.Template(layout=_THEME),
        title={"text": title, "font": {"size": 16}, "x": 0, "xref": "paper", "y": 1 - 26 / height},
        height=height,
        margin={"l": 60, "r": 20, "t": top, "b": 60},
        # In pixels above the plot, so that it clears the panel titles at any height.
        legend={"orientation": "h", "x": 0, "y": 1 + 26 / (height - top - 60), "yanchor": "bottom"},
        barmode="group",
    )
    return figure


def counted(size: float, granularity: str) -> str:
    """Returns a size with its unit: "1 head", "12,345 edges", "3.5 attention edges"."""
    unit = UNITS[granularity]
    return f"{sized(size)} {unit[:-1] if size == 1 else unit}"


def titled(task: str) -> str:
    """Returns a behaviour's name as a figure shows it."""
    return safe(behaviour_name(task))


def safe(text: str) -> str:
    """Returns a text that plotly shows as it is, `<|endoftext|>` included.

    Quotes stay: plotly knows a handful of entities only, and would show `&quot;` as such.
    """
    return html.escape(text, quote=False)
